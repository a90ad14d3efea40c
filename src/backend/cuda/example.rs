//! The GPU of the examples in this module's documentation, which are tests too.

/// Has an example of the documentation run where it can: on a real GPU if there is one, in a checkout else on the virtual one. Where
/// neither is, as in the package that registries have, or where this build has no kernels, it says so in one line and returns.
#[cfg(virtual_gpu)]
#[doc(hidden)]
#[macro_export]
macro_rules! example_gpu {
    () => {
        if $crate::backend::cuda::FATBINS.is_empty() {
            println!("skipped: this build has no kernels for the example to run");
            return Ok(());
        }
        let _gpu = vgpu::load()?;
    };
}

/// Has an example of the documentation run where it can: on a real GPU if there is one, in a checkout else on the virtual one. Where
/// neither is, as in the package that registries have, or where this build has no kernels, it says so in one line and returns.
#[cfg(not(virtual_gpu))]
#[doc(hidden)]
#[macro_export]
macro_rules! example_gpu {
    () => {
        if let Err(error) = $crate::backend::cuda::usable_device(0) {
            println!("skipped: the example needs a GPU: {error}");
            return Ok(());
        }
    };
}
