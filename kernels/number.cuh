// The two number formats of matrix operands, and loads and stores of several at once.
//
// bf16 is the working format: it has the exponent of f32, and T5's feed-forward leaves the range of f16. f32 is the
// slower one that verification runs in. Accumulation, the residual stream and everything trained are f32 in both.
#pragma once
#include <cuda_bf16.h>
#include <cstdint>

namespace promptmix {

using bf16 = __nv_bfloat16;

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(bf16 value) { return __bfloat162float(value); }

template <typename T> __device__ __forceinline__ T from_float(float value);
template <> __device__ __forceinline__ float from_float<float>(float value) { return value; }
template <> __device__ __forceinline__ bf16 from_float<bf16>(float value) { return __float2bfloat16_rn(value); }

// Two f32 as one register of bf16, the first in the low half.
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&pair);
}
__device__ __forceinline__ float2 unpack_bf16(uint32_t pair) {
    return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
}

// Four neighbours at once; the address must be a multiple of four elements.
__device__ __forceinline__ float4 load4(const float* from) { return *reinterpret_cast<const float4*>(from); }
__device__ __forceinline__ float4 load4(const bf16* from) {
    const uint2 raw = *reinterpret_cast<const uint2*>(from);
    const float2 low = unpack_bf16(raw.x), high = unpack_bf16(raw.y);
    return make_float4(low.x, low.y, high.x, high.y);
}
__device__ __forceinline__ void store4(float* to, float4 value) { *reinterpret_cast<float4*>(to) = value; }
__device__ __forceinline__ void store4(bf16* to, float4 value) {
    *reinterpret_cast<uint2*>(to) = make_uint2(pack_bf16(value.x, value.y), pack_bf16(value.z, value.w));
}

// Sums over the 32 lanes of a warp, in one fixed order; every lane gets the sum.
__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
    for (int step = 16; step > 0; step >>= 1) value += __shfl_xor_sync(0xffffffffu, value, step);
    return value;
}
__device__ __forceinline__ float warp_max(float value) {
#pragma unroll
    for (int step = 16; step > 0; step >>= 1) value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, step));
    return value;
}

// Columns of a residual row that one partial sum of squares covers: a row of D has ceil(D / 64) of them. They leave the
// kernel that writes the row and are summed in column order by every reader, so no pass of its own makes r.
constexpr int NORM_COLUMNS = 64;

// A row's reciprocal root mean square from its partial sums of squares.
struct Norm {
    const float* partials;   // [rows, ceil(width / NORM_COLUMNS)]
    int width;               // D
    float epsilon;

    __device__ __forceinline__ int count() const { return (width + NORM_COLUMNS - 1) / NORM_COLUMNS; }
    __device__ __forceinline__ float reciprocal_rms(int64_t row) const {
        const int n = count();
        const float* const of_row = partials + row * n;
        float sum = 0.0f;
        if (n % 4 == 0) {
            for (int i = 0; i < n; i += 4) {
                const float4 four = load4(of_row + i);
                sum = sum + four.x + four.y + four.z + four.w;
            }
        } else {
            for (int i = 0; i < n; ++i) sum += of_row[i];
        }
        return rsqrtf(sum / static_cast<float>(width) + epsilon);
    }
};

}  // namespace promptmix
