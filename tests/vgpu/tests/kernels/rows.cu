// Kernels that go by rows: norms, softmax, embedding, dropout, the prompt mix, the optimizer.
#include "warp.cuh"

__device__ float block_reduce(float value, float* partial, bool maximum) {
  value = maximum ? warp_max(value) : warp_sum(value);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
  __syncthreads();
  float total = maximum ? -INFINITY : 0.f;
  for (int i = 0; i < blockDim.x / 32; i++) total = maximum ? fmaxf(total, partial[i]) : total + partial[i];
  __syncthreads();
  return total;
}

// y = x / rms(x) * gain, bf16 rows by a warp each, 16 bytes a lane; r = 1 / rms is kept. D is a multiple of 8.
extern "C" __global__ void __launch_bounds__(128)
rms_norm(const __nv_bfloat16* __restrict__ x, const __nv_bfloat16* __restrict__ gain, __nv_bfloat16* __restrict__ y,
         float* __restrict__ r, int rows, int D, float epsilon) {
  const int row = blockIdx.x * 4 + threadIdx.x / 32, lane = threadIdx.x % 32;
  if (row >= rows) return;
  const uint4* from = reinterpret_cast<const uint4*>(x + static_cast<size_t>(row) * D);
  float sum = 0.f;
  for (int i = lane; i < D / 8; i += 32) {
    const uint4 piece = from[i];
    const __nv_bfloat162* pairs = reinterpret_cast<const __nv_bfloat162*>(&piece);
    for (int j = 0; j < 4; j++) {
      const float2 pair = __bfloat1622float2(pairs[j]);
      sum += pair.x * pair.x + pair.y * pair.y;
    }
  }
  const float scale = rsqrtf(warp_sum(sum) / D + epsilon);
  if (lane == 0) r[row] = scale;
  for (int i = lane; i < D / 8; i += 32) {
    const uint4 piece = from[i], gains = reinterpret_cast<const uint4*>(gain)[i];
    const __nv_bfloat162* pairs = reinterpret_cast<const __nv_bfloat162*>(&piece);
    const __nv_bfloat162* gain_pairs = reinterpret_cast<const __nv_bfloat162*>(&gains);
    uint4 out;
    for (int j = 0; j < 4; j++) {
      const float2 pair = __bfloat1622float2(pairs[j]), g = __bfloat1622float2(gain_pairs[j]);
      reinterpret_cast<__nv_bfloat162*>(&out)[j] = __floats2bfloat162_rn(pair.x * scale * g.x, pair.y * scale * g.y);
    }
    reinterpret_cast<uint4*>(y + static_cast<size_t>(row) * D)[i] = out;
  }
}

// dx = r dy - r^3 (dy . x / D) x, f32, a block a row.
extern "C" __global__ void rms_norm_backward(const float* x, const float* dy, const float* r, float* dx, int D) {
  __shared__ float partial[32];
  const size_t base = static_cast<size_t>(blockIdx.x) * D;
  float dot = 0.f;
  for (int i = threadIdx.x; i < D; i += blockDim.x) dot += x[base + i] * dy[base + i];
  dot = block_reduce(dot, partial, false);
  const float scale = r[blockIdx.x], back = scale * scale * scale * dot / D;
  for (int i = threadIdx.x; i < D; i += blockDim.x) dx[base + i] = scale * dy[base + i] - back * x[base + i];
}

// Loss of every row and d_logits = softmax - one-hot, from bf16 logits; label -100 leaves a row out.
extern "C" __global__ void cross_entropy(const __nv_bfloat16* logits, const long long* labels, float* d_logits, float* loss, int V) {
  __shared__ float partial[32];
  const size_t base = static_cast<size_t>(blockIdx.x) * V;
  const long long label = labels[blockIdx.x];
  float most = -INFINITY, sum = 0.f;
  for (int i = threadIdx.x; i < V; i += blockDim.x) most = fmaxf(most, __bfloat162float(logits[base + i]));
  most = block_reduce(most, partial, true);
  for (int i = threadIdx.x; i < V; i += blockDim.x) sum += __expf(__bfloat162float(logits[base + i]) - most);
  const float log_sum_exp = most + __logf(block_reduce(sum, partial, false));
  for (int i = threadIdx.x; i < V; i += blockDim.x) {
    const float p = __expf(__bfloat162float(logits[base + i]) - log_sum_exp);
    d_logits[base + i] = label == -100 ? 0.f : p - (i == label);
  }
  if (threadIdx.x == 0) loss[blockIdx.x] = label == -100 ? 0.f : log_sum_exp - __bfloat162float(logits[base + label]);
}

// Rows of the embedding of ragged examples, each behind `prompt` rows that are left alone.
extern "C" __global__ void embed_ragged(const int* ids, const int* offsets, const uint4* table, uint4* out, int prompt, int pieces) {
  const int example = blockIdx.y, length = offsets[example + 1] - offsets[example];
  const int token = blockIdx.x;
  if (token >= length) return;
  const size_t to = static_cast<size_t>(offsets[example] + token + (example + 1) * prompt) * pieces;
  const size_t from = static_cast<size_t>(ids[offsets[example] + token]) * pieces;
  for (int i = threadIdx.x; i < pieces; i += blockDim.x) out[to + i] = table[from + i];
}

