//! The batch descriptor: one array of integers a batch on the device, and what comes with every launch's arguments, as
//! `kernels/batch.cuh` reads them.

use super::ATTENTION_TILE;
use crate::backend::cuda::runtime::arguments::batch::{Descriptor, Header, TILE_ENTRY};
use crate::backend::{Batch, Side};

/// A batch as kernels are told of it.
pub(crate) struct Description {
    /// The array on the device.
    pub(crate) data: Vec<i32>,
    /// What all batches of the capacity have in common: the same for each of them. Its address is not known yet.
    pub(crate) common: Descriptor,
    /// The most tiles of the encoder, its prompt rows and the decoder.
    pub(crate) tiles: [usize; 3],
}

/// The most tiles that `rows` rows of `examples` examples can have.
fn most_tiles(rows: usize, examples: usize) -> usize {
    rows / ATTENTION_TILE + examples
}

/// Arrays, one behind the other, each with the room that the batch's capacity gives it, so that its place does not depend on
/// the content.
struct Arrays(Vec<i32>);

impl Arrays {
    /// Adds an array from 16 bytes on, and says where it lies. Room behind its content is filled with `rest`.
    fn add(&mut self, content: impl IntoIterator<Item = i32>, room: usize, rest: i32) -> i32 {
        let start = self.0.len().next_multiple_of(4);
        self.0.resize(start, 0);
        self.0.extend(content);
        debug_assert!(self.0.len() <= start + room, "an array within its room");
        self.0.resize(start + room, rest);
        start as i32
    }
}

/// Entries of the tiles over `lengths` rows an example, as `TileEntry` has them.
fn tiles(batch: &Batch, side: Side, lengths: impl Fn(usize) -> usize) -> Vec<i32> {
    let other = match side {
        Side::Encoder => Side::Decoder,
        Side::Decoder => Side::Encoder,
    };
    let of_example = |example: usize| {
        let (rows, others) = (batch.range(side, example), batch.range(other, example));
        (0..lengths(example)).step_by(ATTENTION_TILE).flat_map(move |first| {
            [example, first, rows.start, rows.len(), others.start, others.len(), 0, 0]
                .map(|number| number as i32)
        })
    };
    (0..batch.examples()).flat_map(of_example).collect()
}

/// Describes `batch`.
pub(crate) fn describe(batch: &Batch) -> Description {
    let (examples, prompt_length) = (batch.examples(), batch.prompt_length());
    let (encoder, decoder) = (batch.rows(Side::Encoder), batch.rows(Side::Decoder));
    let length = |side: Side| move |b: usize| batch.range(side, b).len();
    let offsets = |side: Side| {
        let starts = (0..examples).map(move |b| batch.range(side, b).start);
        starts.chain([batch.real_rows(side)]).map(|row| row as i32)
    };
    let owners = |side: Side| (0..examples).flat_map(move |b| std::iter::repeat_n(b as i32, length(side)(b)));
    let encoder_ids = (0..examples).flat_map(|b| {
        std::iter::repeat_n(-1, prompt_length).chain(batch.source(b).iter().map(|&id| id as i32))
    });
    let integers = |ids: &'_ [u32]| bytemuck::cast_slice::<u32, i32>(ids).to_vec();
    let weights = batch.row_weights().iter().map(|&weight| bytemuck::cast::<f32, i32>(weight as f32));
    let padding = |b| batch.pooled_padding(b).map_or(-1, |id| id as i32);
    let prompt_tiles = tiles(batch, Side::Encoder, |_| prompt_length);
    let most =
        [most_tiles(encoder, examples), prompt_tiles.len() / TILE_ENTRY, most_tiles(decoder, examples)];
    let mut arrays = Arrays(vec![0; Header::HeaderLength as usize]);
    arrays.0[Header::EncoderRows as usize] = batch.real_rows(Side::Encoder) as i32;
    arrays.0[Header::DecoderRows as usize] = batch.real_rows(Side::Decoder) as i32;
    let common = Descriptor {
        examples: examples as i32,
        prompt_length: prompt_length as i32,
        encoder_offsets: arrays.add(offsets(Side::Encoder), examples + 1, 0),
        decoder_offsets: arrays.add(offsets(Side::Decoder), examples + 1, 0),
        encoder_example: arrays.add(owners(Side::Encoder), encoder, 0),
        decoder_example: arrays.add(owners(Side::Decoder), decoder, 0),
        encoder_ids: arrays.add(encoder_ids, encoder, 0),
        decoder_ids: arrays.add(integers(batch.decoder_ids()), decoder, 0),
        labels: arrays.add(integers(batch.labels()), decoder, 0),
        row_weights: arrays.add(weights, decoder, 0),
        example_index: arrays.add((0..examples).map(|b| batch.example_index(b) as i32), examples, 0),
        example_run: arrays.add((0..examples).map(|b| batch.run(b) as i32), examples, 0),
        example_target: arrays.add((0..examples).map(|b| batch.target_prompt(b) as i32), examples, 0),
        pooled_padding: arrays.add((0..examples).map(padding), examples, 0),
        encoder_tiles: arrays.add(
            tiles(batch, Side::Encoder, length(Side::Encoder)),
            most[0] * TILE_ENTRY,
            -1,
        ),
        prompt_tiles: arrays.add(prompt_tiles, most[1] * TILE_ENTRY, -1),
        decoder_tiles: arrays.add(
            tiles(batch, Side::Decoder, length(Side::Decoder)),
            most[2] * TILE_ENTRY,
            -1,
        ),
        ..Descriptor::default()
    };
    Description { data: arrays.0, common, tiles: most }
}

