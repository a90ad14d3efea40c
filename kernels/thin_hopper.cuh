// What the kernels of few rows for compute capability 9.0 share: tiles of 64x64 by one warpgroup, whose parts of k a cluster adds up.
#pragma once
#include "hopper.cuh"
#include "rows.cuh"

namespace promptmix {

constexpr int ROWS = 64;    // of a tile
constexpr int COLUMNS = 64;
constexpr int DEPTH = 64;   // of a k-block, which comes in one box of either operand
constexpr int THREADS = 128;
constexpr int BYTES_OPERAND = ROWS * DEPTH * 2;
constexpr int STRIDE = COLUMNS + 8;                   // of a tile of f32
constexpr int BYTES_SUMS = ROWS * STRIDE * 4;
constexpr int LANES = COLUMNS / PACKED_COLUMNS;       // of a row
constexpr int MIN_CLUSTER = ROWS / (THREADS / LANES); // so that no block has more rows than at once

// The sum of `count` numbers by the lanes of a row, who all get it.
__device__ __forceinline__ float sum_of_row(const float* from, int count) {
    const int lane = threadIdx.x % LANES;
    float sum = lane < count ? from[lane] : 0.0f;
    const float other = lane + LANES < count ? from[lane + LANES] : 0.0f;
    sum += other;
#pragma unroll 1
    for (int i = lane + 2 * LANES; i < count; i += LANES) sum += from[i];
#pragma unroll
    for (int step = LANES / 2; step > 0; step >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, step);
    return sum;
}

// Issues the products of a k-block: 64 rows of A, K-major, and 64 columns of B at `right`, whose rows along k are neighbours, or Across
// its columns.
template <bool Across> __device__ __forceinline__ void multiply_k_block(float (&sums)[COLUMNS / 2], uint32_t left, uint32_t right, bool adds) {
    const uint64_t a = describe_operand(left, 16, 1024);
    const uint64_t b = Across ? describe_operand(right, BYTES_OPERAND, 1024) : describe_operand(right, 16, 1024);
    multiply_64<Across>(sums, a, b, adds);
#pragma unroll
    for (int step = 1; step < DEPTH / 16; ++step) {
        // 16 of k are 32 bytes within a row's 128, or 16 rows of 128.
        multiply_64<Across>(sums, operand_after(a, step * 32), operand_after(b, step * (Across ? 2048 : 32)));
    }
}

constexpr int BYTES_STAGE = 2 * BYTES_OPERAND;

// Adds up `count` k-blocks, of which as many were asked for as there are stages, in order; `bring` asks for another, by one thread:
// the stage and which. All threads call `landed` of a stage before its products. Ends when the products of all warps are done.
template <bool Across, typename Bring, typename Landed>
__device__ __forceinline__ void multiply_k_blocks(float (&sums)[COLUMNS / 2], uint32_t base, uint32_t full, int stages, int count,
                                                   const Bring& bring, const Landed& landed) {
    int stage = 0;
    uint32_t parity = 0;
#pragma unroll 1
    for (int k_block = 0; k_block < count; ++k_block) {
        const uint32_t left = base + stage * BYTES_STAGE;
        wait_for_phase(full + stage * 8, parity);
        landed(stage);
        fence_products();
        multiply_k_block<Across>(sums, left, left + BYTES_OPERAND, k_block > 0);
        commit_products();
        if (k_block + stages < count) {
            wait_for_products<0>();
            __syncthreads();
            if (threadIdx.x == 0) bring(stage, k_block + stages);
            __syncwarp();
        }
        if (++stage == stages) {
            stage = 0;
            parity ^= 1;
        }
    }
    wait_for_products<0>();
    // Other warps' products read the same columns, and it is not said that this warp's wait is for them too.
    __syncthreads();
}

// Where chunk `chunk` of row `row` lies as a tensor copy with 128-byte swizzle would have it.
__device__ __forceinline__ uint32_t operand_place(int row, int chunk) { return row * (DEPTH * 2) + ((chunk ^ (row & 7)) << 4); }

// Writes a part's sums to the tile of f32 at the start of `tile`, and, if all of its rows will be read, zeros after its `rows` rows: what
// lies in A there nobody wrote.
template <bool All = true> __device__ __forceinline__ void store_sums(float* tile, const float (&sums)[COLUMNS / 2], int rows) {
    const int lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16 + lane / 4;
    float* const to = tile + row * STRIDE + lane % 4 * 2;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        if (row + half * 8 < rows) {
#pragma unroll
            for (int i = 0; i < COLUMNS / 8; ++i) {
                *reinterpret_cast<float2*>(to + half * 8 * STRIDE + i * 8) = make_float2(sums[i * 4 + half * 2], sums[i * 4 + half * 2 + 1]);
            }
        } else if (All) {
#pragma unroll 1
            for (int i = 0; i < COLUMNS / 8; ++i) *reinterpret_cast<float2*>(to + half * 8 * STRIDE + i * 8) = make_float2(0.0f, 0.0f);
        }
    }
}

// Zeros rows of an operand from `first` on, and has the products see it. All threads call it.
__device__ __forceinline__ void clear_rows(unsigned char* operand, int first) {
#pragma unroll 1
    for (int i = first * LANES + static_cast<int>(threadIdx.x); i < ROWS * LANES; i += THREADS) {
        *reinterpret_cast<uint4*>(operand + i * 16) = make_uint4(0, 0, 0, 0);
    }
    fence_writes();
    __syncthreads();
}

// The lane's eight columns of row `row` of the tiles at `tile` in all blocks of the cluster, a multiple of MIN_CLUSTER, added up in order.
__device__ __forceinline__ Columns<PACKED_COLUMNS> sum_of_parts(uint32_t tile, int row, int parts) {
    const uint32_t from = tile + (row * STRIDE + threadIdx.x % LANES * PACKED_COLUMNS) * 4;
    Columns<PACKED_COLUMNS> c = {};
#pragma unroll 1
    for (int first = 0; first < parts; first += MIN_CLUSTER) {
        // All loads come before the first sum: one after the other they would each wait for another block's memory.
        float4 low[MIN_CLUSTER], high[MIN_CLUSTER];
#pragma unroll
        for (int i = 0; i < MIN_CLUSTER; ++i) {
            low[i] = load_from_block(from, first + i);
            high[i] = load_from_block(from + 16, first + i);
        }
#pragma unroll
        for (int i = 0; i < MIN_CLUSTER; ++i) {
            c.value[0] += low[i].x;
            c.value[1] += low[i].y;
            c.value[2] += low[i].z;
            c.value[3] += low[i].w;
            c.value[4] += high[i].x;
            c.value[5] += high[i].y;
            c.value[6] += high[i].z;
            c.value[7] += high[i].w;
        }
    }
    return c;
}

}  // namespace promptmix
