//! `promptmix bench tiles`: every tile of every product of a layer, timed, and the table that products choose by.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::device::{Device, Opened, tells_model_time};
use super::progress::bar;
use super::random_model::dimensions;
use crate::backend::cuda::linear::TileTable;
use crate::backend::cuda::tile_search::{Candidate, ProductShape, TileSearch};
use crate::backend::cuda::{Cuda, Precision};
use crate::bench;
use crate::error::{Error, Result};
use crate::files;
use crate::pretrained::T5Config;

/// Flags of `promptmix bench tiles`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  promptmix bench tiles --device cuda
  promptmix bench tiles --dims t5-base --rows 4096,64 --device cuda --output tiles.json --table tiles.csv
  promptmix bench step --dims t5-base --batch-size 32 --device cuda --tiles tiles.csv")]
pub(super) struct Tiles {
    /// Models, by name or as a config.json
    #[arg(long, value_delimiter = ',', default_values = ["t5-small", "t5-base", "t5-large", "t5-3b"])]
    dims: Vec<String>,
    /// Rows of the encoder's products and of the decoder's; if not given, those of a batch that is usual for the model
    #[arg(long, value_delimiter = ',', num_args = 1)]
    rows: Vec<usize>,
    /// Launches timed of each tile, with nothing in the cache and with everything
    #[arg(long, default_value_t = 20)]
    repeats: usize,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
    /// Write the JSON to this file
    #[arg(long)]
    output: Option<PathBuf>,
    /// Write the fastest tile of each shape to this file, for src/backend/cuda/ops/tiles.csv or bench step --tiles
    #[arg(long)]
    table: Option<PathBuf>,
    #[command(flatten)]
    device: Device,
}

/// A product of a model, by name.
struct Named {
    dims: String,
    name: &'static str,
    shape: ProductShape,
}

impl Tiles {
    pub(super) fn run(self) -> Result<ExitCode> {
        if self.repeats == 0 {
            return Err(Error::setting("--repeats", "at least 1", "0", ""));
        }
        if ![0, 2].contains(&self.rows.len()) || self.rows.contains(&0) {
            let found = self.rows.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
            return Err(Error::setting("--rows", "two numbers of at least 1, as in 4096,64", found, ""));
        }
        let mut products: Vec<Named> = Vec::new();
        for name in &self.dims {
            let config = dimensions(name)?;
            let rows = match self.rows.as_slice() {
                &[encoder, decoder] => [encoder, decoder],
                _ => usual_rows(&config),
            };
            for product in of_model(name, &config, rows) {
                // The table knows a product by direction and sizes.
                let same = |known: &Named| {
                    let (one, other) = (known.shape, product.shape);
                    (one.product.is_backward(), one.rows, one.n, one.k)
                        == (other.product.is_backward(), other.rows, other.n, other.k)
                };
                if !products.iter().any(same) {
                    products.push(product);
                }
            }
        }
        match self.device.open()? {
            Opened::Cuda(cuda) => self.measure(&cuda, &products),
            Opened::Cpu(_) => {
                let advice = "products on the CPU have no tiles to choose from";
                Err(Error::setting("--device", "cuda or cuda:N", "cpu", advice))
            }
        }
    }

    fn measure(&self, cuda: &Cuda, products: &[Named]) -> Result<ExitCode> {
        if cuda.precision() != Precision::Bf16 {
            let advice = "there is one tile in f32, and nothing to choose";
            return Err(Error::setting("--precision", "bf16", "f32", advice));
        }
        let device = cuda.info();
        let times = match (device.is_virtual(), tells_model_time()) {
            (false, _) => None,
            (true, true) => Some("of the virtual GPU's model"),
            (true, false) => Some("of the host: the GPU is virtual"),
        };
        let mut search = TileSearch::new(cuda.kernels())?;
        let date = today();
        let (mut lines, mut table) = (Vec::new(), vec![TileTable::HEADER.to_owned()]);
        let shown = bar(products.len() as u64, "products");
        for product in products {
            shown.set_message(format!("{} {}", product.dims, product.name));
            let candidates = search.measure(product.shape, self.repeats)?;
            let chosen = search.choice(TileTable::built_in(), product.shape);
            let line = Line::new(product, &candidates, |candidate| Some(candidate.config) == chosen)?;
            if !self.json {
                shown.suspend(|| println!("{}", line.text()));
            }
            table.push(line.entry(&device.name, &date));
            lines.push(line.json());
            shown.inc(1);
        }
        shown.finish_and_clear();
        let report = json!({
            "schema": "promptmix bench tiles 1", "device": device.name,
            "compute_capability": format!("{}.{}", device.compute_capability.0, device.compute_capability.1),
            "multiprocessors": device.multiprocessors, "version": env!("CARGO_PKG_VERSION"), "measured": date,
            "times": times.unwrap_or("of the device"),
            "repeats": self.repeats, "products": lines,
        });
        if let Some(path) = &self.table {
            write(path, &(table.join("\n") + "\n"))?;
        }
        if let Some(path) = &self.output {
            write(path, &format!("{report}\n"))?;
        }
        if self.json {
            println!("{report}");
        } else if let Some(times) = times {
            println!("the times of {} are {times}", device.name);
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    files::replace(path, |file| std::io::Write::write_all(file, text.as_bytes()))
}

/// A product's candidates, which of them is taken today, and which was fastest.
struct Line<'a> {
    product: &'a Named,
    candidates: &'a [Candidate],
    chosen: &'a Candidate,
    fastest: &'a Candidate,
}

impl<'a> Line<'a> {
    /// # Errors
    /// A candidate whose result is another than the first one's.
    fn new(
        product: &'a Named,
        candidates: &'a [Candidate],
        is_chosen: impl Fn(&Candidate) -> bool,
    ) -> Result<Self> {
        for candidate in candidates {
            let agrees = candidate.apart <= Candidate::MAX_APART; // which NaN does not
            if !agrees {
                let action = format!("multiply in tiles of {}", candidate.config);
                let found = format!(
                    "a result {} of its largest entry away from the first tile's, in {} {}",
                    candidate.apart, product.dims, product.name
                );
                return Err(Error::device(action, found, "run promptmix verify on this device"));
            }
        }
        let fastest =
            candidates.iter().min_by(|one, other| one.microseconds().total_cmp(&other.microseconds()));
        let chosen = candidates.iter().find(|candidate| is_chosen(candidate));
        match (chosen, fastest) {
            (Some(chosen), Some(fastest)) => Ok(Self { product, candidates, chosen, fastest }),
            _ => Err(Error::device("choose a tile", "none that may be taken", "")),
        }
    }

