// A warp over one row: lane l holds columns 8·l .. 8·l + 7 of each stretch of 256, so that a lane's columns are one block of
// dropout's draws, and eight neighbouring lanes cover the columns of one partial sum of squares.
#pragma once
#include "dropout.cuh"
#include "number.cuh"

namespace promptmix {

constexpr int LANE_COLUMNS = 8;
constexpr int WARP_COLUMNS = 32 * LANE_COLUMNS;
constexpr int ROW_WARPS = 4;  // rows a block of 128 threads works on

struct Columns {
    float value[LANE_COLUMNS];
};

template <typename T> __device__ __forceinline__ Columns load_columns(const T* from) {
    const float4 low = load4(from), high = load4(from + 4);
    return {{low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w}};
}
template <typename T> __device__ __forceinline__ void store_columns(T* to, const Columns& c) {
    store4(to, make_float4(c.value[0], c.value[1], c.value[2], c.value[3]));
    store4(to + 4, make_float4(c.value[4], c.value[5], c.value[6], c.value[7]));
}
template <> __device__ __forceinline__ Columns load_columns<bf16>(const bf16* from) {
    const uint4 raw = *reinterpret_cast<const uint4*>(from);
    const float2 a = unpack_bf16(raw.x), b = unpack_bf16(raw.y), c = unpack_bf16(raw.z), d = unpack_bf16(raw.w);
    return {{a.x, a.y, b.x, b.y, c.x, c.y, d.x, d.y}};
}
template <> __device__ __forceinline__ void store_columns<bf16>(bf16* to, const Columns& c) {
    *reinterpret_cast<uint4*>(to) = make_uint4(pack_bf16(c.value[0], c.value[1]), pack_bf16(c.value[2], c.value[3]),
                                               pack_bf16(c.value[4], c.value[5]), pack_bf16(c.value[6], c.value[7]));
}

// Multiplies a lane's columns, from `column` on, by their masks.
__device__ __forceinline__ void drop(Columns& c, const MaskRow& mask, int column) {
    if (!mask.any) return;
    const uint4 drawn = mask.draw(column / LANE_COLUMNS);
#pragma unroll
    for (int i = 0; i < LANE_COLUMNS; ++i) c.value[i] *= mask.factor(drawn, i);
}

// Writes the partial sums of squares that this stretch of a row completes. All lanes call it; a lane whose columns lie
// beyond the row brings zeros.
__device__ __forceinline__ void write_partials(float* partials, int64_t row, int width, int column, const Columns& c) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < LANE_COLUMNS; ++i) sum = fmaf(c.value[i], c.value[i], sum);
#pragma unroll
    for (int step = 4; step > 0; step >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, step);
    const int count = (width + NORM_COLUMNS - 1) / NORM_COLUMNS;
    if (column % NORM_COLUMNS == 0 && column < width) partials[row * count + column / NORM_COLUMNS] = sum;
}

}  // namespace promptmix
