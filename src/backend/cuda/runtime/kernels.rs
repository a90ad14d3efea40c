//! The compiled kernels of this build, loaded into a context, and the one place that launches them.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use cudarc::driver::sys::CUfunction_attribute_enum as Attribute;
use cudarc::driver::sys::{
    CUdevice_attribute, CUlaunchAttribute, CUlaunchAttributeID, CUlaunchAttributeValue,
    CUlaunchAttributeValue_union__bindgen_ty_1 as ClusterDimension, CUlaunchConfig, cuLaunchKernelEx,
};
use cudarc::driver::{CudaContext, CudaFunction, CudaModule, CudaStream};
use cudarc::nvrtc::Ptx;

use super::capture::{check_not_capturing, is_capturing, refuse_capture, unordered};
use super::devices;
use super::error::{self, driver};
use super::operands::Operands;
use super::table::{ARCHITECTURES, FATBINS};
use crate::error::{Error, Result};

/// What the name of a file of kernels ends in that is for compute capability 9.0 alone.
pub(crate) const HOPPER: &str = "_hopper";
/// The binary version of their code.
const HOPPER_BINARY: i32 = 90;
/// From this compute capability on kernels wait for the launches before them, so that a launch may begin before those have ended.
const FIRST_DEPENDENT: i32 = 90;
/// The first driver, by CUDA version, whose graphs keep what a captured launch says of that.
const FIRST_DRIVER_OF_DEPENDENTS: i32 = 12_030;
/// Set to 0 to have each launch begin after the end of the one before it.
const DEPENDENT_LAUNCHES: &str = "PROMPTMIX_DEPENDENT_LAUNCHES";

/// Shared memory that a block may have without asking, in bytes.
const SHARED_WITHOUT_ASKING: u32 = 48 * 1024;

/// What a kernel takes: one struct by value. The build makes them of the structs in the kernels' files.
pub trait Arguments: bytemuck::NoUninit {}

/// A kernel by file and name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Kernel {
    /// The stem of its file in `kernels/`.
    pub file: &'static str,
    /// Its name there.
    pub name: &'static str,
}

/// A kernel as the driver has it.
#[derive(Clone, Debug)]
struct Loaded {
    function: CudaFunction,
    /// The most dynamic shared memory that it was launched with: what a function may have is its own, whoever loads it, and asking for
    /// less takes it away from those who asked for more.
    most_shared: u32,
    /// Whether its code waits for the launches before it.
    waits: bool,
}

/// The kernels of this build in one context and on one stream: what every raw launch needs.
///
/// A module is loaded at its first launch. Not for use by two threads at a time.
#[derive(Debug)]
pub struct Kernels {
    stream: Arc<CudaStream>,
    modules: Vec<(&'static str, OnceCell<Arc<CudaModule>>)>,
    functions: RefCell<HashMap<Kernel, Loaded>>,
    /// Whether the driver takes launches that begin before those before them have ended, and the user lets it.
    takes_dependents: OnceCell<bool>,
    launches: Cell<u64>,
    is_dry_run: Cell<bool>,
    /// Bytes of shared memory that a block may ask for.
    most_shared: OnceCell<u32>,
    is_hopper: OnceCell<bool>,
    /// A stream that nothing is ever asked of: operands within a capture.
    unordered: Arc<CudaStream>,
}

impl Kernels {
    /// The kernels of this build for launches on `stream`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if this build has none; what the driver says.
    pub fn new(stream: Arc<CudaStream>) -> Result<Self> {
        if FATBINS.is_empty() {
            return Err(error::no_kernels());
        }
        let unordered = unordered(&stream).map_err(|error| driver("hold the GPU's context", error))?;
        let modules = FATBINS.iter().map(|(stem, _)| (*stem, OnceCell::new())).collect();
        Ok(Self {
            stream,
            modules,
            functions: RefCell::default(),
            launches: Cell::new(0),
            is_dry_run: Cell::new(false),
            most_shared: OnceCell::new(),
            is_hopper: OnceCell::new(),
            takes_dependents: OnceCell::new(),
            unordered,
        })
    }

    /// The stream that launches go to.
    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// The context of that stream.
    pub fn context(&self) -> &Arc<CudaContext> {
        self.stream.context()
    }

    /// Launches so far, those into a graph being captured included.
    pub fn launches(&self) -> u64 {
        self.launches.get()
    }

