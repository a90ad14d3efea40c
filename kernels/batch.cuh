// The batch descriptor: what every kernel must know about a ragged batch.
//
// One int32 array in device memory, written by the host once a batch: how many rows there really are, then arrays. Grids are
// sized for the largest batch of a shape bucket, so a kernel reads the true counts from there and surplus blocks exit; that is
// what lets one captured graph serve every batch of its bucket. What the batches of a bucket have in common, how many examples
// there are and where each array lies, comes with the arguments: a block need not wait for one load to begin the next.
// backend/cuda/ops/descriptor.rs writes both.
#pragma once
#include <cstdint>
#include "dependent.cuh"

namespace promptmix {

// Tile of rows that attention works on at a time; the tile maps below are cut by it.
constexpr int ATTENTION_TILE = 64;

enum Side : int { ENCODER = 0, DECODER = 1 };

// Which encoder rows an op works on: every row, or the M prompt rows of each example (B·M in all, packed without gaps).
enum Scope : int { ALL = 0, PROMPT = 1 };

// What the array begins with.
enum Header : int { ENCODER_ROWS, DECODER_ROWS, HEADER_LENGTH };

// The descriptor and what all batches of its bucket have in common; offsets count ints from the array's start.
struct Descriptor {
    const int* data;
    int examples;            // B
    int prompt_length;       // M
    int encoder_offsets;     // [B + 1] first encoder row of an example
    int decoder_offsets;     // [B + 1] first decoder row of an example
    int encoder_example;     // [R] the example of an encoder row
    int decoder_example;     // [T] the example of a decoder row
    int encoder_ids;         // [R] token id of an encoder row; -1 on prompt rows
    int decoder_ids;         // [T] token id that a decoder row reads
    int labels;              // [T] token id that a decoder row should say
    int row_weights;         // [T] as float bits: weight of a decoder row's loss
    int example_index;       // [B] the example's index within its run's step: a dropout counter
    int example_run;         // [B] the example's run
    int example_target;      // [B] the target prompt of its run that the example uses
    int pooled_padding;      // [B] token whose embedding joins the pool, or -1
    int encoder_tiles;       // [tiles] a `TileEntry` each, from 16 bytes on
    int prompt_tiles;        // the same over each example's prompt rows alone
    int decoder_tiles;
    int padding;
};

// A tile of rows of one example, with all that a block asks of the descriptor: its loads do not wait for each other. Entries
// after the last have no example.
struct TileEntry {
    int example;             // or -1
    int first;               // its first row within the example
    int row, rows;           // of the example on the tile's side: its first packed row, and how many
    int other_row, other_rows;  // the same on the other side
};
constexpr int TILE_ENTRY = 8;  // ints from one to the next

// A view of the descriptor; cheap to make.
struct Batch {
    Descriptor of;

    __device__ int examples() const { return of.examples; }
    __device__ int prompt_length() const { return of.prompt_length; }
    __device__ int at(int array, int index) const { return read_frozen(of.data + array + index); }
    // Rows of `side`, or of its `scope`: R, T or B·M.
    __device__ int rows(int side, int scope = ALL) const {
        if (scope == PROMPT) return of.examples * of.prompt_length;
        return read_frozen(of.data + (side == ENCODER ? ENCODER_ROWS : DECODER_ROWS));
    }
    __device__ int offset(int side, int example) const {
        return at(side == ENCODER ? of.encoder_offsets : of.decoder_offsets, example);
    }
    __device__ int example_of_row(int side, int row) const {
        return at(side == ENCODER ? of.encoder_example : of.decoder_example, row);
    }
    __device__ int id(int side, int row) const { return at(side == ENCODER ? of.encoder_ids : of.decoder_ids, row); }
    __device__ int label(int row) const { return at(of.labels, row); }
    __device__ float row_weight(int row) const { return __int_as_float(at(of.row_weights, row)); }
    __device__ int index(int example) const { return at(of.example_index, example); }
    __device__ int run(int example) const { return at(of.example_run, example); }
    __device__ int target(int example) const { return at(of.example_target, example); }
    // Tile `tile` of `side`, or of its `scope`.
    __device__ TileEntry tile(int side, int scope, int tile) const {
        const int array = side == DECODER ? of.decoder_tiles : scope == PROMPT ? of.prompt_tiles : of.encoder_tiles;
        const int* const from = of.data + array + tile * TILE_ENTRY;
        const int4 entry = read_frozen(reinterpret_cast<const int4*>(from));
        const int2 other = read_frozen(reinterpret_cast<const int2*>(from + 4));
        return {entry.x, entry.y, entry.z, entry.w, other.x, other.y};
    }
    // The packed row, among all rows, of row `row` of the prompt rows packed without gaps.
    __device__ int row_of_prompt_row(int row) const {
        const int example = row / of.prompt_length;
        return offset(ENCODER, example) + row - example * of.prompt_length;
    }
};

}  // namespace promptmix
