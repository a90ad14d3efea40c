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
        for (int tile = 0; tile < tiles; ++tile) {
            const float2 one = arguments.sums[slot + static_cast<int64_t>(tile) * most + of_row];
            const float top = fmaxf(all.x, one.x);
            all = make_float2(top, all.y * __expf(all.x - top) + one.y * __expf(one.x - top));
        }
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

// Eight columns of a tile's row, by eight lanes a row.
__device__ __forceinline__ Columns<8> load_chunk(const float* tile, int row, int chunk) {
    return load_shared(tile + row * PAIR_STRIDE + chunk * 8, chunk);
}

// The sum over the eight lanes that share a row.
__device__ __forceinline__ float row_sum(float value) {
#pragma unroll
    for (int step = 4; step > 0; step >>= 1) value += __shfl_xor_sync(0xffffffffu, value, step);
    return value;
}

// Stores the scores of a tile of keys, their maximum and their sum of exponentials above it; `tile` has them, from `first_row` on.
__device__ __forceinline__ void store_scores(const CrossArguments& arguments, const Pairs& pairs, const TileEntry& entry, const float* tile,
                                             int first_row) {
    const int rows = pairs.rows - first_row;
    const int chunk = threadIdx.x % 8, key = entry.first + chunk * 8;
#pragma unroll 1
    for (int row = threadIdx.x / 8; row < (min(rows, PAIR_TILE) + 15) / 16 * 16; row += 16) {
        Columns<8> c = load_chunk(tile, row, chunk);
        float most = -INFINITY, sum = 0.0f;
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            if (key + i >= pairs.keys) c.value[i] = -INFINITY;
            most = fmaxf(most, c.value[i]);
        }
#pragma unroll
        for (int step = 4; step > 0; step >>= 1) most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, step));
#pragma unroll
        for (int i = 0; i < 8; ++i) sum += __expf(c.value[i] - most);
        sum = row_sum(sum);
        if (row >= rows) continue;
        if (key < pairs.stride) {
            store_columns(arguments.scores + pairs.start + static_cast<int64_t>(first_row + row) * pairs.stride + key, c);
        }
        if (chunk == 0) {
            const int most_rows = arguments.longest * arguments.heads;
            arguments.sums[pairs.slot + static_cast<int64_t>(entry.first / PAIR_TILE) * most_rows + first_row + row] = make_float2(most, sum);
        }
    }
}

// The log-sum-exp and delta of at most a tile's rows from `first_row` on.
__device__ __forceinline__ void find_delta(const CrossArguments& arguments, const Pairs& pairs, int first_row, float* log_sum_exp, float* delta) {
    const int rows = pairs.rows - first_row, chunk = threadIdx.x % 8;
    if (static_cast<int>(threadIdx.x) < min(rows, PAIR_TILE)) {
        log_sum_exp[threadIdx.x] = pairs.log_sum_exp(arguments, first_row + threadIdx.x);
    }
#pragma unroll 1
    for (int row = threadIdx.x / 8; row < (min(rows, PAIR_TILE) + 15) / 16 * 16; row += 16) {
        float sum = 0.0f;
        if (row < rows) {
            const int64_t at = (pairs.row + first_row + row) * arguments.width;
#pragma unroll 1
            for (int column = chunk * 8; column < arguments.width; column += 64) {
                const Columns<8> a = load_columns<8>(static_cast<const bf16*>(arguments.o) + at + column);
                const Columns<8> b = load_columns<8>(static_cast<const bf16*>(arguments.d_o) + at + column);
#pragma unroll
                for (int i = 0; i < 8; ++i) sum = fmaf(a.value[i], b.value[i], sum);
            }
        }
        sum = row_sum(sum);
        if (chunk == 0) delta[row] = sum;
    }
}

// Stores ds and p·mask of a tile of keys, from d_mixed · h, which `tile` has.
__device__ __forceinline__ void store_gradients(const CrossArguments& arguments, const Batch& batch, const Pairs& pairs,
                                                const TileEntry& entry, const float* tile, const float* log_sum_exp, const float* delta,
                                                int first_row) {
    const int rows = pairs.rows - first_row, chunk = threadIdx.x % 8;
    const int key = entry.first + chunk * 8;
    if (key >= pairs.stride) return;
#pragma unroll 1
    for (int row = threadIdx.x / 8; row < min(rows, PAIR_TILE); row += 16) {
        const int64_t at = pairs.start + static_cast<int64_t>(first_row + row) * pairs.stride + key;
        Columns<8> ds = load_chunk(tile, row, chunk), p = load_columns<8>(arguments.scores + at);
        const Columns<8> factor = factors(arguments, batch, entry.example, first_row + row, key);
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            const float share = __expf(p.value[i] - log_sum_exp[row]);
            // What the product has behind the last key may be anything.
            ds.value[i] = key + i < pairs.keys ? share * (ds.value[i] * factor.value[i] - delta[row]) : 0.0f;
            p.value[i] = share * factor.value[i];
        }
        store_columns(static_cast<bf16*>(arguments.ds) + at, ds);
        store_columns(static_cast<bf16*>(arguments.p) + at, p);
    }
}

}  // namespace promptmix
