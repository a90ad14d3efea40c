//! Two files of measurements, kernel by kernel: what differs beyond what passes differ among themselves.

use std::fmt::Write as _;

use super::report::{Measured, Report};
use super::stopwatch::Spread;

/// How the second time of a kernel stands to the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// The middle three fifths of passes meet.
    Same,
    Slower,
    Faster,
}

impl Verdict {
    fn of(first: &Spread, second: &Spread) -> Self {
        match first.meets(second) {
            true => Self::Same,
            false if second.p50 > first.p50 => Self::Slower,
            false => Self::Faster,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Same => "same",
            Self::Slower => "SLOWER",
            Self::Faster => "FASTER",
        }
    }
}

/// The table of a comparison, each ratio the second's median by the first's, with what else tells the two apart.
pub(crate) fn compare(first: &Report, second: &Report) -> String {
    let mut text = differences(first, second);
    let differs = |name: &str| {
        let of = |report: &Report| report.shapes.iter().find(|shape| shape.name == name).cloned();
        of(first).zip(of(second)).is_some_and(|(one, other)| one != other)
    };
    let mut left_out: Vec<&str> = Vec::new();
    for shape in first.shapes.iter().filter(|shape| differs(&shape.name)) {
        let _ = writeln!(text, "shape {}: other sizes in each file; not compared", shape.name);
        left_out.push(&shape.name);
    }
    let _ = writeln!(
        text,
        "{:<10} {:<46} {:>25} {:>25} {:>6}  {:>6} {:>6}",
        "shape", "kernel", "first, cold us", "second, cold us", "ratio", "cold", "warm"
    );
    let same = |one: &Measured, other: &Measured| one.shape == other.shape && one.kernel == other.kernel;
    let compared = |kernel: &&Measured| !left_out.contains(&kernel.shape.as_str());
    let (mut slower, mut faster, mut alike) = (0, 0, 0);
    for kernel in first.kernels.iter().filter(compared) {
        let Some(other) = second.kernels.iter().find(|other| same(kernel, other)) else { continue };
        let Some((one, two)) = kernel.passes().zip(other.passes()) else { continue };
        let cold = Verdict::of(&one.cold_us, &two.cold_us);
        let warm = Verdict::of(&one.warm_us, &two.warm_us);
        match (cold, warm) {
            (Verdict::Same, Verdict::Same) => alike += 1,
            (Verdict::Slower, _) | (Verdict::Same, Verdict::Slower) => slower += 1,
            (Verdict::Faster, _) | (Verdict::Same, Verdict::Faster) => faster += 1,
        }
        let _ = write!(
            text,
            "{:<10} {:<46} {:>25} {:>25} {:>6.3}  {:>6} {:>6}",
            kernel.shape,
            kernel.kernel,
            shown(&one.cold_us),
            shown(&two.cold_us),
            two.cold_us.p50 / one.cold_us.p50,
            cold.name(),
            warm.name()
        );
        let works = (kernel.operations, kernel.bytes) != (other.operations, other.bytes);
        let _ = writeln!(text, "{}", if works { "  other counts of operations or bytes" } else { "" });
    }
    for (name, of, other) in [("first", first, second), ("second", second, first)] {
        let alone = of.kernels.iter().filter(compared);
        for kernel in alone.filter(|kernel| !other.kernels.iter().any(|known| same(kernel, known))) {
            let _ = writeln!(text, "in the {name} file alone: {} {}", kernel.shape, kernel.kernel);
        }
    }
    let _ = writeln!(
        text,
        "{slower} slower, {faster} faster, {alike} the same: beyond the spread from p20 to p80 of both"
    );
    text
}

fn shown(spread: &Spread) -> String {
    format!("{:.2} ({:.2} to {:.2})", spread.p50, spread.p20, spread.p80)
}

/// What of the environments makes the times no like for like.
fn differences(first: &Report, second: &Report) -> String {
    let (one, two) = (&first.environment, &second.environment);
    let clocks = |report: &Report| {
        report.environment.nvml.as_ref().map_or_else(
            || "not known".to_owned(),
            |nvml| {
                let mhz = |clock: Option<u32>| clock.map_or_else(|| "?".to_owned(), |mhz| mhz.to_string());
                let (now, most) = (&nvml.after, nvml.max_multiprocessor_mhz);
                let (of, memory) = (mhz(now.multiprocessor_mhz), mhz(now.memory_mhz));
                format!("{of} of {} MHz, memory {memory} MHz", mhz(most))
            },
        )
    };
    let optional = |value: &Option<String>| value.clone().unwrap_or_else(|| "not known".to_owned());
    let power = |report: &Report| {
        let limit = report.environment.nvml.as_ref().and_then(|nvml| nvml.power_limit_watts);
        limit.map_or_else(|| "not known".to_owned(), |watts| format!("{watts:.0} W"))
    };
    let rows = [
        ("times", first.times.clone(), second.times.clone()),
        ("device", one.device.clone(), two.device.clone()),
        ("precision", one.precision.clone(), two.precision.clone()),
        ("clocks", clocks(first), clocks(second)),
        ("power limit", power(first), power(second)),
        ("driver", optional(&one.driver_cuda), optional(&two.driver_cuda)),
        ("compiler", one.compiler.clone(), two.compiler.clone()),
        ("commit", one.commit.clone(), two.commit.clone()),
    ];
    let mut text = String::new();
    for (name, one, two) in rows.iter().filter(|(_, one, two)| one != two) {
        let _ = writeln!(text, "{name}: {one} in the first file, {two} in the second");
    }
    text
}
