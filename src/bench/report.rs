//! What a measurement leaves: the file that `bench kernels` writes and `bench compare` reads, and a file of peers' times.

use std::fmt::Write as _;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::environment::{Datasheet, Environment};
use super::shapes::Shape;
use super::stopwatch::{Passes, Spread};
use crate::error::{Error, Result};
use crate::files;

/// What the first field of a file says.
const SCHEMA: &str = "promptmix bench kernels 1";
const PEER_SCHEMA: &str = "promptmix kernel peers 1";

/// A whole measurement.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Report {
    pub(crate) schema: String,
    /// `measured` or `predicted`: the field in which each kernel has its times.
    pub(crate) times: String,
    /// Cold and warm passes of each kernel.
    pub(crate) repeats: usize,
    pub(crate) environment: Environment,
    pub(crate) ceilings: Ceilings,
    pub(crate) shapes: Vec<Shape>,
    pub(crate) kernels: Vec<Measured>,
}

/// What the device can do at most.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Ceilings {
    /// A large product through cuBLASLt, in 10^12 operations a second.
    pub(crate) product_tflop_per_s: Option<f64>,
    /// That product, or why it was not measured.
    pub(crate) product: String,
    /// A copy within the device, bytes read and written, in 10^9 a second.
    pub(crate) copy_gb_per_s: Option<f64>,
    /// That copy, or why it was not measured.
    pub(crate) copy: String,
    pub(crate) datasheet: Option<Datasheet>,
}

/// A kernel at one shape.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Measured {
    /// The shape's name.
    pub(crate) shape: String,
    /// Family and name.
    pub(crate) kernel: String,
    /// Floating-point operations of its products; 0 where it has none.
    pub(crate) operations: u64,
    /// Bytes of its operands and results, each once.
    pub(crate) bytes: u64,
    /// The tile of a product.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) tile: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) measured: Option<Passes>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) predicted: Option<Passes>,
    /// Of the median of cold passes.
    pub(crate) tflop_per_s: Option<f64>,
    pub(crate) gb_per_s: f64,
    /// Of the ceilings, where they are known.
    pub(crate) share_of_product: Option<f64>,
    pub(crate) share_of_copy: Option<f64>,
    pub(crate) share_of_datasheet_product: Option<f64>,
    pub(crate) share_of_datasheet_memory: Option<f64>,
    /// What others take for the same at the same shape.
    #[serde(default)]
    pub(crate) peers: Vec<PeerTime>,
}

/// What a peer takes for a kernel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PeerTime {
    pub(crate) peer: String,
    pub(crate) cold_us: Spread,
    pub(crate) warm_us: Spread,
}

impl Measured {
    /// With its times as measured ones, and nothing that depends on the device.
    pub(crate) fn new(shape: &str, kernel: &str, operations: u64, bytes: u64, passes: Passes) -> Self {
        let seconds = passes.cold_us.p50 / 1e6;
        let rate = |count: u64, unit: f64| count as f64 / seconds / unit;
        Self {
            shape: shape.to_owned(),
            kernel: kernel.to_owned(),
            operations,
            bytes,
            tile: None,
            measured: Some(passes),
            predicted: None,
            tflop_per_s: (operations > 0).then(|| rate(operations, 1e12)),
            gb_per_s: rate(bytes, 1e9),
            share_of_product: None,
            share_of_copy: None,
            share_of_datasheet_product: None,
            share_of_datasheet_memory: None,
            peers: Vec::new(),
        }
    }

    /// Its times, measured or predicted.
    pub(crate) fn passes(&self) -> Option<&Passes> {
        self.measured.as_ref().or(self.predicted.as_ref())
    }

    /// Sets what it reaches of the ceilings, and whether its times are predictions.
    #[cfg(feature = "cuda")]
    pub(crate) fn judge(&mut self, ceilings: &Ceilings, is_predicted: bool) {
        if is_predicted {
            self.predicted = self.measured.take();
        }
        let of = |rate: Option<f64>, most: Option<f64>| rate.zip(most).map(|(rate, most)| rate / most);
        let datasheet = ceilings.datasheet.as_ref();
        let bytes = Some(self.gb_per_s);
        self.share_of_product = of(self.tflop_per_s, ceilings.product_tflop_per_s);
        self.share_of_copy = of(bytes, ceilings.copy_gb_per_s);
        self.share_of_datasheet_product = of(self.tflop_per_s, datasheet.map(|sheet| sheet.tflop_per_s));
        self.share_of_datasheet_memory = of(bytes, datasheet.map(|sheet| sheet.gb_per_s));
    }
}

