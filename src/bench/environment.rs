//! Where a measurement was taken: what nobody can reproduce it without.

use serde::{Deserialize, Serialize};

#[cfg(feature = "cuda")]
use crate::error::Result;

/// The commit that this program was built from, or that it is not known.
const COMMIT: &str = env!("BUILT_FROM_COMMIT");

/// Device, driver and build.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Environment {
    /// Of this program.
    pub(crate) version: String,
    pub(crate) commit: String,
    /// What nvcc said of itself; empty in a build without kernels.
    pub(crate) compiler: String,
    /// Architectures that the kernels were compiled to machine code for.
    pub(crate) architectures: Vec<u32>,
    pub(crate) device: String,
    /// The format of matrix operands.
    pub(crate) precision: String,
    /// The CUDA version that the driver speaks.
    pub(crate) driver_cuda: Option<String>,
    pub(crate) compute_capability: Option<String>,
    pub(crate) multiprocessors: Option<usize>,
    /// What NVML says, once before and once after.
    pub(crate) nvml: Option<Nvml>,
    /// Why it says nothing.
    pub(crate) nvml_missing: Option<String>,
}

/// What NVML says of the device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Nvml {
    pub(crate) driver: Option<String>,
    pub(crate) max_multiprocessor_mhz: Option<u32>,
    pub(crate) max_memory_mhz: Option<u32>,
    pub(crate) power_limit_watts: Option<f64>,
    pub(crate) ecc: Option<bool>,
    /// As the measurement began.
    pub(crate) before: Sample,
    /// As it ended.
    pub(crate) after: Sample,
}

/// What changes while a device works.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Sample {
    pub(crate) multiprocessor_mhz: Option<u32>,
    pub(crate) memory_mhz: Option<u32>,
    pub(crate) temperature_celsius: Option<u32>,
    /// Why the clocks are not higher, as NVML names the reasons; none while nothing holds them down.
    pub(crate) throttle_reasons: Vec<String>,
}

/// What a data sheet says of a device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Datasheet {
    /// Products of bf16, dense, in 10^12 operations a second.
    pub(crate) tflop_per_s: f64,
    /// Memory, in 10^9 bytes a second.
    pub(crate) gb_per_s: f64,
}

impl Environment {
    /// Of a build on a device, of which the driver is not asked.
    pub(crate) fn new(device: String, precision: &str) -> Self {
        #[cfg(feature = "cuda")]
        let (compiler, architectures) =
            (crate::backend::cuda::COMPILER.to_owned(), crate::backend::cuda::ARCHITECTURES.to_vec());
        #[cfg(not(feature = "cuda"))]
        let (compiler, architectures) = (String::new(), Vec::new());
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            commit: COMMIT.to_owned(),
            compiler,
            architectures,
            device,
            precision: precision.to_owned(),
            driver_cuda: None,
            compute_capability: None,
            multiprocessors: None,
            nvml: None,
            nvml_missing: Some("the device is no GPU".to_owned()),
        }
    }
}

/// What the data sheet says of the device of that name, if it is known.
///
/// # Errors
/// A table of this build that cannot be read.
#[cfg(feature = "cuda")]
pub(crate) fn datasheet(device: &str) -> Result<Option<Datasheet>> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields, rename_all = "kebab-case")]
    struct Device {
        names: Vec<String>,
        tflop_per_s: f64,
        gb_per_s: f64,
    }
    #[derive(Deserialize)]
    struct Table {
        device: Vec<Device>,
    }
    let table: Table = toml::from_str(include_str!("devices.toml")).map_err(|error| {
        let path = "src/bench/devices.toml";
        crate::error::Error::format(path, None, "a table of devices", error.message(), "build again")
    })?;
    let known = table.device.into_iter().find(|known| known.names.iter().any(|name| name == device));
    Ok(known.map(|Device { tflop_per_s, gb_per_s, .. }| Datasheet { tflop_per_s, gb_per_s }))
}

