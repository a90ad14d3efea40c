//! Tiles of products by name, and the table of those that were measured to be fastest: `tiles.csv`.

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::sync::OnceLock;

use crate::backend::cuda::runtime::devices::DeviceInfo;
use crate::error::{Error, Result};

/// Rows and columns of the result that a thread block computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TileShape {
    /// 128 rows, 128 columns.
    Large,
    /// 80 rows, 128 columns.
    Medium,
    /// 64 rows, 64 columns; two groups of warps take turns at k.
    Small,
    /// 128 rows, 192 columns by a block that stays for several tiles: compute capability 9.0 alone, and without split-K.
    Hopper,
    /// As [`TileShape::Hopper`], 128 rows and 128 columns, where wider tiles would leave multiprocessors without one.
    HopperNarrow,
    /// 64 rows, 64 columns by a cluster, whose blocks sum their parts of k: compute capability 9.0 alone, and split-K 4 or 8.
    ThinHopper,
}

impl TileShape {
    /// All of them; those of every device first, the largest first.
    pub const ALL: [Self; 6] =
        [Self::Large, Self::Medium, Self::Small, Self::Hopper, Self::HopperNarrow, Self::ThinHopper];

    /// Rows by columns, as tables have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Large => "128x128",
            Self::Medium => "80x128",
            Self::Small => "64x64",
            Self::Hopper => "128x192",
            Self::HopperNarrow => "128x128 cluster",
            Self::ThinHopper => "64x64 cluster",
        }
    }
}

/// How a product is divided among thread blocks.
///
/// ```
/// use promptmix::cuda::linear::{TileConfig, TileShape};
///
/// let config = TileConfig { shape: TileShape::Small, split_k: 4 };
/// assert_eq!(config.to_string(), "64x64, split-K 4");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TileConfig {
    /// A block's part of the result.
    pub shape: TileShape,
    /// Parts of k (split-K), each a block of its own; 1 for the whole.
    pub split_k: usize,
}

impl fmt::Display for TileConfig {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}, split-K {}", self.shape.name(), self.split_k)
    }
}

/// One line of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    device: String,
    backward: bool,
    /// Rows, columns of the result, and depth.
    sizes: [usize; 3],
    config: TileConfig,
}

/// The tiles that were measured to be fastest, by device and shape.
///
/// As a file it is CSV: lines that begin with `#`, then this header, then a line a shape. `direction` is forward (a W^T) or backward
/// (a W), n the columns of the result, k the depth, `us` the time that was measured, which nothing reads.
///
/// ```text
/// device,measured,direction,rows,n,k,tile,split_k,us
/// NVIDIA H200,2026-11-27,forward,4096,2304,768,128x128,1,52.8
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TileTable {
    entries: Vec<Entry>,
}

impl TileTable {
    /// The first line of a table after its comments.
    pub const HEADER: &'static str = "device,measured,direction,rows,n,k,tile,split_k,us";

    /// The table of this build, which every product looks into.
    pub fn built_in() -> &'static Self {
        static TABLE: OnceLock<TileTable> = OnceLock::new();
        // A test reads it; a product of a build whose table cannot be read takes the tile that is expected to be fastest.
        TABLE.get_or_init(|| {
            Self::parse(Path::new("tiles.csv"), include_str!("tiles.csv")).unwrap_or_default()
        })
    }

    /// Reads the table at `path`.
    ///
    /// # Errors
    /// [`Error::File`] if it cannot be read, [`Error::Format`] with the line if it is no such table.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|source| Error::file("read", path, source))?;
        Self::parse(path, &text)
    }

    /// Reads a table's `text`; errors name `path`.
    ///
    /// # Errors
    /// [`Error::Format`] with the line that is no line of a table, or is the second of its shape.
    pub fn parse(path: &Path, text: &str) -> Result<Self> {
        let lines =
            (1..).zip(text.lines()).filter(|(_, line)| !line.starts_with('#') && !line.trim().is_empty());
        let mut lines = lines.map(|(number, line)| (number, line.trim_end()));
        let wrong = |number: u64, expected: &str, found: &str| {
            let advice = "promptmix bench tiles --table FILE writes one";
            Error::format(path, Some(number), expected, format!("{found:?}"), advice)
        };
        match lines.next() {
            Some((_, line)) if line == Self::HEADER => {}
            Some((number, line)) => return Err(wrong(number, &format!("{:?}", Self::HEADER), line)),
            None => return Err(wrong(1, &format!("{:?}", Self::HEADER), "")),
        }
        let mut entries: Vec<Entry> = Vec::new();
        for (number, line) in lines {
            let entry = Entry::parse(line).map_err(|(expected, found)| wrong(number, expected, found))?;
            if entries.iter().any(|known| known.is_of_shape(&entry.device, entry.backward, entry.sizes)) {
                return Err(wrong(number, "each shape of a device once", line));
            }
            entries.push(entry);
        }
        Ok(Self { entries })
    }

    /// Shapes in it.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// What was fastest on such a device for that direction, n and k, with the number of rows that is nearest to `rows` and
    /// less than a quarter off; `None` if nothing near was measured.
    pub fn choice(
        &self,
        device: &DeviceInfo,
        backward: bool,
        rows: usize,
        n: usize,
        k: usize,
    ) -> Option<TileConfig> {
        let near = self
            .entries
            .iter()
            .filter(|entry| entry.is_of_shape(&device.name, backward, [entry.sizes[0], n, k]));
        let apart = |entry: &Entry| {
            let (less, more) = (rows.min(entry.sizes[0]) as f64, rows.max(entry.sizes[0]) as f64);
            more / less.max(1.0)
        };
        let nearest = near.min_by(|one, other| apart(one).total_cmp(&apart(other)))?;
        (apart(nearest) < 1.25).then_some(nearest.config)
    }
}

impl Entry {
    fn is_of_shape(&self, device: &str, backward: bool, sizes: [usize; 3]) -> bool {
        self.device == device && self.backward == backward && self.sizes == sizes
    }

    /// What is expected and what is there instead, if it is no line of a table.
    fn parse(line: &str) -> std::result::Result<Self, (&'static str, &str)> {
        // From the right: the name of a device may have commas.
        let mut fields: Vec<&str> = line.rsplitn(9, ',').collect();
        fields.reverse();
        let &[device, _, direction, rows, n, k, tile, split_k, us] = fields.as_slice() else {
            return Err(("nine fields", line));
        };
        let count = |field| match usize::from_str(field) {
            Ok(count) if count > 0 => Ok(count),
            _ => Err(("a number of at least 1", field)),
        };
        let backward = match direction {
            "forward" => false,
            "backward" => true,
            _ => return Err(("forward or backward", direction)),
        };
        let shape = TileShape::ALL.into_iter().find(|shape| shape.name() == tile);
        let shape =
            shape.ok_or(("128x128, 80x128, 64x64, 128x192, 128x128 cluster or 64x64 cluster", tile))?;
        if !us.parse::<f64>().is_ok_and(|us| us > 0.0 && us.is_finite()) {
            return Err(("microseconds", us));
        }
        Ok(Self {
            device: device.to_owned(),
            backward,
            sizes: [count(rows)?, count(n)?, count(k)?],
            config: TileConfig { shape, split_k: count(split_k)? },
        })
    }
}
