// O = softmax(Q K^T + bias[key - query]) V for one head of width 64, flash style; no scale.
//
// Q, K, V and O are (heads, n, 64) bf16, the bias (heads, 2 n - 1) f32 by key minus query. Keys from `keys` on
// are left out. A block of 4 warps computes 64 queries; the log-sum-exp (heads, n) is kept for backward.
#include "warp.cuh"

constexpr int kWidth = 64, kRows = 64;

__device__ __forceinline__ int place(int row, int piece) { return row * kWidth + ((piece ^ (row & 7)) << 3); }

extern "C" __global__ void __launch_bounds__(128)
attention(const __nv_bfloat16* __restrict__ Q, const __nv_bfloat16* __restrict__ K, const __nv_bfloat16* __restrict__ V,
          const float* __restrict__ bias, __nv_bfloat16* __restrict__ O, float* __restrict__ log_sum_exp, int n, int keys) {
  __shared__ __align__(128) __nv_bfloat16 tile_q[kRows * kWidth], tile_k[kRows * kWidth], tile_v[kRows * kWidth];
  const int head = blockIdx.y, first = blockIdx.x * kRows, thread = threadIdx.x, lane = thread & 31, warp = thread >> 5;
  const size_t base = static_cast<size_t>(head) * n * kWidth;
  auto fetch = [&](__nv_bfloat16* tile, const __nv_bfloat16* from, int start, int end) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int id = thread + i * 128, row = id >> 3, piece = id & 7;
      const bool inside = start + row < end;
      copy_async(shared_address(tile + place(row, piece)),
                 from + base + (inside ? static_cast<size_t>(start + row) * kWidth + piece * 8 : 0), inside);
    }
    commit_copies();
  };
  fetch(tile_q, Q, first, n);
  float out[8][4] = {}, most[2] = {-INFINITY, -INFINITY}, sum[2] = {0.f, 0.f};
  for (int start = 0; start < keys; start += kRows) {
    fetch(tile_k, K, start, keys);
    fetch(tile_v, V, start, keys);
    wait_copies<1>();
    __syncthreads();
    float score[8][4] = {};
#pragma unroll
    for (int k = 0; k < 4; k++) {
      uint32_t a[4], b[4];
      load_matrices(a, shared_address(tile_q + place(warp * 16 + (lane & 15), k * 2 + (lane >> 4))));
#pragma unroll
      for (int j = 0; j < 4; j++) {
        load_matrices(b, shared_address(tile_k + place(j * 16 + (lane & 7) + ((lane >> 4) << 3), k * 2 + (lane >> 3 & 1))));
        multiply_add(score[2 * j], a, b[0], b[1]);
        multiply_add(score[2 * j + 1], a, b[2], b[3]);
      }
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int query = first + warp * 16 + (lane >> 2) + half * 8;
      float highest = -INFINITY;
#pragma unroll
      for (int i = 0; i < 16; i++) {
        float& value = score[i >> 1][half * 2 + (i & 1)];
        const int key = start + (i >> 1) * 8 + (lane & 3) * 2 + (i & 1);
        const bool inside = key < keys && query < n;
        value = inside ? value + bias[static_cast<size_t>(head) * (2 * n - 1) + key - query + n - 1] : -INFINITY;
        highest = fmaxf(highest, value);
      }
      highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, 1));
      highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, 2));
      highest = fmaxf(highest, most[half]);
      const float shift = highest == -INFINITY ? 0.f : highest;
      const float keep = __expf(most[half] - shift);
      float part = 0.f;
#pragma unroll
      for (int i = 0; i < 16; i++) {
        float& value = score[i >> 1][half * 2 + (i & 1)];
        value = __expf(value - shift);
        part += value;
        out[i >> 1][half * 2 + (i & 1)] *= keep;
      }
      part += __shfl_xor_sync(~0u, part, 1);
      part += __shfl_xor_sync(~0u, part, 2);
      sum[half] = sum[half] * keep + part;
      most[half] = highest;
    }
    wait_copies<0>();
    __syncthreads();
#pragma unroll
    for (int k = 0; k < 4; k++) {
      const uint32_t a[4] = {pack(score[2 * k][0], score[2 * k][1]), pack(score[2 * k][2], score[2 * k][3]),
                             pack(score[2 * k + 1][0], score[2 * k + 1][1]), pack(score[2 * k + 1][2], score[2 * k + 1][3])};
#pragma unroll
      for (int j = 0; j < 4; j++) {
        uint32_t b[4];
        load_matrices_transposed(b, shared_address(tile_v + place(k * 16 + (lane & 15), j * 2 + (lane >> 4))));
        multiply_add(out[2 * j], a, b[0], b[1]);
        multiply_add(out[2 * j + 1], a, b[2], b[3]);
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const int query = first + warp * 16 + (lane >> 2) + half * 8;
    if (query >= n) continue;
    const float scale = sum[half] > 0.f ? 1.f / sum[half] : 0.f;
#pragma unroll
    for (int i = 0; i < 8; i++)
      *reinterpret_cast<__nv_bfloat162*>(O + base + static_cast<size_t>(query) * kWidth + i * 8 + (lane & 3) * 2) =
          __floats2bfloat162_rn(out[i][half * 2] * scale, out[i][half * 2 + 1] * scale);
    if ((lane & 3) == 0) log_sum_exp[static_cast<size_t>(head) * n + query] = most[half] + __logf(sum[half]);
  }
}