// Philox4x32-10 dropout: 8 neighbours share one draw, 16 bits each.
extern "C" __global__ void dropout(const float* x, float* y, int n, unsigned key0, unsigned key1, unsigned threshold, float scale) {
  const int group = blockIdx.x * blockDim.x + threadIdx.x;
  if (group * 8 >= n) return;
  unsigned c0 = group, c1 = 0, c2 = 0, c3 = 0, k0 = key0, k1 = key1;
#pragma unroll
  for (int round = 0; round < 10; round++) {
    const unsigned h0 = __umulhi(0xD2511F53u, c0), l0 = 0xD2511F53u * c0;
    const unsigned h1 = __umulhi(0xCD9E8D57u, c2), l1 = 0xCD9E8D57u * c2;
    c0 = h1 ^ c1 ^ k0; c1 = l1; c2 = h0 ^ c3 ^ k1; c3 = l0;
    k0 += 0x9E3779B9u; k1 += 0xBB67AE85u;
  }
  const unsigned words[4] = {c0, c1, c2, c3};
#pragma unroll
  for (int i = 0; i < 8; i++)
    if (group * 8 + i < n) y[group * 8 + i] = ((words[i / 2] >> (16 * (i % 2))) & 0xffffu) >= threshold ? x[group * 8 + i] * scale : 0.f;
}

// a = softmax of scores over S sources, then Z = target + sum_j a_j P_j, a block an example and row.
extern "C" __global__ void prompt_mix(const float* scores, const float* prompts, const float* target, float* weights, float* Z, int S, int M, int D) {
  extern __shared__ float a[];
  __shared__ float partial[32];
  const int example = blockIdx.y, row = blockIdx.x;
  float most = -INFINITY, sum = 0.f;
  for (int j = threadIdx.x; j < S; j += blockDim.x) most = fmaxf(most, scores[example * S + j]);
  most = block_reduce(most, partial, true);
  for (int j = threadIdx.x; j < S; j += blockDim.x) {
    a[j] = expf(scores[example * S + j] - most);
    sum += a[j];
  }
  sum = block_reduce(sum, partial, false);
  for (int j = threadIdx.x; j < S; j += blockDim.x) {
    a[j] /= sum;
    if (row == 0) weights[example * S + j] = a[j];
  }
  __syncthreads();
  for (int i = threadIdx.x; i < D; i += blockDim.x) {
    float value = target[static_cast<size_t>(row) * D + i];
    for (int j = 0; j < S; j++) value = fmaf(a[j], prompts[(static_cast<size_t>(j) * M + row) * D + i], value);
    Z[(static_cast<size_t>(example) * M + row) * D + i] = value;
  }
}

// Sums of squares of the gradient, a block each, and a flag that a number was not finite.
extern "C" __global__ void gradient_norm(const float* gradient, float* partial_sums, int* is_bad, int n) {
  __shared__ float partial[32];
  float sum = 0.f;
  bool bad = false;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
    sum += gradient[i] * gradient[i];
    bad |= !isfinite(gradient[i]);
  }
  if (__syncthreads_or(bad) && threadIdx.x == 0) atomicOr(is_bad, 1);
  sum = block_reduce(sum, partial, false);
  if (threadIdx.x == 0) partial_sums[blockIdx.x] = sum;
}

// AdamW with the norm of all blocks summed in their order, the clip, and nothing at all on a bad gradient.
extern "C" __global__ void adamw(float* p, float* m, float* v, const float* gradient, const float* partial_sums, int blocks,
                                 const int* is_bad, const float* rate_and_step, float clip, float decay, int n) {
  if (*is_bad) return;
  float total = 0.f;
  for (int i = 0; i < blocks; i++) total += partial_sums[i];
  const float norm = sqrtf(total), factor = norm > clip ? clip / norm : 1.f;
  const float rate = rate_and_step[0], step = rate_and_step[1];
  const float fix1 = 1.f - powf(0.9f, step), fix2 = 1.f - powf(0.999f, step);
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
    const float g = gradient[i] * factor;
    const float first = m[i] = 0.9f * m[i] + 0.1f * g;
    const float second = v[i] = 0.999f * v[i] + 0.001f * g * g;
    p[i] = p[i] * (1.f - rate * decay) - rate * (first / fix1) / (sqrtf(second / fix2) + 1e-8f);
  }
}

// Greedy pick: the highest logit, the lowest index on a tie, packed into one 64-bit maximum.
extern "C" __global__ void pick_highest(const float* logits, unsigned long long* best, int V) {
  unsigned long long found = 0;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < V; i += gridDim.x * blockDim.x) {
    const int bits = __float_as_int(logits[i]);
    const unsigned ordered = bits < 0 ? ~bits : bits | 0x80000000u;
    const unsigned long long one = static_cast<unsigned long long>(ordered) << 32 | (0xffffffffu - i);
    found = one > found ? one : found;
  }
  for (int offset = 16; offset > 0; offset /= 2) {
    const unsigned long long other = __shfl_down_sync(~0u, found, offset);
    found = other > found ? other : found;
  }
  if (threadIdx.x % 32 == 0) atomicMax(best, found);
}