    /// Loads what `work` launches, and launches nothing: before a capture, which must not load a kernel.
    ///
    /// `work` makes the same calls as the capture will, on operands of the same sizes. Their content does not matter and stays as it is.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # promptmix::example_gpu!();
    /// use promptmix::backend::OptimizerStep;
    /// use promptmix::cuda::Kernels;
    /// use promptmix::cuda::cudarc::driver::CudaContext;
    /// use promptmix::cuda::cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
    /// use promptmix::cuda::optimizer::{AdamW, StepOperands};
    ///
    /// let kernels = Kernels::new(CudaContext::new(0)?.new_stream()?)?;
    /// let stream = kernels.stream();
    /// let mut adamw = AdamW::vector(&kernels, 1)?;
    /// adamw.schedule(&kernels, &[OptimizerStep::new(0.25, 0.0)])?;
    /// let (mut values, gradient) = (stream.clone_htod(&[1.0_f32])?, stream.clone_htod(&[0.5_f32])?);
    /// let (mut first, mut second) = (stream.alloc_zeros::<f32>(1)?, stream.alloc_zeros::<f32>(1)?);
    /// let mut step = || {
    ///     adamw.step(&kernels, StepOperands {
    ///         values: &mut values,
    ///         gradient: &gradient,
    ///         first_moment: &mut first,
    ///         second_moment: &mut second,
    ///     })
    /// };
    /// kernels.preload(&mut step)?;
    /// stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)?;
    /// let captured = step();
    /// let graph = stream.end_capture(CUgraphInstantiate_flags(0));
    /// captured?;
    /// let graph = graph?.ok_or("no graph")?;
    /// graph.launch()?;
    /// graph.launch()?;
    /// // Two steps against a gradient that stays the same.
    /// assert!((stream.clone_dtoh(&values)?[0] - 0.5).abs() < 1e-5);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// What `work` says; a kernel that cannot be loaded; a stream that captures already.
    pub fn preload(&self, work: impl FnOnce() -> Result<()>) -> Result<()> {
        check_not_capturing(&self.stream, "load kernels")?;
        let before = self.is_dry_run.replace(true);
        let done = work();
        self.is_dry_run.set(before);
        done
    }

    /// Whether the device has compute capability 9.0, and runs the kernels that are for it alone.
    pub(crate) fn is_hopper(&self) -> Result<bool> {
        if let Some(known) = self.is_hopper.get() {
            return Ok(*known);
        }
        let info = devices::info(self.context())?;
        Ok(*self.is_hopper.get_or_init(|| info.compute_capability == (9, 0)))
    }

    /// The operands of a launch, none yet.
    pub(crate) fn operands(&self) -> Operands<'_> {
        // Within a capture cudarc would have the stream wait for events from outside of it, which no graph can, and would record events
        // that nothing outside of it can wait for. Without tracking there are no events, and the question need not be asked.
        let orders = self.context().is_managing_stream_synchronization();
        let unordered = (orders && is_capturing(&self.stream)).then_some(&*self.unordered);
        Operands::new(&self.stream, unordered)
    }

    /// Sets whether this is a dry run, in which a launch loads its kernel and no more.
    pub(crate) fn dry_run(&self, is_dry_run: bool) {
        self.is_dry_run.set(is_dry_run);
    }

    /// Whether this is a dry run.
    pub(crate) fn is_dry_run(&self) -> bool {
        self.is_dry_run.get()
    }

    fn module(&self, file: &'static str) -> Result<&Arc<CudaModule>> {
        let missing = || {
            Error::unsupported(
                format!("the kernel file {file}"),
                "this build does not have it",
                "build again",
            )
        };
        let (_, module) = self.modules.iter().find(|(stem, _)| *stem == file).ok_or_else(missing)?;
        if let Some(module) = module.get() {
            return Ok(module);
        }
        let (_, image) = FATBINS.iter().find(|(stem, _)| *stem == file).ok_or_else(missing)?;
        let loaded = self
            .context()
            .load_module(Ptx::from_binary(image.to_vec()))
            .map_err(|error| error::load(file, ARCHITECTURES, error))?;
        Ok(module.get_or_init(|| loaded))
    }

