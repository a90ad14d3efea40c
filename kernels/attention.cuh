// What the attention kernels share: their one argument, the example that a tile belongs to, tiles in shared memory.
#pragma once
#include "dropout.cuh"
#include "mma.cuh"

namespace promptmix {

struct AttentionArguments {
    Descriptor batch;
    const void* q;
    const void* k;
    const void* v;
    void* o;
    float* log_sum_exp;      // [query rows, H]
    const float* bias;       // [H, 2·max_distance + 1] or null
    const void* d_o;
    float* delta;            // [query rows, H]: sum of d_o·o
    void* d_q;
    void* d_k;
    void* d_v;
    float* inner;            // [rows, inner_parts·H] or null
    Mask mask;
    int query_side;
    int key_side;
    int scope;
    int heads;
    int width;               // K
    int q_stride;            // of q and d_q
    int kv_stride;           // of k, v, d_k, d_v
    int max_distance;
    int causal;
    int inner_parts;         // 2 where queries and keys are the same rows, 1 where only the queries' part is wanted
    float softmax_scale;     // of q · k: 1, or 1 / sqrt(K)
    int key_tiles;           // of backward: so many blocks in x are of tiles of keys, those after them of tiles of queries
};

// The example and first row of a tile, and where its rows lie.
struct Tile {
    int example, first;
    int queries, keys;            // of the example
    int64_t query_row, key_row;   // packed rows of its first query and key
    bool any;

