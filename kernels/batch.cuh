// The batch descriptor: what every kernel must know about a ragged batch, in device memory.
//
// One int32 array, written by the host once a batch: a header, then the arrays that the header points into. Grids are
// sized for the largest batch of a shape bucket, so a kernel reads the true counts from here and surplus blocks exit;
// that is what lets one captured graph serve every batch of its bucket. backend/cuda/ops/descriptor.rs writes it.
#pragma once
#include <cstdint>

namespace promptmix {

// Tile of rows that attention works on at a time; the tile maps below are cut by it.
constexpr int ATTENTION_TILE = 64;

enum Side : int { ENCODER = 0, DECODER = 1 };

// Which encoder rows an op works on: every row, or the M prompt rows of each example (B·M in all, packed without gaps).
enum Scope : int { ALL = 0, PROMPT = 1 };

enum Header : int {
    EXAMPLES,                // B
    PROMPT_LENGTH,           // M
    ENCODER_ROWS,            // R
    DECODER_ROWS,            // T
    ENCODER_TILES,           // entries of the tile maps
    PROMPT_TILES,
    DECODER_TILES,
    // From here on: where in the array, in ints from its start, each of these lies.
    ENCODER_OFFSETS,         // [B + 1] first encoder row of an example
    DECODER_OFFSETS,         // [B + 1] first decoder row of an example
    ENCODER_EXAMPLE,         // [R] the example of an encoder row
    DECODER_EXAMPLE,         // [T] the example of a decoder row
    ENCODER_IDS,             // [R] token id of an encoder row; -1 on prompt rows
    DECODER_IDS,             // [T] token id that a decoder row reads
    LABELS,                  // [T] token id that a decoder row should say
    ROW_WEIGHTS,             // [T] as float bits: weight of a decoder row's loss
    EXAMPLE_INDEX,           // [B] the example's index within its run's step: a dropout counter
    EXAMPLE_RUN,             // [B] the example's run
    EXAMPLE_TARGET,          // [B] the target prompt of its run that the example uses
    POOLED_PADDING,          // [B] token whose embedding joins the pool, or -1
    ENCODER_TILE_MAP,        // [ENCODER_TILES] pairs (example, first row within the example)
    PROMPT_TILE_MAP,         // [PROMPT_TILES] the same over each example's prompt rows alone
    DECODER_TILE_MAP,        // [DECODER_TILES]
    HEADER_LENGTH
};

// A view of the descriptor; cheap to make, all reads go through the read-only cache.
struct Batch {
    const int* __restrict__ data;

    __device__ int header(Header field) const { return __ldg(data + field); }
    __device__ const int* array(Header field) const { return data + __ldg(data + field); }
    __device__ int examples() const { return header(EXAMPLES); }
    __device__ int prompt_length() const { return header(PROMPT_LENGTH); }
    // Rows of `side`, or of its `scope`: R, T or B·M.
    __device__ int rows(int side, int scope = ALL) const {
        if (scope == PROMPT) return examples() * prompt_length();
        return header(side == ENCODER ? ENCODER_ROWS : DECODER_ROWS);
    }
    __device__ int offset(int side, int example) const {
        return __ldg(array(side == ENCODER ? ENCODER_OFFSETS : DECODER_OFFSETS) + example);
    }
    __device__ int example_of_row(int side, int row) const {
        return __ldg(array(side == ENCODER ? ENCODER_EXAMPLE : DECODER_EXAMPLE) + row);
    }
    __device__ int example_field(Header field, int example) const { return __ldg(array(field) + example); }
    // The packed row, among all rows, of row `row` of the prompt rows packed without gaps.
    __device__ int row_of_prompt_row(int row) const {
        const int length = prompt_length();
        const int example = row / length;
        return offset(ENCODER, example) + row - example * length;
    }
};

}  // namespace promptmix
