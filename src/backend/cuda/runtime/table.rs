//! What the build script found and made: the compiled kernels, or how a build gets them that has none.

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));