    __device__ Tile(const AttentionArguments& arguments, const Batch& batch, bool over_keys, int index) : any(false) {
        const int side = over_keys ? arguments.key_side : arguments.query_side;
        const TileEntry entry = batch.tile(side, arguments.scope, index);
        if (entry.example < 0) return;
        example = entry.example;
        first = entry.first;
        const bool queries_here = arguments.query_side == side, keys_here = arguments.key_side == side;
        query_row = queries_here ? entry.row : entry.other_row;
        queries = queries_here ? entry.rows : entry.other_rows;
        key_row = keys_here ? entry.row : entry.other_row;
        keys = keys_here ? entry.rows : entry.other_rows;
        any = true;
    }
};

// Where chunk `chunk` (16 bytes) of a row of Width columns of bf16 lies in a tile: eight neighbouring rows of one chunk fall
// on all banks.
template <int Width> __device__ __forceinline__ uint32_t swizzled(int row, int chunk) {
    return row * (Width * 2) + ((chunk ^ (row & 7)) << 4);
}

// A further step or block is an exclusive or of bits that the rest of a place does not touch, and further rows, by eights, lie at
// immediates. Tiles begin on 128 bytes, so that a place in rows of 128 bytes may be added to the tile's address before.
template <int Width> __device__ __forceinline__ uint32_t across(uint32_t tile, uint32_t place, int bits) {
    return Width > 64 ? tile + (place ^ bits) : (tile + place) ^ bits;
}

// The fragment of 16 rows from `row` on, columns 16·step on, as the left operand.
template <int Width> __device__ __forceinline__ void left_fragment(uint32_t (&to)[4], uint32_t tile, int row, int step) {
    const int lane = threadIdx.x % 32;
    load_matrices(to, across<Width>(tile, swizzled<Width>(row + lane % 16, lane / 16), step * 32));
}
// The right operand of 16 rows from `row` on, which become columns of the product, at depth 16·step: two pairs.
template <int Width> __device__ __forceinline__ void right_rows(uint32_t (&to)[4], uint32_t tile, int row, int step) {
    const int lane = threadIdx.x % 32;
    load_matrices(to, across<Width>(tile, swizzled<Width>(lane / 16 * 8 + lane % 8, lane / 8 % 2), step * 32) + row * Width * 2);
}
// The right operand of 16 rows from 16·step on, which are the depth, columns 8·block (even) and the next eight: two pairs.
template <int Width> __device__ __forceinline__ void right_columns(uint32_t (&to)[4], uint32_t tile, int block, int step) {
    const int lane = threadIdx.x % 32;
    load_matrices_transposed(to, across<Width>(tile, swizzled<Width>(lane % 16, lane / 16), block * 16) + step * 16 * Width * 2);
}

// left (16 rows from `row` of one tile) times 8·Blocks rows of another, from `from` on: a product over the width.
template <int Width, int Blocks = 8>
__device__ __forceinline__ void rows_by_rows(float (&to)[Blocks][4], uint32_t left_tile, int row, uint32_t right_tile, int from = 0) {
    // Unrolled whole, wide heads would hold more addresses than there are registers left.
#pragma unroll (Width > 64 ? 2 : Width / 16)
    for (int step = 0; step < Width / 16; ++step) {
        uint32_t left[4];
        left_fragment<Width>(left, left_tile, row, step);
#pragma unroll
        for (int j = 0; j < Blocks; j += 2) {
            uint32_t right[4];
            right_rows<Width>(right, right_tile, from + j * 8, step);
            multiply_add(to[j], left, right[0], right[1]);
            multiply_add(to[j + 1], left, right[2], right[3]);
        }
    }
}

// to += weights (16 by 8·Blocks, in registers, rounded to bf16) times rows of a tile, from `from` on.
template <int Width, int Blocks = 8>
__device__ __forceinline__ void weighted_rows(float (&to)[Width / 8][4], const float (&weights)[Blocks][4], uint32_t tile, int from = 0) {
#pragma unroll
    for (int step = 0; step < Blocks / 2; ++step) {
        const uint32_t left[4] = {pack_bf16(weights[2 * step][0], weights[2 * step][1]),
                                  pack_bf16(weights[2 * step][2], weights[2 * step][3]),
                                  pack_bf16(weights[2 * step + 1][0], weights[2 * step + 1][1]),
                                  pack_bf16(weights[2 * step + 1][2], weights[2 * step + 1][3])};
#pragma unroll
        for (int block = 0; block < Width / 8; block += 2) {
            uint32_t right[4];
            right_columns<Width>(right, tile, block, from / 16 + step);
            multiply_add(to[block], left, right[0], right[1]);
            multiply_add(to[block + 1], left, right[2], right[3]);
        }
    }
}

// Starts copying 64 rows of a head's `width` columns, from `column` on, to a tile: `rows` rows from packed row `row` on, zeros after them
// and after the width.
template <int Width>
__device__ __forceinline__ void copy_rows(uint32_t tile, const void* matrix, int64_t row, int rows, int stride, int column, int width) {
    constexpr int Chunks = Width / 8, AtOnce = 128 / Chunks;
    const int first = threadIdx.x / Chunks, chunk = threadIdx.x % Chunks;
    const bf16* const from = static_cast<const bf16*>(matrix) + (row + first) * stride + column + chunk * 8;
    const int left = chunk * 8 < width ? rows - first : 0;
    // Rows AtOnce apart, a multiple of eight, are swizzled alike.
    const uint32_t to = tile + swizzled<Width>(first, chunk);
    // Unrolled whole, wide heads would hold more addresses than there are registers left.
#pragma unroll (Width > 64 ? 2 : 4)
    for (int i = 0; i < 64 / AtOnce; ++i) {
        // A source that is not read stays an address within the rows.
        const bool any = i * AtOnce < left;
        copy_async(to + i * AtOnce * Width * 2, any ? from + i * AtOnce * static_cast<int64_t>(stride) : static_cast<const bf16*>(matrix), any);
    }
}

constexpr float LOG2_E = 1.4426950408889634f, LN_2 = 0.6931471805599453f;

// Scores are kept times log2 e, so that a probability is a power of two: one instruction.
__device__ __forceinline__ float power_of_two(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// The head's bias in shared memory, times log2 e, by key - query: constant beyond the maximum distance, so that a tile of 64 queries by
// 64 keys finds its 127 numbers however far apart the two are (`shift_of`). Zeros where there is none.
constexpr int BIAS_MARGIN = 2 * 63;
__device__ __forceinline__ void load_bias(float* to, const AttentionArguments& arguments, int head) {
    const int max_distance = arguments.max_distance, length = 2 * (max_distance + BIAS_MARGIN) + 1;
    const float* const from = arguments.bias + static_cast<int64_t>(head) * (2 * max_distance + 1);
    // Several loads at once: one after the other they would take longer than a tile's copies.
    constexpr int AtOnce = 4;
#pragma unroll 1
    for (int first = threadIdx.x; first < length; first += 128 * AtOnce) {
        float values[AtOnce] = {};
        if (arguments.bias != nullptr) {
#pragma unroll
            for (int i = 0; i < AtOnce; ++i) values[i] = read_frozen(from + min(max(first + i * 128 - BIAS_MARGIN, 0), 2 * max_distance));
        }
#pragma unroll
        for (int i = 0; i < AtOnce; ++i) {
            if (first + i * 128 < length) to[first + i * 128] = values[i] * LOG2_E;
        }
    }
}
__device__ __forceinline__ const float* bias_of_zero(const float* table, int max_distance) { return table + max_distance + BIAS_MARGIN; }
// Where in the table a tile's first key less its first query stands, or a place with the same bias.
__device__ __forceinline__ int shift_of(int apart, int max_distance) { return min(max(apart, -(max_distance + 63)), max_distance + 63); }

__device__ __forceinline__ bool sees(const AttentionArguments& arguments, const Tile& tile, int query, int key) {
    return key < tile.keys && !(arguments.causal && key > query);
}

// One bit for each of 64 queries by 64 keys: kept by dropout. Each of 128 threads draws four blocks of eight keys.
__device__ __forceinline__ void draw_mask(uint8_t* bits, const AttentionArguments& arguments, const Batch& batch, const Tile& tile,
                                          int head, int first_query, int first_key) {
#pragma unroll 1
    for (int i = threadIdx.x; i < 64 * 8; i += 128) {
        const MaskRow row(arguments.mask, batch, tile.example, first_query + i / 8, head);
        const uint4 drawn = row.draw(first_key / 8 + i % 8);
        uint32_t kept = 0;
#pragma unroll
        for (int lane = 0; lane < 8; ++lane) kept |= (row.factor(drawn, lane) != 0.0f ? 1u : 0u) << lane;
        bits[i] = static_cast<uint8_t>(kept);
    }
}
// Which keys of the tile a query keeps, a bit a key; and which of a warp's 16 keys it keeps.
__device__ __forceinline__ uint2 kept_of_query(const uint8_t* bits, int query) { return *reinterpret_cast<const uint2*>(bits + query * 8); }
__device__ __forceinline__ uint32_t kept_of_keys(const uint8_t* bits, int query) {
    return *reinterpret_cast<const uint16_t*>(bits + query * 8 + threadIdx.x / 32 * 2);
}
__device__ __forceinline__ float factor_of_bit(uint32_t bits, int bit, float scale) { return (bits >> bit & 1u) != 0 ? scale : 0.0f; }

// Sum over the four lanes that share a row of a fragment.
__device__ __forceinline__ float quad_sum(float value) {
    value += __shfl_xor_sync(0xffffffffu, value, 1);
    return value + __shfl_xor_sync(0xffffffffu, value, 2);
}
__device__ __forceinline__ float quad_max(float value) {
    value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, 1));
    return fmaxf(value, __shfl_xor_sync(0xffffffffu, value, 2));
}

