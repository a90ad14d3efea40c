// C (m x n) = A (m x k) B^T, B being n x k, or A B, B being k x n: bf16 in, f32 out, by tensor copies and wgmma.
//
// A block has three warpgroups. The first brings tiles of 128 x 64 of A and 64 x 64 of B through a ring of stages; the others
// compute 64 x 64 each. Ragged edges come as zeros and are not stored. In the pairs, two blocks of a cluster share B: each
// brings half of it for both.
//
// FAULT_* break it in one way each, for the table of planted faults.
#include "warpgroup.cuh"

constexpr int kRows = 128, kColumns = 64, kStep = 64, kStages = 3;
constexpr int kBytesA = kRows * kStep * 2, kBytesB = kColumns * kStep * 2, kBytes = kBytesA + kBytesB;
#ifdef FAULT_BYTES_FEWER
constexpr int kExpected = kBytes - 128;
#elif defined(FAULT_BYTES_MORE)
constexpr int kExpected = kBytes + 128;
#elif defined(FAULT_BYTES_OF_ONE)
constexpr int kExpected = kBytesA;
#else
constexpr int kExpected = kBytes;
#endif

template <bool kTurned, int kBlocks>
__device__ __forceinline__ void body(const TensorMap* map_a, const TensorMap* map_b, float* out, int m, int n, int k) {
  extern __shared__ __align__(1024) unsigned char stages[];
  __shared__ uint64_t gates[2 * kStages];
  const uint32_t base = shared_address(stages), full = shared_address(gates), empty = full + 8 * kStages;
  const int group = threadIdx.x / 128, thread = threadIdx.x % 128, rank = kBlocks > 1 ? cluster_rank() : 0;
  const int first_row = blockIdx.x * kRows, first_column = blockIdx.y * kColumns, steps = (k + kStep - 1) / kStep;
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; i++) {
      gate_init(full + 8 * i, 1);
#ifdef FAULT_ARRIVALS
      gate_init(empty + 8 * i, 1);
#else
      gate_init(empty + 8 * i, 2 * kBlocks);
#endif
    }
#ifndef FAULT_INIT_FENCE
    fence_gates();
#endif
  }
#ifdef FAULT_INIT_BARRIER
  if (kBlocks == 1) __syncwarp();
#else
  if (kBlocks == 1) __syncthreads();
#endif
  if (kBlocks > 1) {
    cluster_arrive();
    cluster_wait();
  }
  if (group == 0) {
#ifndef FAULT_REGISTERS
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
#endif
    if (thread == 0) {
      for (int step = 0, stage = 0, parity = 1; step < steps; step++) {
        gate_wait(empty + 8 * stage, parity);
        gate_expect(full + 8 * stage, kExpected);
        const uint32_t a = base + stage * kBytes, b = a + kBytesA;
#ifdef FAULT_COORDINATES
        fetch_box(a, map_a, full + 8 * stage, step * kStep, first_row + 4096);
#else
        fetch_box(a, map_a, full + 8 * stage, step * kStep, first_row);
#endif
        if (kBlocks == 1) {
          fetch_box(b, map_b, full + 8 * stage, kTurned ? first_column : step * kStep, kTurned ? step * kStep : first_column);
        } else {
          // Half of the rows of the box.
          const int half = rank * 32;
          fetch_box_for(b + half * 128, map_b, full + 8 * stage, kTurned ? first_column : step * kStep, (kTurned ? step * kStep : first_column) + half, 3);
        }
        if (++stage == kStages) stage = 0, parity ^= 1;
      }
    }
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    float d[32];
    for (int step = 0, stage = 0, parity = 0; step < steps; step++) {
#ifdef FAULT_PARITY
      gate_wait(full + 8 * stage, parity ^ 1);
#else
      gate_wait(full + 8 * stage, parity);
#endif
#ifndef FAULT_PRODUCT_FENCE
      product_fence();
#endif
      const uint32_t a = base + stage * kBytes + (group - 1) * 8192, b = base + stage * kBytes + kBytesA;
#pragma unroll
      for (int j = 0; j < 4; j++) {
#ifdef FAULT_DESCRIPTOR_START
        product<kTurned>(d, describe(a + 32 * j + (j == 3) * 128, 16, 1024), kTurned ? describe(b + 2048 * j, 8192, 1024) : describe(b + 32 * j, 16, 1024), step + j);
#elif defined(FAULT_DESCRIPTOR_BITS)
        product<kTurned>(d, describe(a + 32 * j, 16, 1024) | 1ull << 46, kTurned ? describe(b + 2048 * j, 8192, 1024) : describe(b + 32 * j, 16, 1024), step + j);
#elif defined(FAULT_DESCRIPTOR_REACH)
        product<kTurned>(d, describe(a + 32 * j, 16, 131072), kTurned ? describe(b + 2048 * j, 8192, 1024) : describe(b + 32 * j, 16, 1024), step + j);
#elif defined(FAULT_DESCRIPTOR_MODE)
        product<kTurned>(d, describe(a + 32 * j, 16, 1024) ^ 3ull << 62, kTurned ? describe(b + 2048 * j, 8192, 1024) : describe(b + 32 * j, 16, 1024), step + j);
#else
        product<kTurned>(d, describe(a + 32 * j, 16, 1024), kTurned ? describe(b + 2048 * j, 8192, 1024) : describe(b + 32 * j, 16, 1024), step + j);
#endif
      }
      product_commit();
#ifdef FAULT_RELEASE
      if (thread == 0) gate_arrive(empty + 8 * stage);
      product_wait<0>();
#else
#ifndef FAULT_PRODUCT_WAIT
      product_wait<0>();
#endif
      if (kBlocks == 1) {
        if (thread == 0) gate_arrive(empty + 8 * stage);
      } else if (thread < kBlocks) {
        gate_arrive_at(empty + 8 * stage, thread);
      }
#endif
      if (++stage == kStages) stage = 0, parity ^= 1;
    }
    const int row = first_row + (group - 1) * 64 + thread / 32 * 16 + thread % 32 / 4, column = first_column + thread % 4 * 2;
#pragma unroll
    for (int half = 0; half < 2; half++) {
#pragma unroll
      for (int i = 0; i < 16; i++) {
        const int r = row + 8 * half, c = column + i / 2 * 8 + i % 2;
        if (r < m && c < n) out[static_cast<size_t>(r) * n + c] = d[i / 2 * 4 + 2 * half + i % 2];
      }
    }
#ifdef FAULT_PRODUCT_WAIT
    product_wait<0>();
#endif
  }
  // Others may still write to this block's gates and stages.
  if (kBlocks > 1) {
    cluster_arrive();
    cluster_wait();
  }
}

