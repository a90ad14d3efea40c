//! What can go wrong between this program and a GPU, each with its own advice.

use cudarc::driver::DriverError;
use cudarc::driver::sys::CUresult;

use super::table::REMEDY;
use crate::error::Error;

/// The oldest architecture that the kernels run on.
pub(crate) const OLDEST: (i32, i32) = (8, 0);

pub(crate) fn no_kernels() -> Error {
    Error::unsupported(
        "--device cuda",
        "this program was built without nvcc and holds no GPU kernels",
        format!("{REMEDY}; --device cpu needs none"),
    )
}

pub(crate) fn no_driver() -> Error {
    Error::unsupported(
        "--device cuda",
        "the NVIDIA driver's library libcuda.so was not found",
        "install the NVIDIA driver, or start the container with its GPUs; --device cpu needs none",
    )
}

pub(crate) fn no_gpu(ordinal: usize, count: usize) -> Error {
    let found = match count {
        0 => "the driver finds no GPU".to_owned(),
        count => format!("there are {count}, numbered from 0, and {ordinal} was asked for"),
    };
    Error::unsupported(
        format!("--device cuda:{ordinal}"),
        found,
        "run nvidia-smi to see which GPUs there are, of which CUDA_VISIBLE_DEVICES may hide some",
    )
}

pub(crate) fn old_driver(speaks: i32, release: i32) -> Error {
    Error::unsupported(
        "--device cuda",
        format!(
            "the driver speaks CUDA {}.{}, the kernels were built with {}.{}",
            speaks / 1000,
            speaks % 1000 / 10,
            release / 1000,
            release % 1000 / 10
        ),
        "update the NVIDIA driver (R580 or newer for CUDA 13.0), or build with an older toolkit",
    )
}

pub(crate) fn old_gpu(name: &str, (major, minor): (i32, i32)) -> Error {
    Error::unsupported(
        format!("{name} (compute capability {major}.{minor})"),
        format!("the kernels need {}.{} or newer", OLDEST.0, OLDEST.1),
        "--device cpu computes without it",
    )
}

/// A GPU that fits and gives no context.
pub(crate) fn busy(ordinal: usize, error: DriverError) -> Error {
    let advice = "nvidia-smi shows whether other programs hold it and whether it is healthy; --device cuda:N takes another, --device cpu none";
    Error::device(format!("open GPU {ordinal}"), said(error), advice)
}

pub(crate) fn load(file: &str, architectures: &[u32], error: DriverError) -> Error {
    let advice = match error.0 {
        CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION => {
            "the driver is older than the toolkit that these kernels were built with: update the driver (R580 or newer for CUDA 13.0)"
        }
        CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU => {
            "build again with PROMPTMIX_CUDA_ARCHS unset, so that every architecture is in"
        }
        _ => "update the NVIDIA driver, or build again",
    };
    let archs: Vec<String> = architectures.iter().map(u32::to_string).collect();
    Error::device(
        format!("load the kernels {file} (machine code for {}, PTX for 80)", archs.join(" ")),
        said(error),
        advice,
    )
}

/// A driver call that failed.
pub(crate) fn driver(action: &str, error: DriverError) -> Error {
    let advice = match error.0 {
        CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
            "take a smaller --batch-size, or free the GPU of other programs"
        }
        CUresult::CUDA_ERROR_ILLEGAL_ADDRESS
        | CUresult::CUDA_ERROR_LAUNCH_FAILED
        | CUresult::CUDA_ERROR_MISALIGNED_ADDRESS => {
            "this is a defect of promptmix: run with --device cpu, and report it"
        }
        CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED
        | CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED
        | CUresult::CUDA_ERROR_STREAM_CAPTURE_ISOLATION
        | CUresult::CUDA_ERROR_STREAM_CAPTURE_IMPLICIT => {
            "a stream captures: load, allocate and copy before the capture, and order streams outside of it"
        }
        _ => "see whether nvidia-smi reports the GPU as healthy",
    };
    Error::device(action, said(error), advice)
}

fn said(error: DriverError) -> String {
    let name = error.error_name().map(|name| name.to_string_lossy().into_owned());
    let text = error.error_string().map(|text| text.to_string_lossy().into_owned());
    match (name, text) {
        (Ok(name), Ok(text)) => format!("{name}, {text}"),
        _ => format!("{error:?}"),
    }
}
