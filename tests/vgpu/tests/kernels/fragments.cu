// D = A B + C, 16 x 16 x 16, twice: by CUDA's mma.h, which knows no lanes, and by mma.sync with every register
// filled by the formulas of the PTX manual's figures.
#include <mma.h>
#include <cuda_fp16.h>
#include "warp.cuh"

using namespace nvcuda;

template <typename T>
__device__ void by_header(const T* A, const T* B, const float* C, float* D) {
  wmma::fragment<wmma::matrix_a, 16, 16, 16, T, wmma::row_major> a;
  wmma::fragment<wmma::matrix_b, 16, 16, 16, T, wmma::col_major> b;
  wmma::fragment<wmma::accumulator, 16, 16, 16, float> c;
  wmma::load_matrix_sync(a, A, 16);
  wmma::load_matrix_sync(b, B, 16);
  wmma::load_matrix_sync(c, C, 16, wmma::mem_row_major);
  wmma::mma_sync(c, a, b, c);
  wmma::store_matrix_sync(D, c, 16, wmma::mem_row_major);
}
extern "C" __global__ void header_bf16(const __nv_bfloat16* A, const __nv_bfloat16* B, const float* C, float* D) { by_header(A, B, C, D); }
extern "C" __global__ void header_f16(const __half* A, const __half* B, const float* C, float* D) { by_header(A, B, C, D); }

// B is stored by columns: B[column * 16 + row].
#define BY_FIGURES(name, kind)                                                                                       \
  extern "C" __global__ void name(const uint16_t* A, const uint16_t* B, const float* C, float* D) {                 \
    const int group = threadIdx.x >> 2, thread = threadIdx.x & 3;                                                   \
    for (int half = 0; half < 2; half++) {                                                                          \
      uint32_t a[4], b[2];                                                                                          \
      float d[4];                                                                                                   \
      for (int i = 0; i < 4; i++) {                                                                                 \
        const int row = i % 2 == 0 ? group : group + 8, column = thread * 2 + (i < 2 ? 0 : 8);                      \
        a[i] = A[row * 16 + column] | A[row * 16 + column + 1] << 16;                                               \
        d[i] = C[(i < 2 ? group : group + 8) * 16 + half * 8 + thread * 2 + (i & 1)];                               \
      }                                                                                                             \
      for (int i = 0; i < 2; i++) {                                                                                 \
        const int row = thread * 2 + i * 8, column = half * 8 + group;                                              \
        b[i] = B[column * 16 + row] | B[column * 16 + row + 1] << 16;                                               \
      }                                                                                                             \
      asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." kind "." kind                                           \
                   ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"                                     \
                   : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                                 \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                             \
      for (int i = 0; i < 4; i++) D[(i < 2 ? group : group + 8) * 16 + half * 8 + thread * 2 + (i & 1)] = d[i];     \
    }                                                                                                               \
  }
BY_FIGURES(figures_bf16, "bf16")
BY_FIGURES(figures_f16, "f16")

// The same in two steps of k8, as mma.m16n8k8 has its own figures.
extern "C" __global__ void figures_bf16_k8(const uint16_t* A, const uint16_t* B, const float* C, float* D) {
  const int group = threadIdx.x >> 2, thread = threadIdx.x & 3;
  for (int half = 0; half < 2; half++) {
    float d[4];
    for (int i = 0; i < 4; i++) d[i] = C[(i < 2 ? group : group + 8) * 16 + half * 8 + thread * 2 + (i & 1)];
    for (int k = 0; k < 16; k += 8) {
      uint32_t a[2];
      for (int i = 0; i < 2; i++) a[i] = A[(group + 8 * i) * 16 + k + thread * 2] | A[(group + 8 * i) * 16 + k + thread * 2 + 1] << 16;
      const int column = half * 8 + group;
      const uint32_t b = B[column * 16 + k + thread * 2] | B[column * 16 + k + thread * 2 + 1] << 16;
      asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
                   : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(b));
    }
    for (int i = 0; i < 4; i++) D[(i < 2 ? group : group + 8) * 16 + half * 8 + thread * 2 + (i & 1)] = d[i];
  }
}

// f32 numbers of few bits, which tf32 keeps whole, in two steps of k8.
extern "C" __global__ void figures_tf32(const float* A, const float* B, const float* C, float* D) {
  const int group = threadIdx.x >> 2, thread = threadIdx.x & 3;
  for (int half = 0; half < 2; half++) {
    float d[4];
    for (int i = 0; i < 4; i++) d[i] = C[(i < 2 ? group : group + 8) * 16 + half * 8 + thread * 2 + (i & 1)];
    for (int k = 0; k < 16; k += 8) {
      uint32_t a[4], b[2];
      for (int i = 0; i < 4; i++) a[i] = __float_as_uint(A[(i % 2 == 0 ? group : group + 8) * 16 + k + thread + (i < 2 ? 0 : 4)]);
      for (int i = 0; i < 2; i++) b[i] = __float_as_uint(B[(half * 8 + group) * 16 + k + thread + 4 * i]);
      asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                   : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    }
    for (int i = 0; i < 4; i++) D[(i < 2 ? group : group + 8) * 16 + half * 8 + thread * 2 + (i & 1)] = d[i];
  }
}

// Fragments of A by ldmatrix and back by plain stores: every element must come home.
extern "C" __global__ void matrix_round_trip(const uint16_t* in, uint16_t* out, uint16_t* transposed) {
  __shared__ __align__(16) uint16_t tile[256];
  for (int i = threadIdx.x; i < 256; i += 32) tile[i] = in[i];
  __syncwarp();
  const int group = threadIdx.x >> 2, thread = threadIdx.x & 3;
  const uint32_t row = shared_address(tile + (threadIdx.x & 15) * 16 + (threadIdx.x >> 4) * 8);
  uint32_t a[4], t[4];
  load_matrices(a, row);
  load_matrices_transposed(t, row);
  for (int i = 0; i < 4; i++) {
    const int r = i % 2 == 0 ? group : group + 8, c = thread * 2 + (i < 2 ? 0 : 8);
    for (int part = 0; part < 2; part++) {
      out[r * 16 + c + part] = a[i] >> (16 * part);
      // Each 8 x 8 is turned in its place.
      transposed[(i % 2 * 8 + group) * 16 + c + part] = t[i] >> (16 * part);
    }
  }
}
