//! Comparing two vectors so that nothing wrong passes: NaN, another length and an all-zero output all fail.

/// How far `actual` lies from `expected`.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// The largest |actual - expected|; NaN if either holds one.
    pub worst_absolute: f64,
    /// `worst_absolute` over the largest |expected|.
    pub worst_relative: f64,
    /// 1 - cosine of the angle between the two.
    pub cosine_distance: f64,
    /// Why the two cannot be compared at all, if so.
    pub defect: Option<String>,
}

/// Compares `actual` with `expected`, which are expected not to be zero throughout.
pub fn compare(actual: &[f64], expected: &[f64]) -> Comparison {
    let defect = if actual.len() != expected.len() {
        Some(format!("{} values, expected {}", actual.len(), expected.len()))
    } else if actual.is_empty() {
        Some("no values".into())
    } else if actual.iter().chain(expected).any(|value| !value.is_finite()) {
        Some("a value is not finite".into())
    } else if actual.iter().all(|&value| value == 0.0) && expected.iter().any(|&value| value != 0.0) {
        Some("all values are zero".into())
    } else {
        None
    };
    if defect.is_some() {
        let nan = f64::NAN;
        return Comparison { worst_absolute: nan, worst_relative: nan, cosine_distance: nan, defect };
    }
    let pairs = || actual.iter().zip(expected);
    let worst_absolute = pairs().map(|(a, e)| (a - e).abs()).fold(0.0, f64::max);
    let largest = expected.iter().fold(0.0_f64, |most, e| most.max(e.abs()));
    let product: f64 = pairs().map(|(a, e)| a * e).sum();
    let norms: f64 = [actual, expected].iter().map(|v| v.iter().map(|x| x * x).sum::<f64>().sqrt()).product();
    let cosine_distance = if norms > 0.0 { 1.0 - product / norms } else { 0.0 };
    Comparison {
        worst_absolute,
        worst_relative: if largest > 0.0 { worst_absolute / largest } else { worst_absolute },
        // Of equal vectors it comes out a rounding below zero. NaN stays NaN.
        cosine_distance: if cosine_distance < 0.0 { 0.0 } else { cosine_distance },
        defect: None,
    }
}

/// What a comparison may be off by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Tolerance {
    /// The largest difference itself.
    Absolute(f64),
    /// The largest difference, as a part of the largest expected entry.
    OfLargest(f64),
    /// 1 - cosine.
    Cosine(f64),
}

impl Comparison {
    /// The figure that `tolerance` is about, and the most that it may be.
    fn judged(&self, tolerance: Tolerance) -> (f64, f64) {
        match tolerance {
            Tolerance::Absolute(bound) => (self.worst_absolute, bound),
            Tolerance::OfLargest(bound) => (self.worst_relative, bound),
            Tolerance::Cosine(bound) => (self.cosine_distance, bound),
        }
    }

    /// Whether the comparison is within `tolerance`; never when there is a defect or a NaN.
    pub fn passes(&self, tolerance: Tolerance) -> bool {
        let (value, bound) = self.judged(tolerance);
        self.defect.is_none() && value <= bound
    }

    /// The figure that `tolerance` is about over its bound: at most 1 where the comparison passes. NaN when there is a defect; 0
    /// where nothing may be off and nothing is.
    pub fn ratio(&self, tolerance: Tolerance) -> f64 {
        match self.judged(tolerance) {
            (0.0, 0.0) => 0.0,
            (value, bound) => value / bound,
        }
    }
}

impl std::fmt::Display for Tolerance {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Padded as the caller says.
        formatter.pad(&match self {
            Self::Absolute(bound) => format!("{bound:.0e} absolute"),
            Self::OfLargest(bound) => format!("{bound:.0e} of the largest"),
            Self::Cosine(bound) => format!("{bound:.2e} of 1 - cosine"),
        })
    }
}
