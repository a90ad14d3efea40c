//! Which elements dropout keeps: a pure function of run, site, step, example, row and column, the same on every
//! device, for any packing, thread count or rank.
//!
//! Philox4x32-10 (Salmon et al., SC 2011). Key = (run seed, site); counter = (step, example's index in its run, row
//! within the example, column / 8). A block's 128 bits are 8 words of 16 bits, lowest first; an element is kept iff its
//! word is at least round(p·65536), and then scaled by 1 / (1 - p).

/// Elements that one Philox block decides.
pub const ELEMENTS_PER_BLOCK: usize = 8;

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: usize = 10;

/// Where in the model a mask applies: one number a mask, so that no two masks share draws.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Site(pub u32);

/// The kinds of dropout site that Hugging Face's T5 has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SiteKind {
    /// After the embedding, prompt rows included.
    Embedding = 0,
    /// On self attention's probabilities; one site a head.
    SelfAttention = 1,
    /// On the output of the self attention sublayer.
    SelfAttentionOutput = 2,
    /// On cross attention's probabilities; one site a head.
    CrossAttention = 3,
    /// On the output of the cross attention sublayer.
    CrossAttentionOutput = 4,
    /// Inside the feed-forward, after the activation.
    FeedForward = 5,
    /// On the output of the feed-forward sublayer.
    FeedForwardOutput = 6,
    /// After the stack's final norm.
    FinalNorm = 7,
}

impl Site {
    /// The site of `kind` in `layer` of the encoder or decoder; heads are added by [`Site::head`].
    ///
    /// Bits: 31 decoder, 30..28 kind, 27..16 layer, 15..0 head.
    pub fn new(side: super::Side, kind: SiteKind, layer: usize) -> Self {
        let side = u32::from(side == super::Side::Decoder);
        Self(side << 31 | (kind as u32) << 28 | (layer as u32 & 0xfff) << 16)
    }

    /// The site of one attention head.
    #[must_use]
    pub fn head(self, head: usize) -> Self {
        Self(self.0 | (head as u32 & 0xffff))
    }
}

/// The dropout of one training step, for all sites.
#[derive(Clone, Debug, PartialEq)]
pub struct DropoutStep {
    threshold: u32,
    scale: f64,
    step: u32,
    seeds: Vec<u32>,
}

impl DropoutStep {
    /// Dropout of probability `probability` at optimizer step `step`, with one seed a run; `None` when it is 0.
    pub fn new(probability: f64, step: u64, seeds: &[u64]) -> Option<Self> {
        let threshold = (probability * 65_536.0).round() as u32;
        (threshold > 0).then(|| Self {
            threshold,
            scale: 1.0 / (1.0 - probability),
            step: step as u32,
            seeds: seeds.iter().map(|&seed| (seed >> 32) as u32 ^ seed as u32).collect(),
        })
    }

    /// An element is kept iff its 16-bit word is at least this.
    pub fn threshold(&self) -> u32 {
        self.threshold
    }

    /// What kept elements are multiplied by: 1 / (1 - p).
    pub fn scale(&self) -> f64 {
        self.scale
    }

    /// The optimizer step's number.
    pub fn step(&self) -> u32 {
        self.step
    }

    /// Each run's seed.
    pub fn seeds(&self) -> &[u32] {
        &self.seeds
    }

    /// The mask row of `row` within example `index` of `run` at `site`.
    pub fn row(&self, site: Site, run: usize, index: u32, row: usize) -> MaskRow {
        MaskRow {
            key: [self.seeds[run], site.0],
            counter: [self.step, index, row as u32],
            threshold: self.threshold,
        }
    }
}

/// One row of one mask.
#[derive(Clone, Copy, Debug)]
pub struct MaskRow {
    key: [u32; 2],
    counter: [u32; 3],
    threshold: u32,
}

impl MaskRow {
    /// Writes `kept` or zero for each element of the row, from column 0 on.
    ///
    /// Eight blocks are drawn side by side so that the compiler can keep them in vector registers.
    #[inline(always)]
    pub fn fill<E: Copy>(&self, kept: E, zero: E, row: &mut [E]) {
        for (chunk_index, chunk) in row.chunks_mut(ELEMENTS_PER_BLOCK * LANES).enumerate() {
            let words = philox_lanes(self.key, self.counter, (chunk_index * LANES) as u32);
            for (lane, elements) in chunk.chunks_mut(ELEMENTS_PER_BLOCK).enumerate() {
                for (element, value) in elements.iter_mut().enumerate() {
                    let word = words[element / 2][lane] >> (16 * (element % 2)) & 0xffff;
                    *value = if word >= self.threshold { kept } else { zero };
                }
            }
        }
    }
}

const LANES: usize = 8;

/// Philox4x32-10 of `LANES` consecutive last counter words, as `[word][lane]`.
#[inline(always)]
fn philox_lanes(key: [u32; 2], counter: [u32; 3], first: u32) -> [[u32; LANES]; 4] {
    let mut c = [[counter[0]; LANES], [counter[1]; LANES], [counter[2]; LANES], [0; LANES]];
    for (lane, word) in c[3].iter_mut().enumerate() {
        *word = first.wrapping_add(lane as u32);
    }
    let mut key = key;
    for _ in 0..ROUNDS {
        let mut next = [[0; LANES]; 4];
        for lane in 0..LANES {
            let low = u64::from(c[0][lane]) * u64::from(MULTIPLIERS[0]);
            let high = u64::from(c[2][lane]) * u64::from(MULTIPLIERS[1]);
            next[0][lane] = (high >> 32) as u32 ^ c[1][lane] ^ key[0];
            next[1][lane] = high as u32;
            next[2][lane] = (low >> 32) as u32 ^ c[3][lane] ^ key[1];
            next[3][lane] = low as u32;
        }
        c = next;
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    c
}

/// One block of Philox4x32-10.
pub fn philox(key: [u32; 2], counter: [u32; 4]) -> [u32; 4] {
    let lanes = philox_lanes(key, [counter[0], counter[1], counter[2]], counter[3]);
    lanes.map(|word| word[0])
}
