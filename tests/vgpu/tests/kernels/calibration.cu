// Kernels whose counters are known by hand.
#include "warp.cuh"

// Turns 32 x 32 floats by one warp; PITCH is the distance of rows in floats, SWIZZLE spreads columns.
template <int kPitch, bool kSwizzle>
__device__ void turn(const float* in, float* out) {
  __shared__ float tile[32 * kPitch];
  const int lane = threadIdx.x;
  for (int row = 0; row < 32; row++) tile[row * kPitch + (kSwizzle ? lane ^ row : lane)] = in[row * 32 + lane];
  __syncwarp();
  for (int row = 0; row < 32; row++) out[row * 32 + lane] = tile[lane * kPitch + (kSwizzle ? row ^ lane : row)];
}
extern "C" __global__ void turn_plain(const float* in, float* out) { turn<32, false>(in, out); }
extern "C" __global__ void turn_padded(const float* in, float* out) { turn<33, false>(in, out); }
extern "C" __global__ void turn_swizzled(const float* in, float* out) { turn<32, true>(in, out); }

// Every lane reads two words on: two lanes on every other bank.
extern "C" __global__ void shared_stride_two(float* out) {
  __shared__ float tile[64];
  tile[threadIdx.x] = threadIdx.x;
  tile[threadIdx.x + 32] = threadIdx.x;
  __syncwarp();
  out[threadIdx.x] = tile[threadIdx.x * 2];
}

// Lanes read `stride` floats apart.
extern "C" __global__ void global_stride(const float* in, float* out, int stride) { out[threadIdx.x] = in[threadIdx.x * stride]; }

// 16 bytes a lane.
extern "C" __global__ void global_vector(const float4* in, float4* out) { out[threadIdx.x] = in[threadIdx.x]; }

// ldmatrix.x4 of rows that are `pitch` bytes apart.
extern "C" __global__ void matrix_rows(uint32_t* out, int pitch) {
  extern __shared__ __align__(128) unsigned char memory[];
  for (int i = threadIdx.x; i < 32 * pitch / 4; i += 32) reinterpret_cast<uint32_t*>(memory)[i] = i;
  __syncwarp();
  uint32_t d[4];
  load_matrices(d, shared_address(memory) + threadIdx.x * pitch);
  out[threadIdx.x] = d[0] + d[1] + d[2] + d[3];
}

// Half of the lanes take another way.
extern "C" __global__ void part_ways(const int* in, float* out) {
  float value = in[threadIdx.x];
  if (in[threadIdx.x] > 15) {
    for (int i = 0; i < in[0]; i++) value = sinf(value);
    out[threadIdx.x] = value;
  } else {
    for (int i = 0; i < in[0]; i++) value = cosf(value) * 3.f;
    out[threadIdx.x + 32] = value;
  }
}
