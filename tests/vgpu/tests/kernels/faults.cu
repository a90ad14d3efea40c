// Small right kernels, each of which one FAULT breaks in one way.
#include "warp.cuh"

#ifndef FAULT
#define FAULT 0
#endif

// Sums a row of 256 numbers by a block of 256 threads.
extern "C" __global__ void block_sum(const float* in, float* out) {
  __shared__ float partial[8];
  const float sum = warp_sum(in[blockIdx.x * 256 + threadIdx.x]);
#if FAULT == 10  // Uninitialised shared memory: the last warp writes nothing.
  if (threadIdx.x % 32 == 0 && threadIdx.x < 224) partial[threadIdx.x / 32] = sum;
#else
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = sum;
#endif
#if FAULT == 1  // A removed barrier.
#elif FAULT == 2  // A barrier in divergent code.
  if (threadIdx.x % 32 < 16) __syncthreads();
#elif FAULT == 3  // Half of the warps never come.
  if (threadIdx.x < 128) asm volatile("bar.sync 1, 256;");
  __syncthreads();
#else
  __syncthreads();
#endif
  if (threadIdx.x == 0) {
    float total = 0.f;
    for (int i = 0; i < 8; i++) total += partial[i];
    out[blockIdx.x] = total;
  }
}

// Turns 32 x 32 numbers by one warp through shared memory.
extern "C" __global__ void turn_tile(const float* in, float* out) {
  __shared__ float tile[32][33];
  for (int row = 0; row < 32; row++) tile[row][threadIdx.x] = in[row * 32 + threadIdx.x];
#if FAULT != 4  // A missing __syncwarp.
  __syncwarp();
#endif
  for (int row = 0; row < 32; row++) out[row * 32 + threadIdx.x] = tile[threadIdx.x][row];
}

// y[i] = 2 x[i], the rows being `stride` apart.
extern "C" __global__ void scale_rows(const float* x, float* y, int rows, int columns, int stride) {
  const int row = blockIdx.x;
#if FAULT == 5  // One element past the end.
  for (int i = threadIdx.x; i <= columns; i += blockDim.x) y[(size_t)row * stride + i] = 2.f * x[(size_t)row * stride + i];
#elif FAULT == 6  // A product of 32 bits where 64 are needed: the offset goes below zero.
  for (int i = threadIdx.x; i < columns; i += blockDim.x) y[(row << 16) * stride + i] = 2.f * x[(row << 16) * stride + i];
#elif FAULT == 7  // Vectors where rows are not aligned to them.
  for (int i = threadIdx.x * 4; i < columns; i += blockDim.x * 4) {
    float4 v = *reinterpret_cast<const float4*>(x + (size_t)row * stride + i);
    *reinterpret_cast<float4*>(y + (size_t)row * stride + i) = make_float4(2 * v.x, 2 * v.y, 2 * v.z, 2 * v.w);
  }
#else
  for (int i = threadIdx.x; i < columns; i += blockDim.x) y[(size_t)row * stride + i] = 2.f * x[(size_t)row * stride + i];
#endif
}

// Adds all numbers into one, from every block.
extern "C" __global__ void add_all(const float* in, float* sum, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  const float part = warp_sum(i < n ? in[i] : 0.f);
  if (threadIdx.x % 32 == 0) {
#if FAULT == 8  // An atomic replaced by an addition.
    *sum += part;
#else
    atomicAdd(sum, part);
#endif
  }
}

// The last block to finish adds up what all blocks left, in order.
extern "C" __global__ void add_in_order(const float* in, float* partial, float* sum, unsigned* done) {
  __shared__ bool last;
  const float part = warp_sum(in[blockIdx.x * 32 + threadIdx.x]);
  if (threadIdx.x == 0) {
    partial[blockIdx.x] = part;
#if FAULT != 9  // A missing fence.
    __threadfence();
#endif
    last = atomicAdd(done, 1u) == gridDim.x - 1;
  }
  __syncwarp();
  if (last && threadIdx.x == 0) {
    __threadfence();
    float total = 0.f;
    for (int i = 0; i < gridDim.x; i++) total += partial[i];
    *sum = total;
  }
}

// Copies a tile of 128 numbers through shared memory with cp.async.
extern "C" __global__ void copy_tile(const float4* in, float4* out) {
  __shared__ float4 tile[32];
  copy_async(shared_address(tile + threadIdx.x), in + threadIdx.x, true);
  commit_copies();
#if FAULT != 11  // A missing wait.
  wait_copies<0>();
#endif
  __syncwarp();
  out[threadIdx.x] = tile[31 - threadIdx.x];
}

// A running sum kept in local memory.
extern "C" __global__ void local_sum(const int* pick, float* out, int n) {
  float values[16];
#if FAULT == 12  // Local memory that is read before it is written.
  for (int i = 0; i < n; i++) values[i] = i;
#else
  for (int i = 0; i < 16; i++) values[i] = i;
#endif
  values[pick[threadIdx.x + 32] & 15] = 7.f;
  out[threadIdx.x] = values[pick[threadIdx.x] & 15];
}

// Every lane takes its neighbour's number.
extern "C" __global__ void take_neighbour(const float* in, float* out, int n) {
#if FAULT == 13  // A full mask where not all lanes come.
  if (threadIdx.x < n) out[threadIdx.x] = __shfl_xor_sync(~0u, in[threadIdx.x], 1);
#else
  const float value = __shfl_xor_sync(~0u, threadIdx.x < n ? in[threadIdx.x] : 0.f, 1);
  if (threadIdx.x < n) out[threadIdx.x] = value;
#endif
}

// Two steps over one shared tile.
extern "C" __global__ void two_steps(const float* in, float* out) {
  __shared__ float tile[128];
  for (int step = 0; step < 2; step++) {
    tile[threadIdx.x] = in[step * 128 + threadIdx.x];
    __syncthreads();
    out[step * 128 + threadIdx.x] = tile[127 - threadIdx.x];
#if FAULT != 14  // The tile is overwritten while others still read it.
    __syncthreads();
#endif
  }
}

// Blocks of 128 write their own rows, neighbours apart.
extern "C" __global__ void write_rows(float* out, int n) {
#if FAULT == 15  // Rows that overlap by one.
  const int first = blockIdx.x * (n - 1);
#else
  const int first = blockIdx.x * n;
#endif
  for (int i = threadIdx.x; i < n; i += blockDim.x) out[first + i] = blockIdx.x + 1.f;
}

// Waits for a bulk copy by its mbarrier.
extern "C" __global__ void copy_bulk(const float4* in, float4* out) {
  __shared__ __align__(16) float4 tile[64];
  __shared__ __align__(8) unsigned long long barrier;
  const uint32_t gate = shared_address(&barrier);
  if (threadIdx.x == 0) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(gate));
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(gate), "r"(1024) : "memory");
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                     shared_address(tile)), "l"(in), "r"(1024), "r"(gate) : "memory");
  }
#if FAULT != 16  // A bulk copy that is not waited for.
  asm volatile("{\n.reg .pred done;\nWAIT:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], 0;\n@!done bra WAIT;\n}" ::"r"(gate) : "memory");
#endif
  out[threadIdx.x] = tile[63 - threadIdx.x];
}

// A sum that starts from a value, by choice.
extern "C" __global__ void start_from(const float* in, float* out, int n) {
  float sum;
#if FAULT != 17  // A sum that starts from nothing.
  sum = 0.f;
#endif
  for (int i = 0; i < n; i++) asm volatile("add.f32 %0, %0, %1;" : "+f"(sum) : "f"(in[i * 32 + threadIdx.x]));
  out[threadIdx.x] = sum;
}
