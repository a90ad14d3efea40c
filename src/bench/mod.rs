//! Measurements that others can cite: every family of kernels at the shapes of a model's batch, with the environment that they were
//! taken in, and two files of such measurements compared.
//!
//! [`kernels`] times what runs on any device; on a GPU [`products`] adds the products with their epilogues, the gate, and what the device
//! can do at most.

mod compare;
mod environment;
mod kernels;
#[cfg(feature = "cuda")]
mod products;
mod report;
mod shapes;
mod stopwatch;

pub(crate) use compare::compare;
pub(crate) use environment::Environment;
#[cfg(feature = "cuda")]
pub(crate) use environment::{datasheet, nvml};
pub(crate) use kernels::{Only, measure};
#[cfg(feature = "cuda")]
pub(crate) use products::{ceilings, layer_products, measure_products};
pub(crate) use report::{Measured, Peers, Report, read_report};
pub(crate) use shapes::{Shape, shapes};
pub(crate) use stopwatch::HostClock;

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{Peers, compare, read_report, shapes};

    const REPORT: &str = r#"{"schema": "promptmix bench kernels 1", "times": "measured", "repeats": 20, "environment": {"version": "0.1.0",
"commit": "abc", "compiler": "nvcc", "architectures": [80], "device": "NVIDIA H200", "precision": "bf16", "driver_cuda": "13.0",
"compute_capability": "9.0", "multiprocessors": 132, "nvml": null, "nvml_missing": "none"}, "ceilings": {"product_tflop_per_s": 770.5,
"product": "p", "copy_gb_per_s": null, "copy": "", "datasheet": {"tflop_per_s": 989.0, "gb_per_s": 4800}}, "shapes": [], "kernels": [
{"shape": "s", "kernel": "a/forward", "operations": 2, "bytes": 3, "measured": {"cold_us": {"p20": 1.0, "p50": 2.0, "p80": 3.0},
"warm_us": {"p20": 1.0, "p50": 2.0, "p80": 3.0}}, "tflop_per_s": null, "gb_per_s": 1.5, "share_of_product": null, "share_of_copy": null,
"share_of_datasheet_product": null, "share_of_datasheet_memory": null, "peers": []}]}"#;
    const PEERS: &str = r#"{"schema": "promptmix kernel peers 1", "device": "NVIDIA H200", "missing": ["flash-attn"], "kernels": [
{"shape": "s", "kernel": "a/forward", "peer": "SDPA", "cold_us": {"p20": 1.0, "p50": 2.0, "p80": 3.0},
"warm_us": {"p20": 1.0, "p50": 2.0, "p80": 3.0}}]}"#;
    const SHAPES: &str = "[[shape]]\nname = \"s\"\nexamples = 2\nsource-lengths = [3, 4]\ntarget-length = 2\nprompt-length = 5\n\
        width = 16\nheads = 2\nhead-width = 8\ninner = 24\nvocabulary = 40\nsources = 3\nbottleneck = 4\ndecoded = 1\n";

    /// The text cut off at every byte, and with every byte left out or replaced.
    fn broken(text: &str) -> impl Iterator<Item = Vec<u8>> {
        let bytes = text.as_bytes();
        (0..bytes.len()).flat_map(move |at| {
            let replaced = [b'9', b'-', b'"', b'[', b'}', 0, 0xFF].map(|byte| {
                let mut other = bytes.to_vec();
                other[at] = byte;
                other
            });
            let left_out = [&bytes[..at], &bytes[at + 1..]].concat();
            replaced.into_iter().chain([bytes[..at].to_vec(), left_out])
        })
    }

    /// Reads the text, which must succeed, and all that is broken of it, of which most must fail.
    fn read_all<T>(text: &str, extension: &str, read: impl Fn(&Path) -> Option<T>) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("file").with_extension(extension);
        let taken = |bytes: &[u8]| {
            std::fs::write(&path, bytes).expect("written");
            read(&path).is_some()
        };
        assert!(taken(text.as_bytes()));
        let (mut good, mut all) = (0, 0);
        for bytes in broken(text) {
            good += usize::from(taken(&bytes));
            all += 1;
        }
        assert!(good * 2 < all, "{good} of {all} broken files were taken for good ones");
    }

    #[test]
    fn broken_files_are_errors_or_values_that_can_be_printed() {
        read_all(REPORT, "json", |path| {
            let report = read_report(path).ok()?;
            Some((compare(&report, &report), report.table()))
        });
        read_all(PEERS, "json", |path| Peers::read(path).ok().map(|peers| peers.of("s", "a/forward")));
        read_all(SHAPES, "toml", |path| {
            let shapes = shapes(path.to_str()?).ok()?;
            Some(
                shapes
                    .iter()
                    .map(|shape| (shape.heads().total(), shape.source_lengths.len()))
                    .collect::<Vec<_>>(),
            )
        });
    }
}