/// What NVML says of GPUs.
#[cfg(feature = "vendor")]
pub(crate) mod nvml {
    use nvml_wrapper::Device;
    use nvml_wrapper::Nvml as Library;
    use nvml_wrapper::enum_wrappers::device::{Clock, TemperatureSensor};
    use nvml_wrapper::error::NvmlError;

    use super::{Nvml, Sample};

    /// Names of the library: drivers install the second, and some tools the first.
    const NAMES: [&str; 2] = ["libnvidia-ml.so.1", "libnvidia-ml.so"];

    /// The library, and the place of a GPU on the PCI bus.
    pub(crate) struct Monitor {
        library: Library,
        place: String,
    }

    impl Monitor {
        /// Of the GPU at that place; why there is none otherwise.
        pub(crate) fn open(place: String) -> Result<Self, String> {
            let open = |name: &&str| Library::builder().lib_path(name.as_ref()).init();
            let mut why = String::new();
            for name in &NAMES {
                match open(name) {
                    Ok(library) => {
                        let found = library.device_by_pci_bus_id(place.as_str()).map(drop);
                        return match found {
                            Ok(()) => Ok(Self { library, place }),
                            Err(error) => Err(format!("NVML knows no GPU at {place}: {error}")),
                        };
                    }
                    // The first one's reason is the telling one.
                    Err(_) if !why.is_empty() => {}
                    Err(NvmlError::LibloadingError(_)) => why = format!("{name} was not found"),
                    Err(error) => why = format!("{name} could not be started: {error}"),
                }
            }
            Err(why)
        }

        fn device(&self) -> Option<Device<'_>> {
            self.library.device_by_pci_bus_id(self.place.as_str()).ok()
        }

        /// What changes, as it is now.
        pub(crate) fn sample(&self) -> Sample {
            let device = self.device();
            let clock = |which| device.as_ref().and_then(|device| device.clock_info(which).ok());
            let reasons = device.as_ref().and_then(|device| device.current_throttle_reasons().ok());
            let named = reasons.iter().flat_map(|reasons| reasons.iter_names());
            Sample {
                multiprocessor_mhz: clock(Clock::SM),
                memory_mhz: clock(Clock::Memory),
                temperature_celsius: device
                    .as_ref()
                    .and_then(|device| device.temperature(TemperatureSensor::Gpu).ok()),
                throttle_reasons: named.map(|(name, _)| name.to_lowercase()).collect(),
            }
        }

        /// What stays, with two samples.
        pub(crate) fn describe(&self, before: Sample, after: Sample) -> Nvml {
            let device = self.device();
            let most = |which| device.as_ref().and_then(|device| device.max_clock_info(which).ok());
            let limit = device.as_ref().and_then(|device| device.enforced_power_limit().ok());
            let ecc = device.as_ref().and_then(|device| device.is_ecc_enabled().ok());
            Nvml {
                driver: self.library.sys_driver_version().ok(),
                max_multiprocessor_mhz: most(Clock::SM),
                max_memory_mhz: most(Clock::Memory),
                power_limit_watts: limit.map(|milliwatts| f64::from(milliwatts) / 1e3),
                ecc: ecc.map(|state| state.currently_enabled),
                before,
                after,
            }
        }
    }
}

/// A build without NVML.
#[cfg(all(feature = "cuda", not(feature = "vendor")))]
pub(crate) mod nvml {
    use super::{Nvml, Sample};

    /// There is none.
    pub(crate) enum Monitor {}

    impl Monitor {
        /// Why there is none.
        pub(crate) fn open(_: String) -> Result<Self, String> {
            Err("this program was built without the feature `vendor`".to_owned())
        }

        /// What changes, as it is now.
        pub(crate) fn sample(&self) -> Sample {
            match *self {}
        }

        /// What stays, with two samples.
        pub(crate) fn describe(&self, _: Sample, _: Sample) -> Nvml {
            match *self {}
        }
    }
}
