//! The batch descriptor on the device: one array of integers a batch, as `kernels/batch.cuh` reads it.

use super::ATTENTION_TILE;
use crate::backend::cuda::runtime::arguments::batch::Header;
use crate::backend::{Batch, Side};

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
pub(crate) fn describe(batch: &Batch) -> (Vec<i32>, [usize; 3]) {
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
