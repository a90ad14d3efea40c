// Small right kernels of compute capability 9.0, each of which one FAULT breaks in one way.
#include "warpgroup.cuh"

#ifndef FAULT
#define FAULT 0
#endif

// A tile that threads store is multiplied with itself by wgmma: D = A A^T, 64 x 64.
extern "C" __global__ void __launch_bounds__(128) square(const __nv_bfloat16* in, float* out) {
  extern __shared__ __align__(1024) unsigned char tile[];
  const uint32_t a = shared_address(tile);
  // Rows of 128 bytes, whose 16-byte pieces are permuted by the row.
  for (int i = threadIdx.x; i < 64 * 8; i += 128) {
    const int row = i / 8, piece = i % 8;
    *reinterpret_cast<uint4*>(tile + row * 128 + ((piece ^ (row & 7)) << 4)) = *reinterpret_cast<const uint4*>(in + row * 64 + piece * 8);
  }
#if FAULT == 1  // No fence between stores and the product.
  __syncthreads();
#elif FAULT == 2  // Behind the barrier every warp must fence for itself, and one alone does.
  __syncthreads();
  if (threadIdx.x < 32) fence_async();
#else
  fence_async();
  __syncthreads();
#endif
  float d[32];
  product_fence();
#pragma unroll
  for (int j = 0; j < 4; j++) product<0>(d, describe(a + 32 * j, 16, 1024), describe(a + 32 * j, 16, 1024), j);
  product_commit();
#if FAULT == 3  // Registers are read before the product is waited for.
  out[threadIdx.x] = d[0];
  product_wait<0>();
#elif FAULT == 4  // The tile is overwritten by stores before the product is waited for.
  __syncthreads();
  if (threadIdx.x == 0) *reinterpret_cast<float*>(tile) = 1.f;
  product_wait<0>();
#else
  product_wait<0>();
#endif
#if FAULT == 5  // Sums are changed and multiplied again without a fence.
#pragma unroll
  for (int i = 0; i < 32; i++) d[i] *= 2.f;
  product<0>(d, describe(a, 16, 1024), describe(a, 16, 1024), 1);
  product_commit();
  product_wait<0>();
#endif
#if FAULT == 6  // Three of the four warps go on.
  if (threadIdx.x < 96) {
    product_fence();
    product<0>(d, describe(a, 16, 1024), describe(a, 16, 1024), 1);
    product_commit();
    product_wait<0>();
  }
#endif
#pragma unroll
  for (int i = 0; i < 32; i++) {
    const int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4 + i % 4 / 2 * 8, column = i / 4 * 8 + threadIdx.x % 4 * 2 + i % 2;
    out[row * 64 + column] = d[i];
  }
}

// Turns the rows of a 32 x 32 tile around through shared memory, in and out by tensor copies.
extern "C" __global__ void __launch_bounds__(32) turn_rows(const __grid_constant__ TensorMap from, const __grid_constant__ TensorMap to) {
  __shared__ __align__(128) float tile[2][32][32];
  __shared__ uint64_t gate_object;
  const uint32_t gate = shared_address(&gate_object);
  if (threadIdx.x == 0) {
    gate_init(gate, 1);
    fence_gates();
    gate_expect(gate, 4096);
    fetch_box(shared_address(tile[0]), &from, gate, 0, 0);
  }
  __syncwarp();
#if FAULT != 14  // The copy is not waited for.
  gate_wait(gate, 0);
#endif
  for (int row = 0; row < 32; row++) tile[1][31 - row][threadIdx.x] = tile[0][row][threadIdx.x];
#if FAULT != 11  // No fence between stores and the bulk store.
  fence_async();
#endif
  __syncwarp();
  if (threadIdx.x == 0) {
    send_box(&to, shared_address(tile[1]), 0, 0);
    commit_bulk();
#if FAULT == 12  // The source is overwritten before the bulk store has read it.
    tile[1][0][0] = 7.f;
    fence_async();
#endif
#if FAULT != 13  // The block ends before the bulk store has read its source.
    wait_bulk_read();
#endif
  }
}

