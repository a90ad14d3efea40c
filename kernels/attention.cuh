// What the attention kernels share: their one argument, the example that a tile belongs to, tiles in shared memory.
#pragma once
#include "dropout.cuh"
#include "mma.cuh"

namespace promptmix {

struct AttentionArguments {
    const int* batch;
    const void* q;
    const void* k;
    const void* v;
    void* o;
    float* log_sum_exp;      // [query rows, H]
    const float* bias;       // [H, 2·reach + 1] or null
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
    int reach;
    int causal;
    int inner_parts;         // 2 where queries and keys are the same rows, 1 where only the queries' part is wanted
};
static_assert(sizeof(AttentionArguments) == 160, "as backend/cuda/attention.rs has it");

// The example and first row of a tile, and where its rows lie.
struct Tile {
    int example, first;
    int queries, keys;            // of the example
    int64_t query_row, key_row;   // packed rows of its first query and key
    bool any;

    __device__ Tile(const AttentionArguments& arguments, const Batch& batch, bool over_keys) : any(false) {
        const int side = over_keys ? arguments.key_side : arguments.query_side;
        const bool prompt = arguments.scope == PROMPT;
        const int tiles = batch.header(side == DECODER ? DECODER_TILES : prompt ? PROMPT_TILES : ENCODER_TILES);
        if (static_cast<int>(blockIdx.x) >= tiles) return;
        const Header map = side == DECODER ? DECODER_TILE_MAP : prompt ? PROMPT_TILE_MAP : ENCODER_TILE_MAP;
        example = __ldg(batch.array(map) + 2 * blockIdx.x);
        first = __ldg(batch.array(map) + 2 * blockIdx.x + 1);
        query_row = batch.offset(arguments.query_side, example);
        queries = batch.offset(arguments.query_side, example + 1) - static_cast<int>(query_row);
        key_row = batch.offset(arguments.key_side, example);
        keys = batch.offset(arguments.key_side, example + 1) - static_cast<int>(key_row);
        any = true;
    }
};

// Where chunk `chunk` (16 bytes) of a row of Width columns of bf16 lies in a tile: eight neighbouring rows of one chunk fall
// on all banks.
template <int Width> __device__ __forceinline__ uint32_t swizzled(int row, int chunk) {
    return row * (Width * 2) + ((chunk ^ (row & 7)) << 4);
}

// Starts copying 64 rows of `width` columns, zeros behind `rows` and behind `width`.
template <int Width>
__device__ __forceinline__ void copy_tile(uint32_t to, const bf16* from, int rows, int stride, int width) {
    constexpr int Chunks = Width / 8;
#pragma unroll
    for (int i = 0; i < 64 * Chunks / 128; ++i) {
        const int row = (threadIdx.x + i * 128) / Chunks, chunk = (threadIdx.x + i * 128) % Chunks;
        const bool any = row < rows && chunk * 8 < width;
        const bf16* const source = from + static_cast<int64_t>(row) * stride + chunk * 8;
        copy_async(to + swizzled<Width>(row, chunk), any ? source : from, any);
    }
}

// The fragment of 16 rows from `row` on, columns 16·step on, as the left operand.
template <int Width> __device__ __forceinline__ void left_fragment(uint32_t (&to)[4], uint32_t tile, int row, int step) {
    const int lane = threadIdx.x % 32;
    load_matrices(to, tile + swizzled<Width>(row + lane % 16, step * 2 + lane / 16));
}
// The right operand of 16 rows from `row` on, which become columns of the product, at depth 16·step: two pairs.
template <int Width> __device__ __forceinline__ void right_rows(uint32_t (&to)[4], uint32_t tile, int row, int step) {
    const int lane = threadIdx.x % 32;
    load_matrices(to, tile + swizzled<Width>(row + lane / 16 * 8 + lane % 8, step * 2 + lane / 8 % 2));
}
// The right operand of 16 rows from 16·step on, which are the depth, columns 8·block and the next eight: two pairs.
template <int Width> __device__ __forceinline__ void right_columns(uint32_t (&to)[4], uint32_t tile, int block, int step) {
    const int lane = threadIdx.x % 32;
    load_matrices_transposed(to, tile + swizzled<Width>(step * 16 + lane % 16, block + lane / 16));
}

// left (16 rows from `row` of one tile) times the 64 rows of another: a 16x64 product over the width.
template <int Width>
__device__ __forceinline__ void rows_by_rows(float (&to)[8][4], uint32_t left_tile, int row, uint32_t right_tile) {
    // Unrolled whole, wide heads would hold more addresses than there are registers left.
#pragma unroll (Width > 64 ? 2 : Width / 16)
    for (int step = 0; step < Width / 16; ++step) {
        uint32_t left[4];
        left_fragment<Width>(left, left_tile, row, step);
#pragma unroll
        for (int j = 0; j < 8; j += 2) {
            uint32_t right[4];
            right_rows<Width>(right, right_tile, j * 8, step);
            multiply_add(to[j], left, right[0], right[1]);
            multiply_add(to[j + 1], left, right[2], right[3]);
        }
    }
}

// to += weights (16x64, in registers, rounded to bf16) times the 64 rows of a tile.
template <int Width>
__device__ __forceinline__ void weighted_rows(float (&to)[Width / 8][4], const float (&weights)[8][4], uint32_t tile) {
#pragma unroll
    for (int step = 0; step < 4; ++step) {
        const uint32_t left[4] = {pack_bf16(weights[2 * step][0], weights[2 * step][1]),
                                  pack_bf16(weights[2 * step][2], weights[2 * step][3]),
                                  pack_bf16(weights[2 * step + 1][0], weights[2 * step + 1][1]),
                                  pack_bf16(weights[2 * step + 1][2], weights[2 * step + 1][3])};
#pragma unroll
        for (int block = 0; block < Width / 8; block += 2) {
            uint32_t right[4];
            right_columns<Width>(right, tile, block, step);
            multiply_add(to[block], left, right[0], right[1]);
            multiply_add(to[block + 1], left, right[2], right[3]);
        }
    }
}

// The head's row of bias in shared memory; zeros without one.
__device__ __forceinline__ void load_bias(float* to, const AttentionArguments& arguments, int head) {
    if (arguments.bias == nullptr) return;
    const int length = 2 * arguments.reach + 1;
    for (int i = threadIdx.x; i < length; i += blockDim.x) to[i] = __ldg(arguments.bias + static_cast<int64_t>(head) * length + i);
}
__device__ __forceinline__ float bias_of(const float* bias, const AttentionArguments& arguments, int query, int key) {
    if (arguments.bias == nullptr) return 0.0f;
    return bias[min(max(key - query + arguments.reach, 0), 2 * arguments.reach)];
}
__device__ __forceinline__ bool sees(const AttentionArguments& arguments, const Tile& tile, int query, int key) {
    return key < tile.keys && !(arguments.causal && key > query);
}

// One bit for each of 64 queries by 64 keys: kept by dropout. Each of 128 threads draws four blocks of eight keys.
__device__ __forceinline__ void draw_mask(uint8_t* bits, const AttentionArguments& arguments, const Batch& batch, const Tile& tile,
                                          int head, int first_query, int first_key) {
    if (arguments.mask.step == nullptr) return;
    for (int i = threadIdx.x; i < 64 * 8; i += blockDim.x) {
        const MaskRow row(arguments.mask, batch, tile.example, first_query + i / 8, head);
        const uint4 drawn = row.draw(first_key / 8 + i % 8);
        uint32_t kept = 0;
#pragma unroll
        for (int lane = 0; lane < 8; ++lane) kept |= (row.factor(drawn, lane) != 0.0f ? 1u : 0u) << lane;
        bits[i] = static_cast<uint8_t>(kept);
    }
}
// What the probability of a query and key of the tile is multiplied by.
__device__ __forceinline__ float kept_factor(const uint8_t* bits, float scale, int query, int key) {
    return (bits[query * 8 + key / 8] >> (key % 8) & 1) != 0 ? scale : 0.0f;
}

// Sum over the four lanes that share a row of a fragment.
__device__ __forceinline__ float quad_sum(float value) {
    value += __shfl_xor_sync(0xffffffffu, value, 1);
    return value + __shfl_xor_sync(0xffffffffu, value, 2);
}
__device__ __forceinline__ float quad_max(float value) {
    value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, 1));
    return fmaxf(value, __shfl_xor_sync(0xffffffffu, value, 2));
}

// Rounds a warp's 16 x Width numbers, each row times its factor, into its own rows of a tile and stores those that exist.
template <int Width>
__device__ __forceinline__ void store_rows(unsigned char* tile, const float (&from)[Width / 8][4], float factor_low, float factor_high,
                                           bf16* to, int64_t stride, int rows, int width) {
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
