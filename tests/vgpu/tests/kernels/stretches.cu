// Copies and products that touch many chunks of 16 bytes at once, of which one may be wrong: its place is an argument, so
// that tests plant the same fault at the first chunk, at the last, and beside them.
#include "warpgroup.cuh"

__device__ __forceinline__ void fetch(uint32_t to, const void* from, int bytes, uint32_t gate) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to), "l"(from), "r"(bytes), "r"(gate) : "memory");
}
__device__ __forceinline__ void fetch_chunks(unsigned char* tile, const unsigned char* in, int first, int end, uint32_t gate) {
  if (first >= end) return;
  asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(gate), "r"((end - first) * 16) : "memory");
  fetch(shared_address(tile) + first * 16, in + first * 16, (end - first) * 16, gate);
}

// How warps 1 and 2 read a chunk: not at all, one word, all of it by one lane, or all of it by four lanes.
__device__ __forceinline__ float read_chunk(const unsigned char* tile, int chunk, int how) {
  const volatile float* words = reinterpret_cast<const volatile float*>(tile + chunk * 16);
  const int lane = threadIdx.x % 32;
  if (how == 1 && lane == 5) return words[2];
  if (how == 2 && lane == 5) {
    const float4 all = *reinterpret_cast<const float4*>(tile + chunk * 16);
    return all.x + all.w;
  }
  if (how == 3 && lane < 4) return words[lane];
  return 0.f;
}

// A tile of 64 chunks is stored and read by warps 1 and 2; then warp 0 copies into its chunks from `first` to `end`. Of the
// readers only those that a bit of `synced` names meet warp 0 at the barrier in between. With two blocks in the cluster the
// second copies, and the readers are those of the first.
template <int kBlocks>
__device__ __forceinline__ void readers(const unsigned char* in, float* out, int chunk, int how_1, int how_2, int synced, int first, int end) {
  __shared__ __align__(128) unsigned char tile[64 * 16];
  __shared__ uint64_t gate_object;
  const uint32_t gate = shared_address(&gate_object);
  const int warp = threadIdx.x / 32, rank = kBlocks > 1 ? cluster_rank() : 0;
  for (int i = threadIdx.x; i < 64; i += 96) reinterpret_cast<uint4*>(tile)[i] = reinterpret_cast<const uint4*>(in)[63 - i];
  if (threadIdx.x == 0) {
    gate_init(gate, 1);
    fence_gates();
  }
  fence_async();
  __syncthreads();
  if (kBlocks > 1) {
    cluster_arrive();
    cluster_wait();
  }
  float value = 0.f;
  if (warp > 0) {
    const int how = warp == 1 ? how_1 : how_2;
    if (kBlocks == 1) value = read_chunk(tile, chunk, how);
    if (kBlocks > 1 && rank == 0 && how > 0 && threadIdx.x % 32 == 5) value = peer_load(shared_address(tile) + chunk * 16 + 8, 1);
  }
  if (kBlocks > 1) {
    if (synced == 3) {
      cluster_arrive();
      cluster_wait();
    }
  } else if (warp == 0 || synced >> (warp - 1) & 1) {
    asm volatile("bar.sync 1, %0;" ::"r"(32 + 32 * (synced & 1) + 16 * (synced & 2)) : "memory");
  }
  if (threadIdx.x == 0 && rank == kBlocks - 1) {
    fetch_chunks(tile, in, first, end, gate);
    gate_arrive(gate);
    gate_wait(gate, 0);
  }
  // Everybody's value is used.
  if (value != 0.f) out[blockIdx.x * 96 + threadIdx.x] = value;
  if (kBlocks > 1) {
    cluster_arrive();
    cluster_wait();
  }
}
extern "C" __global__ void readers_of_block(const unsigned char* in, float* out, int chunk, int how_1, int how_2, int synced, int first, int end) {
  readers<1>(in, out, chunk, how_1, how_2, synced, first, end);
}
extern "C" __global__ void __cluster_dims__(2, 1, 1) readers_of_pair(const unsigned char* in, float* out, int chunk, int how_1, int how_2, int synced, int first, int end) {
  readers<2>(in, out, chunk, how_1, how_2, synced, first, end);
}

// A tile of 64 rows of 128 bytes, which bulk copies bring as it lies in memory, multiplied with itself. One chunk is wrong
// in a way: 1 comes late and is not waited for, 2 never comes, 3 is stored to by one lane in part and not fenced, 4 likewise and
// fenced, 5 is copied to again before the product is waited for, 6 is stored to in part by warp 0 and fenced, and no barrier
// follows, 7 is as 4 with a value that was never computed. The tile is followed by one more chunk, which no product reads.
extern "C" __global__ void __launch_bounds__(128) square(const unsigned char* in, float* out, int chunk, int wrong) {
  extern __shared__ __align__(1024) unsigned char tile[];
  __shared__ uint64_t gate_objects[2];
  const uint32_t a = shared_address(tile), gate = shared_address(gate_objects), late = gate + 8;
  if (threadIdx.x == 0) {
    gate_init(gate, 1);
    gate_init(late, 1);
    fence_gates();
    const int hole = wrong == 1 || wrong == 2 ? chunk : 513;
    fetch_chunks(tile, in, 0, hole, gate);
    fetch_chunks(tile, in, hole + 1, 513, gate);
    gate_arrive(gate);
    if (wrong == 1) fetch_chunks(tile, in, hole, hole + 1, late);
  }
  __syncthreads();
  gate_wait(gate, 0);
  if ((wrong == 3 || wrong == 4) && threadIdx.x == 37) {
    *reinterpret_cast<volatile unsigned short*>(tile + chunk * 16 + 6) = 0x3f80;
    if (wrong == 4) fence_async();
  }
  if (wrong == 7 && threadIdx.x == 37) {
    asm volatile("{\n\t.reg .b16 none;\n\tst.shared.u16 [%0], none;\n\t}" ::"r"(a + chunk * 16 + 6) : "memory");
    fence_async();
  }
  __syncthreads();
  if (wrong == 6 && threadIdx.x == 5) {
    *reinterpret_cast<volatile unsigned short*>(tile + chunk * 16 + 6) = 0x3f80;
    fence_async();
  }
  __syncwarp();
  float d[32];
  product_fence();
#pragma unroll
  for (int j = 0; j < 4; j++) product<0>(d, describe(a + 32 * j, 16, 1024), describe(a + 32 * j, 16, 1024), j);
  product_commit();
  if (wrong == 5) {
    __syncthreads();
    if (threadIdx.x == 0) fetch_chunks(tile, in, chunk, chunk + 1, late);
  }
  product_wait<0>();
  if (threadIdx.x == 0 && (wrong == 1 || wrong == 5)) {
    gate_arrive(late);
    gate_wait(late, 0);
  }
#pragma unroll
  for (int i = 0; i < 32; i++) {
    const int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4 + i % 4 / 2 * 8, column = i / 4 * 8 + threadIdx.x % 4 * 2 + i % 2;
    out[row * 64 + column] = d[i];
  }
}