// Rounds a warp's 16 x Width numbers, each row times its factor, into its own rows of a tile.
template <int Width>
__device__ __forceinline__ void round_rows(unsigned char* tile, const float (&from)[Width / 8][4], float factor_low, float factor_high) {
    const int lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 * 16;
    __syncwarp();
#pragma unroll
    for (int block = 0; block < Width / 8; ++block) {
        const int row = warp_row + lane / 4, within = lane % 4 * 4;
        *reinterpret_cast<uint32_t*>(tile + swizzled<Width>(row, block) + within) =
            pack_bf16(from[block][0] * factor_low, from[block][1] * factor_low);
        *reinterpret_cast<uint32_t*>(tile + swizzled<Width>(row + 8, block) + within) =
            pack_bf16(from[block][2] * factor_high, from[block][3] * factor_high);
    }
    __syncwarp();
}

// The same, and stores those rows that exist.
template <int Width>
__device__ __forceinline__ void store_rows(unsigned char* tile, const float (&from)[Width / 8][4], float factor_low, float factor_high,
                                           bf16* to, int64_t stride, int rows, int width) {
    const int lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 * 16;
    round_rows<Width>(tile, from, factor_low, factor_high);
    constexpr int Chunks = Width / 8;
#pragma unroll
    for (int i = lane; i < 16 * Chunks; i += 32) {
        const int row = warp_row + i / Chunks, chunk = i % Chunks;
        if (row < rows && chunk * 8 < width) {
            *reinterpret_cast<uint4*>(to + row * stride + chunk * 8) =
                *reinterpret_cast<const uint4*>(tile + swizzled<Width>(row, chunk));
        }
    }
}

// Sum over the columns of a warp's fragments times a tile's own numbers: of row lane / 4 and of the row eight below.
template <int Width>
__device__ __forceinline__ float2 row_products(const unsigned char* tile, const float (&from)[Width / 8][4]) {
    const int lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16 + lane / 4, within = lane % 4 * 4;
    float low = 0.0f, high = 0.0f;
#pragma unroll
    for (int block = 0; block < Width / 8; ++block) {
        const float2 a = unpack_bf16(*reinterpret_cast<const uint32_t*>(tile + swizzled<Width>(row, block) + within));
        const float2 b = unpack_bf16(*reinterpret_cast<const uint32_t*>(tile + swizzled<Width>(row + 8, block) + within));
        low = fmaf(from[block][0], a.x, fmaf(from[block][1], a.y, low));
        high = fmaf(from[block][2], b.x, fmaf(from[block][3], b.y, high));
    }
    return make_float2(quad_sum(low), quad_sum(high));
}

}  // namespace promptmix