#ifdef FAULT_GRID_CONSTANT
#define MAP TensorMap
// The parameter is changed, so the compiler keeps a copy of its own.
#define CHANGE(map) if (m < 0) map.opaque[n] = 1
#else
#define MAP const __grid_constant__ TensorMap
#define CHANGE(map)
#endif
#define ENTRY(name, turned, blocks)                                                                              \
  extern "C" __global__ void __launch_bounds__(384, 1) name(MAP map_a, MAP map_b, float* out, int m, int n, int k) { \
    CHANGE(map_a);                                                                                               \
    body<turned, blocks>(&map_a, &map_b, out, m, n, k);                                                          \
  }
ENTRY(product_rows, false, 1)
ENTRY(product_columns, true, 1)
ENTRY(product_rows_in_pairs, false, 2)
ENTRY(product_columns_in_pairs, true, 2)

// 64 x 64 = A (64 x 64) B^T (64 x 64) once by wgmma with both from shared memory, once with A from registers, and once by
// ldmatrix and mma.sync out of the same bytes.
extern "C" __global__ void __launch_bounds__(128) three_ways(MAP map_a, MAP map_b, float* shared_shared, float* register_shared, float* warps) {
  extern __shared__ __align__(1024) unsigned char tiles[];
  __shared__ uint64_t gate_object;
  const uint32_t a = shared_address(tiles), b = a + 8192, gate = shared_address(&gate_object);
  if (threadIdx.x == 0) {
    gate_init(gate, 1);
    fence_gates();
    gate_expect(gate, 16384);
    fetch_box(a, &map_a, gate, 0, 0);
    fetch_box(b, &map_b, gate, 0, 0);
  }
  __syncthreads();
  gate_wait(gate, 0);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  float d[32], e[32], f[8][4];
  uint32_t fragments[4][4];
  // Rows of 128 bytes, whose 16-byte pieces are permuted by the row.
  auto place = [](uint32_t tile, int row, int piece) { return tile + row * 128 + ((piece ^ (row & 7)) << 4); };
#pragma unroll
  for (int j = 0; j < 4; j++) load_matrices(fragments[j], place(a, warp * 16 + lane % 16, 2 * j + lane / 16));
  product_fence();
#pragma unroll
  for (int j = 0; j < 4; j++) product<0>(d, describe(a + 32 * j, 16, 1024), describe(b + 32 * j, 16, 1024), j);
#pragma unroll
  for (int j = 0; j < 4; j++) product_of(e, fragments[j], describe(b + 32 * j, 16, 1024), j);
  product_commit();
  product_wait<0>();
#pragma unroll
  for (int block = 0; block < 8; block++) {
#pragma unroll
    for (int i = 0; i < 4; i++) f[block][i] = 0.f;
#pragma unroll
    for (int j = 0; j < 4; j += 2) {
      uint32_t columns[4];
      load_matrices(columns, place(b, block * 8 + lane % 8, 2 * j + lane / 8));
      multiply_add(f[block], fragments[j], columns[0], columns[1]);
      multiply_add(f[block], fragments[j + 1], columns[2], columns[3]);
    }
  }
#pragma unroll
  for (int i = 0; i < 32; i++) {
    const int row = warp * 16 + lane / 4 + i % 4 / 2 * 8, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
    shared_shared[row * 64 + column] = d[i];
    register_shared[row * 64 + column] = e[i];
    warps[row * 64 + column] = f[i / 4][i % 4];
  }
}
