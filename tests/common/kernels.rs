//! Whether there are kernels to test.

/// False, with a printed reason, in a build without kernels; in CI that fails.
pub fn are_built() -> bool {
    let built = !promptmix::cuda::FATBINS.is_empty();
    if !built {
        assert!(
            std::env::var_os("CI").is_none(),
            "CI runs without nvcc; run scripts/install-cuda-compiler first"
        );
        eprintln!("skipped: this build has no kernels; run scripts/install-cuda-compiler");
    }
    built
}
