//! The batch descriptor on the device: one array of integers a batch, as `kernels/batch.cuh` reads it.

use std::rc::Rc;

use super::Cuda;
use super::arguments::batch::{self as layout, Header};
use super::input::Numbers;
use crate::backend::{Batch, Scope, Side};
use crate::error::Result;

/// Rows of an attention tile.
pub const ATTENTION_TILE: usize = layout::ATTENTION_TILE;

/// A batch's descriptor on the device.
#[derive(Debug)]
pub struct DeviceBatch {
    /// The descriptor, from the first on; maybe more behind it.
    numbers: Rc<Numbers>,
    id: u64,
    encoder_tiles: usize,
    prompt_tiles: usize,
    decoder_tiles: usize,
}

impl DeviceBatch {
    /// Attention tiles of `side`, or of the prompt rows alone: what a grid must have at least.
    pub fn tiles(&self, side: Side, scope: Scope) -> usize {
        match (side, scope) {
            (Side::Decoder, _) => self.decoder_tiles,
            (Side::Encoder, Scope::All) => self.encoder_tiles,
            (Side::Encoder, Scope::Prompt) => self.prompt_tiles,
        }
    }

    /// The descriptor's address, for a kernel's argument.
    ///
    /// # Errors
    /// If its allocation failed.
    pub fn address(&self, cuda: &Cuda) -> Result<u64> {
        self.numbers.address(cuda, 0)
    }

    /// The descriptor of `batch`, which begins `numbers`; `tiles` are the most of the encoder, its prompt rows and the
    /// decoder.
    pub(super) fn new(batch: &Batch, numbers: Rc<Numbers>, tiles: [usize; 3]) -> Rc<Self> {
        let [encoder_tiles, prompt_tiles, decoder_tiles] = tiles;
        Rc::new(Self { numbers, id: batch.id(), encoder_tiles, prompt_tiles, decoder_tiles })
    }
}

/// Pairs (example, first row within it) of the tiles over `lengths` rows an example.
fn tile_map(lengths: impl Iterator<Item = usize>) -> Vec<i32> {
    let tiles = lengths.enumerate().flat_map(|(example, length)| {
        (0..length).step_by(ATTENTION_TILE).flat_map(move |first| [example as i32, first as i32])
    });
    tiles.collect()
}

/// The most tiles that `rows` rows of `examples` examples can have.
fn most_tiles(rows: usize, examples: usize) -> usize {
    rows / ATTENTION_TILE + examples
}