// Two blocks of a cluster exchange a number.
extern "C" __global__ void __cluster_dims__(2, 1, 1) exchange(const float* in, float* out) {
  __shared__ float mine;
  const int rank = cluster_rank();
  if (threadIdx.x == 0) mine = in[blockIdx.x];
#if FAULT == 21  // Nothing says that the other block has begun, and has written.
  __syncthreads();
#elif FAULT == 24  // Half of a warp does not come to an aligned barrier.
  if (threadIdx.x % 32 < 16) cluster_arrive();
  cluster_wait();
#else
  cluster_arrive();
  cluster_wait();
#endif
  if (threadIdx.x == 0) out[blockIdx.x] = peer_load(shared_address(&mine), rank ^ 1);
#if FAULT != 22  // The block may end while the other one still reads.
  cluster_arrive();
  cluster_wait();
#endif
}

// Two blocks of a cluster write and read one shared tile in turn.
extern "C" __global__ void __cluster_dims__(2, 1, 1) pass_on(const float* in, float* out) {
  __shared__ float tile[32];
  const int rank = cluster_rank();
  for (int step = 0; step < 2; step++) {
    tile[threadIdx.x] = in[(step * 2 + rank) * 32 + threadIdx.x];
    cluster_arrive();
    cluster_wait();
    out[(step * 2 + rank) * 32 + threadIdx.x] = peer_load(shared_address(tile + threadIdx.x), rank ^ 1);
#if FAULT == 23  // The tile is overwritten while the other block still reads.
    if (step == 1)
#endif
    {
      cluster_arrive();
      cluster_wait();
    }
  }
}

// A ring of one stage between a warp that writes and a warp that reads.
extern "C" __global__ void __launch_bounds__(64) hand_over(const float* in, float* out) {
  __shared__ float stage[32];
  __shared__ uint64_t gates[2];
  const uint32_t full = shared_address(gates), empty = full + 8;
  if (threadIdx.x == 0) {
    gate_init(full, 32);
#if FAULT == 31  // Fewer arrivals are expected than come.
    gate_init(empty, 16);
#else
    gate_init(empty, 32);
#endif
    fence_gates();
  }
#if FAULT != 34  // Nothing orders the initialisation before its use.
  __syncthreads();
#endif
  const int lane = threadIdx.x % 32;
  for (int step = 0; step < 4; step++) {
    if (threadIdx.x < 32) {
#if FAULT != 32  // The writer does not wait for the reader: a phase runs ahead of who waits for the one before.
      gate_wait(empty, step & 1 ^ 1);
#endif
      stage[lane] = in[step * 32 + lane];
      gate_arrive(full);
    } else {
#if FAULT == 33  // The reader waits for a phase that never comes.
      gate_wait(full, step == 3 ? 0 : step & 1);
      if (step == 3) gate_wait(full, 1), gate_wait(full, 0);
#else
      gate_wait(full, step & 1);
#endif
      out[step * 32 + lane] = stage[lane];
      gate_arrive(empty);
    }
  }
}

// y += x, by a grid that may begin before the grids before it have ended.
extern "C" __global__ void add_behind(const float* x, float* y) {
#if FAULT == 41  // Reads what an earlier grid wrote.
  const float early = y[threadIdx.x];
  asm volatile("griddepcontrol.wait;" ::: "memory");
  y[threadIdx.x] = early + x[threadIdx.x];
#elif FAULT == 42  // Writes before the wait.
  if (threadIdx.x == 0) y[64] = 1.f;
  asm volatile("griddepcontrol.wait;" ::: "memory");
  y[threadIdx.x] += x[threadIdx.x];
#elif FAULT == 43  // A grid of which no block waits: y is someone else's in this launch.
  if (x[threadIdx.x] < -1e30f) asm volatile("griddepcontrol.wait;" ::: "memory");
#elif FAULT == 44  // No such instruction at all.
  if (x[threadIdx.x] < -1e30f) __trap();
#else
  // Weights are nobody's output and may be read before.
  const float weight = x[threadIdx.x];
  asm volatile("griddepcontrol.wait;" ::: "memory");
  y[threadIdx.x] += weight;
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}
