//! NVIDIA's GPUs as the machine itself lists them, whether there is a driver or none. Uses the standard library alone: tests/devices.rs
//! includes this file.

use std::path::Path;

/// Where Linux lists what is on the PCI bus.
pub const BUS: &str = "/sys/bus/pci/devices";
/// NVIDIA's number.
const VENDOR: &str = "0x10de";
/// What numbers of classes of displays begin with, those that only compute included.
const DISPLAY: &str = "0x03";

/// How many GPUs of NVIDIA the folder `bus` lists; none where there is no such folder.
pub fn nvidia_gpus(bus: &Path) -> usize {
    let entries = std::fs::read_dir(bus).into_iter().flatten().flatten();
    let is_gpu = |device: &Path| {
        let says = |file: &str, start: &str| {
            std::fs::read_to_string(device.join(file)).is_ok_and(|text| text.starts_with(start))
        };
        says("vendor", VENDOR) && says("class", DISPLAY)
    };
    entries.filter(|entry| is_gpu(&entry.path())).count()
}