/// The descriptor's integers, and the most tiles of the encoder, its prompt rows and the decoder.
pub(super) fn describe(batch: &Batch) -> (Vec<i32>, [usize; 3]) {
    let examples = batch.examples();
    let lengths = |side: Side| (0..examples).map(move |b| batch.range(side, b).len());
    let offsets = |side: Side| {
        let mut offsets: Vec<i32> = (0..examples).map(|b| batch.range(side, b).start as i32).collect();
        offsets.push(batch.real_rows(side) as i32);
        offsets
    };
    let owners = |side: Side| -> Vec<i32> {
        lengths(side).enumerate().flat_map(|(b, length)| std::iter::repeat_n(b as i32, length)).collect()
    };
    let prompt = batch.prompt_length();
    let encoder_ids = || {
        (0..examples)
            .flat_map(|b| std::iter::repeat_n(-1, prompt).chain(batch.source(b).iter().map(|&id| id as i32)))
    };
    let integers = |ids: &[u32]| bytemuck::cast_slice::<u32, i32>(ids).to_vec();
    let per_example = |field: &dyn Fn(usize) -> i32| (0..examples).map(field).collect::<Vec<i32>>();
    let maps = [
        tile_map(lengths(Side::Encoder)),
        tile_map(std::iter::repeat_n(prompt, examples)),
        tile_map(lengths(Side::Decoder)),
    ];
    let (encoder, decoder) = (batch.rows(Side::Encoder), batch.rows(Side::Decoder));
    let most = [most_tiles(encoder, examples), maps[1].len() / 2, most_tiles(decoder, examples)];
    let weights = || batch.row_weights().iter().map(|&weight| bytemuck::cast(weight as f32)).collect();
    let entry = |field: Header| match field {
        Header::Examples => Entry::Count(examples),
        Header::PromptLength => Entry::Count(prompt),
        Header::EncoderRows => Entry::Count(batch.real_rows(Side::Encoder)),
        Header::DecoderRows => Entry::Count(batch.real_rows(Side::Decoder)),
        Header::EncoderTiles => Entry::Count(maps[0].len() / 2),
        Header::PromptTiles => Entry::Count(maps[1].len() / 2),
        Header::DecoderTiles => Entry::Count(maps[2].len() / 2),
        Header::EncoderOffsets => Entry::Array(offsets(Side::Encoder), examples + 1),
        Header::DecoderOffsets => Entry::Array(offsets(Side::Decoder), examples + 1),
        Header::EncoderExample => Entry::Array(owners(Side::Encoder), encoder),
        Header::DecoderExample => Entry::Array(owners(Side::Decoder), decoder),
        Header::EncoderIds => Entry::Array(encoder_ids().collect(), encoder),
        Header::DecoderIds => Entry::Array(integers(batch.decoder_ids()), decoder),
        Header::Labels => Entry::Array(integers(batch.labels()), decoder),
        Header::RowWeights => Entry::Array(weights(), decoder),
        Header::ExampleIndex => Entry::Array(per_example(&|b| batch.example_index(b) as i32), examples),
        Header::ExampleRun => Entry::Array(per_example(&|b| batch.run(b) as i32), examples),
        Header::ExampleTarget => Entry::Array(per_example(&|b| batch.target_prompt(b) as i32), examples),
        Header::PooledPadding => {
            let padding = |b| batch.pooled_padding(b).map_or(-1, |id| id as i32);
            Entry::Array(per_example(&padding), examples)
        }
        Header::EncoderTileMap => Entry::Array(maps[0].clone(), 2 * most[0]),
        Header::PromptTileMap => Entry::Array(maps[1].clone(), 2 * most[1]),
        Header::DecoderTileMap => Entry::Array(maps[2].clone(), 2 * most[2]),
        Header::HeaderLength => Entry::End,
    };
    let mut data = vec![0; Header::HeaderLength as usize];
    for field in Header::ALL {
        match entry(field) {
            Entry::Count(count) => data[field as usize] = count as i32,
            Entry::Array(mut array, room) => {
                debug_assert!(array.len() <= room, "an array within its room");
                array.resize(room, 0);
                data[field as usize] = data.len() as i32;
                data.append(&mut array);
            }
            Entry::End => {}
        }
    }
    (data, most)
}

/// What the descriptor's header says.
enum Entry {
    /// A number.
    Count(usize),
    /// Where an array lies; with the room that the batch's capacity gives it, so that its place does not depend on the content.
    Array(Vec<i32>, usize),
    /// Nothing: the header ends here.
    End,
}

impl Cuda {
    /// The descriptor of `batch`, uploaded unless the device has it.
    pub(super) fn describe(&self, batch: &Batch) -> Result<Rc<DeviceBatch>> {
        if let Some(known) = self.batches.borrow().iter().find(|known| known.id == batch.id()) {
            return Ok(known.clone());
        }
        self.expect_told("a batch")?;
        let (data, tiles) = describe(batch);
        let described = DeviceBatch::new(batch, Numbers::of(self, &data)?, tiles);
        self.keep(&described);
        Ok(described)
    }

    /// Keeps a descriptor, in the place of the oldest, unless it is there.
    pub(super) fn keep(&self, described: &Rc<DeviceBatch>) {
        let mut batches = self.batches.borrow_mut();
        batches.retain(|known| known.id != described.id);
        if batches.len() == KEPT_BATCHES {
            batches.pop_front();
        }
        batches.push_back(described.clone());
    }

    /// Forgets a descriptor.
    pub(super) fn forget(&self, described: &DeviceBatch) {
        self.batches.borrow_mut().retain(|known| known.id != described.id);
    }
}

/// Descriptors that stay on the device: the batch at hand, and those that share its encoder rows.
const KEPT_BATCHES: usize = 4;