    fn direction(&self) -> &'static str {
        if self.product.shape.product.is_backward() { "backward" } else { "forward" }
    }

    fn text(&self) -> String {
        let ProductShape { rows, n, k, .. } = self.product.shape;
        let of = |candidate: &Candidate| format!("{} {:.1} us", candidate.config, candidate.microseconds());
        let gain = if self.chosen.config == self.fastest.config {
            "the fastest".to_owned()
        } else {
            let part = self.chosen.microseconds() / self.fastest.microseconds() - 1.0;
            format!("{} is fastest, the choice takes {:.0} % more", of(self.fastest), 100.0 * part)
        };
        let Named { dims, name, .. } = self.product;
        format!("{dims} {name} {} {rows}x{n}x{k}: {}; {gain}", self.direction(), of(self.chosen))
    }

    /// A line of the table.
    fn entry(&self, device: &str, date: &str) -> String {
        let ProductShape { rows, n, k, .. } = self.product.shape;
        let (tile, split_k) = (self.fastest.config.shape.name(), self.fastest.config.split_k);
        let (direction, us) = (self.direction(), self.fastest.microseconds());
        format!("{device},{date},{direction},{rows},{n},{k},{tile},{split_k},{us:.2}")
    }

    fn json(&self) -> Value {
        let shape = self.product.shape;
        let config = |candidate: &Candidate| json!({ "tile": candidate.config.shape.name(), "split_k": candidate.config.split_k });
        let spread = |ascending: &[f64]| {
            let at = |part: f64| ascending[((ascending.len() - 1) as f64 * part).round() as usize];
            json!({ "p20": at(0.2), "p50": at(0.5), "p80": at(0.8) })
        };
        let candidates = self.candidates.iter().map(|candidate| {
            json!({
                "tile": candidate.config.shape.name(), "split_k": candidate.config.split_k,
                "us": candidate.microseconds(), "cold_us": spread(&candidate.cold_us), "warm_us": spread(&candidate.warm_us),
                "tflop_per_s": shape.operations() as f64 / candidate.microseconds() / 1e6,
                "expected_cycles": candidate.expected_cycles, "apart": candidate.apart,
            })
        });
        json!({
            "dims": self.product.dims, "product": self.product.name, "direction": self.direction(),
            "rows": shape.rows, "n": shape.n, "k": shape.k,
            "chosen": config(self.chosen), "fastest": config(self.fastest),
            "candidates": candidates.collect::<Vec<_>>(),
        })
    }
}

/// Rows of the encoder and of the decoder in a batch that is usual for a model, as a captured step rounds them up: 32 examples of
/// about 122 rows and two targets, for a width of 1,024 64 of 612, and 8 of them where the feed-forward is wide.
fn usual_rows(config: &T5Config) -> [usize; 2] {
    match (config.d_model, config.d_ff) {
        (..1_024, _) => [4_096, 64],
        (_, ..8_192) => [40_960, 128],
        _ => [5_120, 32],
    }
}

/// The products of a model's layers, forward and backward.
fn of_model(dims: &str, config: &T5Config, rows: [usize; 2]) -> Vec<Named> {
    let sizes = [config.d_model, config.num_heads * config.d_kv, config.d_ff];
    let all = bench::layer_products(sizes, config.activation.is_gated(), rows).into_iter();
    all.map(|(name, shape)| Named { dims: dims.to_owned(), name, shape }).collect()
}

/// The date of today in UTC, as 2026-11-27.
fn today() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let (mut year, mut day) = (1970, seconds / 86_400);
    let is_leap =
        |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    while day >= 365 + u64::from(is_leap(year)) {
        day -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let days = [31, 28 + u64::from(is_leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    while day >= days[month] {
        day -= days[month];
        month += 1;
    }
    format!("{year}-{:02}-{:02}", month + 1, day + 1)
}