    /// The function, ready for `shared` bytes of dynamic shared memory.
    fn function(&self, kernel: Kernel, shared: u32) -> Result<Loaded> {
        let mut functions = self.functions.borrow_mut();
        let is_ready = functions.get(&kernel).is_some_and(|loaded| shared <= loaded.most_shared);
        if !is_ready {
            let found = format!("{} is launched for the first time", kernel.name);
            refuse_capture(
                &self.stream,
                "launch a kernel",
                &found,
                "call Kernels::preload with the same work before",
            )?;
        }
        let loaded = match functions.entry(kernel) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(vacant) => {
                let function = self.module(kernel.file)?.load_function(kernel.name).map_err(|error| {
                    driver(&format!("find the kernel {} of {}", kernel.name, kernel.file), error)
                })?;
                let waits = check_binary(kernel, &function)? && self.takes_dependents()?;
                vacant.insert(Loaded { function, most_shared: SHARED_WITHOUT_ASKING, waits })
            }
        };
        if shared > loaded.most_shared {
            loaded
                .function
                .set_attribute(Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, shared as i32)
                .map_err(|error| {
                    driver(&format!("give {} {shared} bytes of shared memory", kernel.name), error)
                })?;
            loaded.most_shared = shared;
        }
        Ok(loaded.clone())
    }

    /// Whether launches may begin before those before them have ended, as far as it is not the kernel's to say.
    fn takes_dependents(&self) -> Result<bool> {
        if let Some(known) = self.takes_dependents.get() {
            return Ok(*known);
        }
        let allowed = match std::env::var_os(DEPENDENT_LAUNCHES) {
            None => true,
            Some(value) if value == "1" => true,
            Some(value) if value == "0" => false,
            Some(value) => {
                let found = value.to_string_lossy().into_owned();
                return Err(Error::setting(DEPENDENT_LAUNCHES, "0 or 1", found, "leave it out for 1"));
            }
        };
        let takes = allowed && devices::driver_version()? >= FIRST_DRIVER_OF_DEPENDENTS;
        Ok(*self.takes_dependents.get_or_init(|| takes))
    }

    /// Fails if blocks of the device have less than `shared` bytes of dynamic shared memory; `advice` says what takes less. For ops of
    /// several launches, before the first.
    pub(crate) fn check_shared(&self, name: &str, shared: u32, advice: &str) -> Result<()> {
        let which = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
        if shared <= SHARED_WITHOUT_ASKING {
            return Ok(());
        }
        let most = match self.most_shared.get() {
            Some(most) => *most,
            None => {
                let asked = self
                    .context()
                    .attribute(which)
                    .map_err(|error| driver("ask for shared memory", error))?;
                *self.most_shared.get_or_init(|| u32::try_from(asked).unwrap_or(0))
            }
        };
        if shared <= most {
            return Ok(());
        }
        let expected = format!("at most {most} bytes of shared memory, which a block of this GPU has");
        Err(Error::tensor(name, expected, shared.to_string(), advice))
    }

    /// Launches `kernel` with one argument on the stream, while `operands` holds the guards of what it reads and writes; a grid
    /// without blocks is no launch.
    ///
    /// # Errors
    /// What the driver says.
    ///
    /// # Safety
    /// The kernel takes exactly `A`; every pointer in `arguments` is of this context, as long and as aligned as the kernel
    /// needs for this grid, and not freed before the kernel has run.
    pub(crate) unsafe fn launch<A: Arguments>(
        &self,
        kernel: Kernel,
        grid: [u32; 3],
        block: u32,
        shared: u32,
        arguments: &A,
        operands: &Operands<'_>,
    ) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.launch_clusters(kernel, grid, [1; 3], block, shared, arguments, operands) }
    }

    /// As [`Kernels::launch`], with so many neighbouring blocks a cluster; of a kernel that says itself how many, one.
    ///
    /// # Errors
    /// What the driver says.
    ///
    /// # Safety
    /// As of [`Kernels::launch`].
    #[allow(clippy::too_many_arguments, reason = "what a launch is")]
    pub(crate) unsafe fn launch_clusters<A: Arguments>(
        &self,
        kernel: Kernel,
        grid: [u32; 3],
        cluster: [u32; 3],
        block: u32,
        shared: u32,
        arguments: &A,
        _operands: &Operands<'_>,
    ) -> Result<()> {
        if grid.contains(&0) {
            return Ok(());
        }
        let Loaded { function, waits, .. } = self.function(kernel, shared)?;
        if self.is_dry_run.get() {
            return Ok(());
        }
        let fail = |error| driver(&format!("launch {}", kernel.name), error);
        let mut attributes = Vec::new();
        if cluster != [1; 3] {
            let [x, y, z] = cluster;
            attributes.push(CUlaunchAttribute {
                id: CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION,
                pad: [0; 4],
                value: CUlaunchAttributeValue { clusterDim: ClusterDimension { x, y, z } },
            });
        }
        if waits {
            attributes.push(CUlaunchAttribute {
                id: CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
                pad: [0; 4],
                value: CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
            });
        }
        let config = CUlaunchConfig {
            gridDimX: grid[0],
            gridDimY: grid[1],
            gridDimZ: grid[2],
            blockDimX: block,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: shared,
            hStream: self.stream.cu_stream(),
            attrs: attributes.as_mut_ptr(),
            numAttrs: attributes.len() as u32,
        };
        self.context().bind_to_thread().map_err(fail)?;
        let mut argument = *arguments;
        let mut addresses = [(&raw mut argument).cast()];
        // SAFETY: the attributes, the argument and its address live until the call returns, which has copied them; of the kernel and
        // its argument, the caller's promise.
        unsafe {
            cuLaunchKernelEx(
                &raw const config,
                function.cu_function(),
                addresses.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        }
        .result()
        .map_err(fail)?;
        self.launches.set(self.launches.get() + 1);
        Ok(())
    }
}

/// Whether the code of a kernel waits for the launches before it: what it was compiled from says that, not what it was compiled for.
/// Fails if a kernel for compute capability 9.0 alone became code of another.
fn check_binary(kernel: Kernel, function: &CudaFunction) -> Result<bool> {
    let ask = |attribute| {
        function
            .get_attribute(attribute)
            .map_err(|error| driver(&format!("ask what {} was compiled for", kernel.name), error))
    };
    let binary = ask(Attribute::CU_FUNC_ATTRIBUTE_BINARY_VERSION)?;
    if kernel.file.ends_with(HOPPER) && binary != HOPPER_BINARY {
        let reason = format!("it is code of architecture {binary} here, and for {HOPPER_BINARY} alone");
        return Err(Error::unsupported(format!("the kernel {}", kernel.name), reason, "build again"));
    }
    Ok(binary.min(ask(Attribute::CU_FUNC_ATTRIBUTE_PTX_VERSION)?) >= FIRST_DEPENDENT)
}