/// Rows and tiles that a description has room for, of the encoder and of the decoder, and tiles of prompt rows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Room {
    pub(crate) rows: [usize; 2],
    pub(crate) tiles: [usize; 2],
    prompt_tiles: usize,
}

impl Room {
    /// That of a batch's capacity.
    pub(crate) fn of(batch: &Batch) -> Self {
        let rows = [Side::Encoder, Side::Decoder].map(|side| batch.rows(side));
        let prompt_tiles = batch.examples() * batch.prompt_length().div_ceil(ATTENTION_TILE);
        Self { rows, tiles: rows.map(|rows| most_tiles(rows, batch.examples())), prompt_tiles }
    }

    /// Tiles of the encoder, its prompt rows and the decoder.
    pub(crate) fn all_tiles(self) -> [usize; 3] {
        [self.tiles[0], self.prompt_tiles, self.tiles[1]]
    }
}

/// Writes other lengths into a description: those of the encoder and of the decoder, which have room in it. The kernels of
/// `kernels/sequences.cu` write the same.
pub(crate) fn write_lengths(data: &mut [i32], common: &Descriptor, room: Room, lengths: &[Vec<usize>; 2]) {
    let starts = lengths.each_ref().map(|lengths| {
        let ends = lengths.iter().scan(0, |end, length| {
            *end += length;
            Some(*end)
        });
        std::iter::once(0).chain(ends).collect::<Vec<usize>>()
    });
    let places = [
        (Header::EncoderRows, common.encoder_offsets, common.encoder_example, common.encoder_tiles),
        (Header::DecoderRows, common.decoder_offsets, common.decoder_example, common.decoder_tiles),
    ];
    for (side, (rows, offsets, examples, tiles)) in places.into_iter().enumerate() {
        let (own, others) = (&starts[side], &starts[1 - side]);
        let (offsets, examples, tiles) = (offsets as usize, examples as usize, tiles as usize);
        data[rows as usize] = own[lengths[side].len()] as i32;
        for (to, start) in data[offsets..].iter_mut().zip(own) {
            *to = *start as i32;
        }
        data[examples..examples + room.rows[side]].fill(0);
        data[tiles..tiles + room.tiles[side] * TILE_ENTRY].fill(-1);
        let mut entries = tiles;
        for (example, &length) in lengths[side].iter().enumerate() {
            data[examples + own[example]..examples + own[example + 1]].fill(example as i32);
            for first in (0..length).step_by(ATTENTION_TILE) {
                let other = [others[example], others[example + 1] - others[example]];
                let entry = [example, first, own[example], length, other[0], other[1], 0, 0];
                data[entries..entries + TILE_ENTRY].copy_from_slice(&entry.map(|number| number as i32));
                entries += TILE_ENTRY;
            }
        }
    }
}