impl Report {
    pub(crate) fn new(is_predicted: bool, repeats: usize, environment: Environment) -> Self {
        let times = if is_predicted { "predicted" } else { "measured" }.to_owned();
        let (ceilings, shapes, kernels) = (Ceilings::default(), Vec::new(), Vec::new());
        Self { schema: SCHEMA.into(), times, repeats, environment, ceilings, shapes, kernels }
    }

    pub(crate) fn is_predicted(&self) -> bool {
        self.times == "predicted"
    }

    /// The table for people.
    pub(crate) fn table(&self) -> String {
        let mut text = self.heading();
        let _ = writeln!(
            text,
            "{:<10} {:<46} {:>30} {:>10} {:>9} {:>9} {:>8} {:>8} {:>8} {:>8}",
            "shape",
            "kernel",
            format!("{} us, cold p20..p80", self.times),
            "warm p50",
            "TFLOP/s",
            "GB/s",
            "product",
            "copy",
            "sheet",
            "memory"
        );
        let percent =
            |share: Option<f64>| share.map_or("-".to_owned(), |share| format!("{:.1} %", 100.0 * share));
        for kernel in &self.kernels {
            let Some(Passes { cold_us, warm_us }) = kernel.passes() else { continue };
            let _ = writeln!(
                text,
                "{:<10} {:<46} {:>30} {:>10.2} {:>9} {:>9.1} {:>8} {:>8} {:>8} {:>8}",
                kernel.shape,
                kernel.kernel,
                format!("{:.2} ({:.2}..{:.2})", cold_us.p50, cold_us.p20, cold_us.p80),
                warm_us.p50,
                kernel.tflop_per_s.map_or("-".to_owned(), |rate| format!("{rate:.2}")),
                kernel.gb_per_s,
                percent(kernel.share_of_product),
                percent(kernel.share_of_copy),
                percent(kernel.share_of_datasheet_product),
                percent(kernel.share_of_datasheet_memory),
            );
            for peer in &kernel.peers {
                let PeerTime { peer, cold_us, warm_us } = peer;
                let _ = writeln!(
                    text,
                    "{:<10} {:<46} {:>30} {:>10.2}",
                    "",
                    format!("  {peer}"),
                    format!("{:.2} ({:.2}..{:.2})", cold_us.p50, cold_us.p20, cold_us.p80),
                    warm_us.p50
                );
            }
        }
        text
    }

    fn heading(&self) -> String {
        let Environment { device, precision, version, commit, compiler, .. } = &self.environment;
        let mut text = format!("{device} in {precision}, promptmix {version}, commit {commit}\n");
        if !compiler.is_empty() {
            let _ = writeln!(text, "kernels by {compiler}");
        }
        match (&self.environment.nvml, &self.environment.nvml_missing) {
            (Some(nvml), _) => {
                let or = |number: Option<u32>| number.map_or("?".to_owned(), |number| number.to_string());
                let _ = writeln!(
                    text,
                    "driver {}, clocks {} and {} MHz of {} and {}, {} W at most, {} degrees, held down by: {}",
                    nvml.driver.as_deref().unwrap_or("?"),
                    or(nvml.after.multiprocessor_mhz),
                    or(nvml.after.memory_mhz),
                    or(nvml.max_multiprocessor_mhz),
                    or(nvml.max_memory_mhz),
                    nvml.power_limit_watts.map_or("?".to_owned(), |watts| format!("{watts:.0}")),
                    or(nvml.after.temperature_celsius),
                    if nvml.after.throttle_reasons.is_empty() {
                        "nothing".to_owned()
                    } else {
                        nvml.after.throttle_reasons.join(", ")
                    }
                );
            }
            (None, why) => {
                let why = why.as_deref().unwrap_or("nobody asked");
                let _ = writeln!(text, "clocks, power and temperature are not known: {why}");
            }
        }
        let Ceilings { product_tflop_per_s, product, copy_gb_per_s, copy, datasheet } = &self.ceilings;
        let rate =
            |rate: Option<f64>, unit: &str| rate.map_or(String::new(), |rate| format!("{rate:.1} {unit}, "));
        let _ = writeln!(text, "largest product: {}{product}", rate(*product_tflop_per_s, "TFLOP/s"));
        let predicted = if self.is_predicted() { "predicted " } else { "" };
        let _ = writeln!(text, "copy: {predicted}{}{copy}", rate(*copy_gb_per_s, "GB/s"));
        let _ = match datasheet {
            Some(Datasheet { tflop_per_s, gb_per_s }) => {
                writeln!(text, "data sheet: {tflop_per_s:.1} TFLOP/s, {gb_per_s:.0} GB/s")
            }
            None => writeln!(text, "data sheet: unknown for this device"),
        };
        text
    }

