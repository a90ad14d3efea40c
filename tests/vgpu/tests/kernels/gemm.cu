// C (M x N) = A (M x K) B^T (B is N x K) + bias, bf16 in and out, f32 sums.
//
// A block of 8 warps computes 128 x 128, a warp 64 x 32; K goes by in steps of 32 through four stages of
// cp.async. Rows of a stage are 64 bytes; the 16-byte pieces of a row are swizzled so that ldmatrix meets
// every bank once. K must be a multiple of 8.
//
// FAULT_* break it in one way each, for the table of planted faults.
#include "warp.cuh"

constexpr int kTile = 128, kStep = 32, kStages = 4;
#ifdef FAULT_WAIT
constexpr int kLeft = kStages - 1;  // One group too many is left under way.
#else
constexpr int kLeft = kStages - 2;
#endif

__device__ __forceinline__ int place(int row, int piece) {
#ifdef FAULT_SWIZZLE
  return row * kStep + piece * 8;
#else
  return row * kStep + ((piece ^ (row >> 1 & 3)) << 3);
#endif
}

extern "C" __global__ void __launch_bounds__(256)
gemm(const __nv_bfloat16* __restrict__ A, const __nv_bfloat16* __restrict__ B, __nv_bfloat16* __restrict__ C,
     const float* __restrict__ bias, int M, int N, int K) {
  extern __shared__ __align__(128) unsigned char memory[];
  __nv_bfloat16* tile_a = reinterpret_cast<__nv_bfloat16*>(memory);
  __nv_bfloat16* tile_b = tile_a + kStages * kTile * kStep;
  const int thread = threadIdx.x, lane = thread & 31, warp = thread >> 5;
  const int warp_row = (warp >> 2) * 64, warp_column = (warp & 3) * 32;
  const int first_row = blockIdx.y * kTile, first_column = blockIdx.x * kTile;
  float sums[4][4][4];
#ifndef FAULT_ACCUMULATOR
#pragma unroll
  for (int i = 0; i < 64; i++) (&sums[0][0][0])[i] = 0.f;
#endif
  const int steps = (K + kStep - 1) / kStep;
  auto fetch = [&](int stage, int step) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const int id = thread + i * 256, row = id >> 2, piece = id & 3, k = step * kStep + piece * 8;
#ifdef FAULT_PAST_THE_END
      const bool has_a = first_row + row < M + 1 && k < K;
#else
      const bool has_a = first_row + row < M && k < K;
#endif
      const bool has_b = first_column + row < N && k < K;
      copy_async(shared_address(tile_a + stage * kTile * kStep + place(row, piece)),
                 A + (has_a ? static_cast<size_t>(first_row + row) * K + k : 0), has_a);
      copy_async(shared_address(tile_b + stage * kTile * kStep + place(row, piece)),
                 B + (has_b ? static_cast<size_t>(first_column + row) * K + k : 0), has_b);
    }
  };
#pragma unroll
  for (int stage = 0; stage < kStages - 1; stage++) {
    if (stage < steps) fetch(stage, stage);
    commit_copies();
  }
  for (int step = 0; step < steps; step++) {
    wait_copies<kLeft>();
#ifndef FAULT_BARRIER
    __syncthreads();
#endif
    if (step + kStages - 1 < steps) fetch((step + kStages - 1) % kStages, step + kStages - 1);
    commit_copies();
#ifdef FAULT_STALE
    const int stage = (step + 1) % kStages;
#else
    const int stage = step % kStages;
#endif
#pragma unroll
    for (int half = 0; half < 2; half++) {
      uint32_t a[4][4], b[2][4];
#pragma unroll
      for (int i = 0; i < 4; i++)
        load_matrices(a[i], shared_address(tile_a + stage * kTile * kStep +
                                           place(warp_row + i * 16 + (lane & 15), half * 2 + (lane >> 4))));
#pragma unroll
      for (int j = 0; j < 2; j++)
        load_matrices(b[j], shared_address(tile_b + stage * kTile * kStep +
                                           place(warp_column + j * 16 + (lane & 7) + ((lane >> 4) << 3),
                                                 half * 2 + (lane >> 3 & 1))));
#pragma unroll
      for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
#ifdef FAULT_FRAGMENT_ROWS
          const uint32_t swapped[4] = {a[i][1], a[i][0], a[i][3], a[i][2]};
          multiply_add(sums[i][j], swapped, b[j >> 1][(j & 1) * 2], b[j >> 1][(j & 1) * 2 + 1]);
#else
          multiply_add(sums[i][j], a[i], b[j >> 1][(j & 1) * 2], b[j >> 1][(j & 1) * 2 + 1]);
#endif
        }
    }
  }
#pragma unroll
  for (int i = 0; i < 4; i++)
#pragma unroll
    for (int j = 0; j < 4; j++)
#pragma unroll
      for (int e = 0; e < 4; e++) {
        const int row = first_row + warp_row + i * 16 + (lane >> 2) + (e >> 1) * 8;
        const int column = first_column + warp_column + j * 8 + (lane & 3) * 2 + (e & 1);
        if (row < M && column < N)
          C[static_cast<size_t>(row) * N + column] = __float2bfloat16(sums[i][j][e] + (bias ? bias[column] : 0.f));
      }
}
