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

/// Arrays, one after the other, each with the room that the batch's capacity gives it, so that its place does not depend on
/// the content.
struct Arrays(Vec<i32>);

impl Arrays {
    /// Adds an array from 16 bytes on, and says where it lies. Room after its content is filled with `rest`.
    fn add(&mut self, content: impl IntoIterator<Item = i32>, room: usize, rest: i32) -> i32 {
        let start = self.0.len().next_multiple_of(4);
        self.0.resize(start, 0);
        self.0.extend(content);
        debug_assert!(self.0.len() <= start + room, "an array within its room");
        self.0.resize(start + room, rest);
        start as i32
    }
}

/// Entries of tiles over `tiled` rows of each example, as `TileEntry` has them. `own` and `others` are where the examples' rows begin on
/// the tiles' side and on the other, and the end.
fn tiles(own: &[usize], others: &[usize], tiled: impl Fn(usize) -> usize) -> impl Iterator<Item = i32> {
    (0..own.len() - 1).flat_map(move |b| {
        let (length, other) = (own[b + 1] - own[b], [others[b], others[b + 1] - others[b]]);
        let entry = move |first| [b, first, own[b], length, other[0], other[1], 0, 0];
        let firsts = (0..tiled(b)).step_by(ATTENTION_TILE);
        firsts.flat_map(move |first| entry(first).map(|number| number as i32))
    })
}

/// Describes `batch`.
pub(crate) fn describe(batch: &Batch) -> Description {
    let (examples, prompt_length, room) = (batch.examples(), batch.prompt_length(), Room::of(batch));
    let [encoder, decoder] = room.rows;
    let lengths = [Side::Encoder, Side::Decoder]
        .map(|side| (0..examples).map(|b| batch.range(side, b).len()).collect::<Vec<usize>>());
    let [own, others] = lengths.each_ref().map(|lengths| starts(lengths));
    let encoder_ids = (0..examples).flat_map(|b| {
        std::iter::repeat_n(-1, prompt_length).chain(batch.source(b).iter().map(|&id| id as i32))
    });
    let integers = |ids: &'_ [u32]| bytemuck::cast_slice::<u32, i32>(ids).to_vec();
    let weights = batch.row_weights().iter().map(|&weight| bytemuck::cast::<f32, i32>(weight as f32));
    let padding = |b| batch.pooled_padding(b).map_or(-1, |id| id as i32);
    let mut arrays = Arrays(vec![0; Header::HeaderLength as usize]);
    // What lengths decide is written after.
    let common = Descriptor {
        examples: examples as i32,
        prompt_length: prompt_length as i32,
        encoder_offsets: arrays.add([], examples + 1, 0),
        decoder_offsets: arrays.add([], examples + 1, 0),
        encoder_example: arrays.add([], encoder, 0),
        decoder_example: arrays.add([], decoder, 0),
        encoder_ids: arrays.add(encoder_ids, encoder, 0),
        decoder_ids: arrays.add(integers(batch.decoder_ids()), decoder, 0),
        labels: arrays.add(integers(batch.labels()), decoder, 0),
        row_weights: arrays.add(weights, decoder, 0),
        example_index: arrays.add((0..examples).map(|b| batch.example_index(b) as i32), examples, 0),
        example_run: arrays.add((0..examples).map(|b| batch.run(b) as i32), examples, 0),
        example_target: arrays.add((0..examples).map(|b| batch.target_prompt(b) as i32), examples, 0),
        pooled_padding: arrays.add((0..examples).map(padding), examples, 0),
        encoder_tiles: arrays.add([], room.tiles[0] * TILE_ENTRY, -1),
        prompt_tiles: arrays.add(tiles(&own, &others, |_| prompt_length), room.prompt_tiles * TILE_ENTRY, -1),
        decoder_tiles: arrays.add([], room.tiles[1] * TILE_ENTRY, -1),
        ..Descriptor::default()
    };
    write_lengths(&mut arrays.0, &common, room, &lengths);
    Description { data: arrays.0, common, tiles: room.all_tiles() }
}

/// Where rows of examples so long begin, and their end.
fn starts(lengths: &[usize]) -> Vec<usize> {
    let ends = lengths.iter().scan(0, |end, length| {
        *end += length;
        Some(*end)
    });
    std::iter::once(0).chain(ends).collect()
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
    let starts = lengths.each_ref().map(|lengths| starts(lengths));
    let places = [
        (Header::EncoderRows, common.encoder_offsets, common.encoder_example, common.encoder_tiles),
        (Header::DecoderRows, common.decoder_offsets, common.decoder_example, common.decoder_tiles),
    ];
    for (side, (rows, offsets, examples, entries)) in places.into_iter().enumerate() {
        let (own, others, lengths) = (&starts[side], &starts[1 - side], &lengths[side]);
        let (offsets, examples, entries) = (offsets as usize, examples as usize, entries as usize);
        data[rows as usize] = own[lengths.len()] as i32;
        for (to, start) in data[offsets..].iter_mut().zip(own) {
            *to = *start as i32;
        }
        data[examples..examples + room.rows[side]].fill(0);
        for b in 0..lengths.len() {
            data[examples + own[b]..examples + own[b + 1]].fill(b as i32);
        }
        let entries = &mut data[entries..entries + room.tiles[side] * TILE_ENTRY];
        entries.fill(-1);
        for (to, number) in entries.iter_mut().zip(tiles(own, others, |b| lengths[b])) {
            *to = number;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::describe;
    use crate::backend::{Batch, Example};

    /// The example by hand, which the header for C is held to as well.
    #[test]
    fn a_small_batch_is_described_as_by_hand() {
        let example = |source: &[u32], target: &[u32], index| Example {
            source: source.to_vec(),
            target: target.to_vec(),
            index,
            ..Example::default()
        };
        let examples = [example(&[7, 8], &[3], 0), example(&[9], &[4, 5], 1)];
        let batch = Batch::pack(&examples, 1, 0, 10).expect("a batch");
        let batch = batch.weighted(vec![0.5, 1.0, 2.0]).expect("a weight a row");
        let by_hand: Vec<i32> = include_str!("descriptor_by_hand.txt")
            .lines()
            .filter_map(|line| line.split_once(':'))
            .flat_map(|(_, numbers)| numbers.split_whitespace().map(|number| number.parse().expect("i32")))
            .collect();
        let found = describe(&batch);
        let of = found.common;
        let places = [
            of.encoder_offsets,
            of.decoder_offsets,
            of.encoder_example,
            of.decoder_example,
            of.encoder_ids,
            of.decoder_ids,
            of.labels,
            of.row_weights,
            of.example_index,
            of.example_run,
            of.example_target,
            of.pooled_padding,
            of.encoder_tiles,
            of.prompt_tiles,
            of.decoder_tiles,
        ];
        let (expected_places, expected) = by_hand.split_at(places.len());
        assert_eq!(places, expected_places);
        assert_eq!(found.data, expected);
    }
}