    /// Writes it as a file, whole or not at all.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        files::replace(path, |file| {
            serde_json::to_writer_pretty(&mut *file, self)?;
            std::io::Write::write_all(file, b"\n")
        })
    }
}

/// Reads what [`Report::write`] wrote.
///
/// # Errors
/// [`Error::File`] and [`Error::Format`]: no such file, another schema, or times that can be none.
pub(crate) fn read_report(path: &Path) -> Result<Report> {
    let text = of_schema(path, SCHEMA, "promptmix bench kernels --json FILE writes one")?;
    let report: Report = parse(path, &text)?;
    if !["measured", "predicted"].contains(&report.times.as_str()) {
        return Err(Error::format(path, None, "times \"measured\" or \"predicted\"", report.times, ""));
    }
    for kernel in &report.kernels {
        let own = if report.is_predicted() { &kernel.predicted } else { &kernel.measured };
        let fits = own.is_some_and(|passes| passes.cold_us.is_ordered() && passes.warm_us.is_ordered());
        if !fits || kernel.measured.is_some() == kernel.predicted.is_some() {
            let found = format!("others for {} of {}", kernel.kernel, kernel.shape);
            let expected = format!("{} times of every kernel, p20 to p80 in order", report.times);
            return Err(Error::format(path, None, expected, found, ""));
        }
    }
    Ok(report)
}

/// What other programs take, as `scripts/peers/kernel_peers.py` writes it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Peers {
    #[serde(rename = "schema")]
    _schema: String,
    pub(crate) device: String,
    /// Why a peer is not among the kernels.
    pub(crate) missing: Vec<String>,
    kernels: Vec<PeerKernel>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PeerKernel {
    shape: String,
    kernel: String,
    peer: String,
    cold_us: Spread,
    warm_us: Spread,
}

impl Peers {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// As [`read_report`].
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = of_schema(path, PEER_SCHEMA, "scripts/peers/kernel_peers.py writes one")?;
        let peers: Self = parse(path, &text)?;
        let unfit = |kernel: &&PeerKernel| !kernel.cold_us.is_ordered() || !kernel.warm_us.is_ordered();
        if let Some(kernel) = peers.kernels.iter().find(unfit) {
            let found = format!("others for {} of {}", kernel.kernel, kernel.shape);
            return Err(Error::format(path, None, "p20 to p80 in order", found, ""));
        }
        Ok(peers)
    }

    /// What peers take for a kernel at a shape.
    pub(crate) fn of(&self, shape: &str, kernel: &str) -> Vec<PeerTime> {
        let same = self.kernels.iter().filter(|peer| peer.shape == shape && peer.kernel == kernel);
        same.map(|peer| PeerTime { peer: peer.peer.clone(), cold_us: peer.cold_us, warm_us: peer.warm_us })
            .collect()
    }
}

/// The text of a file whose JSON has that schema.
fn of_schema(path: &Path, schema: &str, advice: &str) -> Result<String> {
    #[derive(Deserialize)]
    struct First {
        schema: Option<String>,
    }
    let text = std::fs::read_to_string(path).map_err(|source| Error::file("read", path, source))?;
    files::refuse_lfs_pointer(path, text.as_bytes())?;
    let found = match serde_json::from_str::<First>(&text) {
        Ok(First { schema: Some(found) }) if found == schema => return Ok(text),
        Ok(First { schema: Some(found) }) => format!("schema {found:?}"),
        Ok(First { schema: None }) => "no schema".to_owned(),
        Err(error) => error.to_string(),
    };
    Err(Error::format(path, None, format!("JSON of schema {schema:?}"), found, advice))
}

fn parse<T: serde::de::DeserializeOwned>(path: &Path, text: &str) -> Result<T> {
    serde_json::from_str(text).map_err(|error| {
        let line = u64::try_from(error.line()).ok().filter(|line| *line > 0);
        Error::format(path, line, "the fields of its schema", error.to_string(), "write the file anew")
    })
}
