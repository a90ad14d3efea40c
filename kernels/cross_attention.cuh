// What absorbed cross attention's kernels share: their argument, where an example's pairs lie, and what becomes of a tile of scores.
// Loops over rows are not unrolled: a decoder's kernels run each piece of their code once, straight from memory.
#pragma once
#include "attention.cuh"
#include "rows.cuh"

namespace promptmix {

struct CrossArguments {
    Descriptor batch;
    const void* from;        // what widen and narrow read
    const void* weight;      // W_k or W_v
    void* to;                // what widen, mix and narrow write
    const void* h;
    const void* absorbed_q;  // q'
    const void* d_mixed;
    const void* o;
    const void* d_o;
    const void* q;           // of narrow: what inner products are with, or null
    float* scores;           // f32: the probabilities
    float2* sums;            // of each row and tile: maximum, and sum of exponentials above it
    void* p;                 // p·mask
    void* ds;
    void* d_absorbed_q;      // d_q', or null
    float* d_h;
    float* inner;            // [T, H·ceil(K / 64)]
    Mask mask;
    int heads;
    int width;               // K
    int depth;               // D
    int longest;             // the most targets of an example that there is room for
    int fragments;           // of narrow: 16 rows each, of a block
    int padding;
};

constexpr int PAIR_TILE = 64;  // rows of a block, and keys of a tile
static_assert(PAIR_TILE == ATTENTION_TILE, "tiles of keys are those of the descriptor's map");
constexpr int PAIR_STRIDE = PAIR_TILE + 8;  // of a tile of f32: eight apart in banks, so that four rows of pairs fall on all

// Two sums of exponentials above their maximums, as one.
__device__ __forceinline__ float2 joined(float2 a, float2 b) {
    const float most = fmaxf(a.x, b.x);
    return make_float2(most, a.y * __expf(a.x - most) + b.y * __expf(b.x - most));
}

// Where an example's pairs lie.
struct Pairs {
    int rows, keys;          // t·H and n
    int stride;              // pairs from row to row
    int64_t row;             // of its first row among [T, H]
    int64_t key;             // of its first encoder row
    int64_t start;           // of its first pair
    int64_t slot;            // of the sums of its first tile

    // Of the example that a tile of keys is of.
    __device__ Pairs(const CrossArguments& arguments, const TileEntry& tile)
        : Pairs(arguments, tile.example, tile.other_row, tile.other_rows, tile.row, tile.rows) {}
    __device__ Pairs(const CrossArguments& arguments, const Batch& batch, int example)
        : Pairs(arguments, example, batch.offset(DECODER, example), batch.offset(DECODER, example + 1) - batch.offset(DECODER, example),
                batch.offset(ENCODER, example), batch.offset(ENCODER, example + 1) - batch.offset(ENCODER, example)) {}
    __device__ Pairs(const CrossArguments& arguments, int example, int target, int targets, int source, int sources) {
        const int most = arguments.longest * arguments.heads;
        rows = targets * arguments.heads;
        row = static_cast<int64_t>(target) * arguments.heads;
        key = source;
        keys = sources;
        stride = (keys + 7) / 8 * 8;
        // No example reaches into the next: rounding n up takes at most eight more, a tile that is not full one more.
        start = ((key + 7) / 8 * 8 + 8 * example) * most;
        slot = (key / PAIR_TILE + example) * most;
    }
    // The sum of exponentials of a row, and the maximum it is above, from the sums of its tiles in order.
    __device__ float2 sum_of(const CrossArguments& arguments, int of_row) const {
        const int most = arguments.longest * arguments.heads, tiles = (keys + PAIR_TILE - 1) / PAIR_TILE;
        float2 all = make_float2(-INFINITY, 0.0f);
#pragma unroll 1
        for (int tile = 0; tile < tiles; ++tile) all = joined(all, arguments.sums[slot + static_cast<int64_t>(tile) * most + of_row]);
        return all;
    }
    __device__ float log_sum_exp(const CrossArguments& arguments, int of_row) const {
        const float2 all = sum_of(arguments, of_row);
        return all.x + logf(all.y);
    }
};

// Multiplies eight neighbouring pairs, from `key` on, of a row by their masks.
__device__ __forceinline__ Columns<8> factors(const CrossArguments& arguments, const Batch& batch, int example, int row, int key) {
    Columns<8> c = {{1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f}};
    if (arguments.mask.step == nullptr) return c;
    drop(c, MaskRow(arguments.mask, batch, example, row / arguments.heads, row % arguments.heads), key);
    return c;
}

// The sum over the eight lanes that share a row.
__device__ __forceinline__ float row_sum(float value) {
#pragma unroll
    for (int step = 4; step > 0; step >>= 1) value += __shfl_xor_sync(0xffffffffu, value, step);
    return value;
}

// The maximum of a row's scores of a tile, and their sum of exponentials above it, by the eight lanes that have eight of them each, from
// `key` on; those after the last key become -inf.
__device__ __forceinline__ float2 sum_of_scores(Columns<8>& scores, int key, int keys) {
    float most = -INFINITY, sum = 0.0f;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        if (key + i >= keys) scores.value[i] = -INFINITY;
        most = fmaxf(most, scores.value[i]);
    }
#pragma unroll
    for (int step = 4; step > 0; step >>= 1) most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, step));
#pragma unroll
    for (int i = 0; i < 8; ++i) sum += __expf(scores.value[i] - most);
    return make_float2(most, row_sum(sum));
}

// <o, d_o> of a row of the [T, H] by the eight lanes that share it; zero of one that is not `there`.
__device__ __forceinline__ float delta_of(const CrossArguments& arguments, int64_t row, bool there) {
    const int64_t at = row * arguments.width;
    float sum = 0.0f;
#pragma unroll 1
    for (int column = threadIdx.x % 8 * 8; there && column < arguments.width; column += 64) {
        const Columns<8> a = load_columns<8>(static_cast<const bf16*>(arguments.o) + at + column);
        const Columns<8> b = load_columns<8>(static_cast<const bf16*>(arguments.d_o) + at + column);
#pragma unroll
        for (int i = 0; i < 8; ++i) sum = fmaf(a.value[i], b.value[i], sum);
    }
    __syncwarp();
    return row_sum(sum);
}

// Turns eight pairs of a row, from `key` on, from d_mixed · h to ds, and from scores to p·mask.
__device__ __forceinline__ void find_gradients(Columns<8>& ds, Columns<8>& p, const Columns<8>& factor, float log_sum_exp, float delta, int key,
                                               int keys) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        const float share = __expf(p.value[i] - log_sum_exp);
        // What the product has after the last key may be anything.
        ds.value[i] = key + i < keys ? share * (ds.value[i] * factor.value[i] - delta) : 0.0f;
        p.value[i] = share * factor.value[i];
    }
}

}  // namespace promptmix
