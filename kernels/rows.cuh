// A warp over one row, some neighbouring columns a lane: four where rows are f32, so that a request of the warp covers whole
// sectors; eight where they are bf16, and in epilogues, where a lane's columns are then one block of dropout's draws. The
// lanes of 64 columns are neighbours, whose sum of squares is one partial sum.
#pragma once
#include "dropout.cuh"
#include "number.cuh"

namespace promptmix {

constexpr int FLOAT_COLUMNS = 4;   // of a lane, on rows of f32
constexpr int PACKED_COLUMNS = 8;  // of a lane, on rows of bf16
constexpr int ROW_WARPS = 4;       // rows a block of 128 threads works on

template <int Count> struct Columns {
    float value[Count];
};

template <int Count, typename T> __device__ __forceinline__ Columns<Count> load_columns(const T* from) {
    Columns<Count> c;
#pragma unroll
    for (int i = 0; i < Count; i += 4) {
        const float4 four = load4(from + i);
        c.value[i] = four.x;
        c.value[i + 1] = four.y;
        c.value[i + 2] = four.z;
        c.value[i + 3] = four.w;
    }
    return c;
}
template <int Count, typename T> __device__ __forceinline__ void store_columns(T* to, const Columns<Count>& c) {
#pragma unroll
    for (int i = 0; i < Count; i += 4) store4(to + i, make_float4(c.value[i], c.value[i + 1], c.value[i + 2], c.value[i + 3]));
}
// Eight of bf16 are one access of 16 bytes.
template <> __device__ __forceinline__ Columns<8> load_columns<8, bf16>(const bf16* from) {
    const uint4 raw = *reinterpret_cast<const uint4*>(from);
    const float2 a = unpack_bf16(raw.x), b = unpack_bf16(raw.y), c = unpack_bf16(raw.z), d = unpack_bf16(raw.w);
    return {{a.x, a.y, b.x, b.y, c.x, c.y, d.x, d.y}};
}
template <> __device__ __forceinline__ void store_columns<8, bf16>(bf16* to, const Columns<8>& c) {
    *reinterpret_cast<uint4*>(to) = make_uint4(pack_bf16(c.value[0], c.value[1]), pack_bf16(c.value[2], c.value[3]),
                                               pack_bf16(c.value[4], c.value[5]), pack_bf16(c.value[6], c.value[7]));
}

// Eight columns of f32 a lane as above, of lanes 2i and 2i + 1 whose columns are neighbours: an access of the two is 32 bytes, a whole
// sector, where a lane by itself would leave half of it to its next. All lanes of a warp call these; a lane whose columns are not
// `inside` gets zeros, and stores nothing.
struct Pair {
    bool odd;
    bool even_inside, odd_inside;
    int offset;  // from a lane's own columns to its half of the even lane's

    __device__ __forceinline__ explicit Pair(bool inside) : odd((threadIdx.x & 1) != 0), offset(odd ? -4 : 0) {
        const bool other = __shfl_xor_sync(0xffffffffu, inside, 1);
        even_inside = odd ? other : inside;
        odd_inside = odd ? inside : other;
    }
};
// Gives the first half of the odd lane's columns for the second half of the even lane's.
__device__ __forceinline__ void exchange(Columns<8>& c) {
    const bool odd = (threadIdx.x & 1) != 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const float other = __shfl_xor_sync(0xffffffffu, odd ? c.value[i] : c.value[4 + i], 1);
        (odd ? c.value[i] : c.value[4 + i]) = other;
    }
}
// Of the even lane's columns and then of the odd lane's, the even lane gets the first half and the odd lane the second, until `exchange`
// brings each its own: what many such loads bring may come first.
__device__ __forceinline__ Columns<8> load_paired(const float* from, bool inside) {
    const Pair pair(inside);
    const float4 none = {};
    const float4 of_even = pair.even_inside ? load4(from + pair.offset) : none;
    const float4 of_odd = pair.odd_inside ? load4(from + pair.offset + 8) : none;
    return {{of_even.x, of_even.y, of_even.z, of_even.w, of_odd.x, of_odd.y, of_odd.z, of_odd.w}};
}
__device__ __forceinline__ void store_paired(float* to, Columns<8> c, bool inside) {
    const Pair pair(inside);
    exchange(c);
    if (pair.even_inside) store4(to + pair.offset, make_float4(c.value[0], c.value[1], c.value[2], c.value[3]));
    if (pair.odd_inside) store4(to + pair.offset + 8, make_float4(c.value[4], c.value[5], c.value[6], c.value[7]));
}

// Eight columns of f32 in shared memory, the lane's chunk of a row whose neighbours eight lanes share: every other four lanes
// take their halves the other way round, so that the eight lanes of a pass fall on all banks.
__device__ __forceinline__ Columns<8> load_shared(const float* from, int chunk) {
    const bool turned = (chunk & 4) != 0;
    const float4 one = load4(from + (turned ? 4 : 0)), other = load4(from + (turned ? 0 : 4));
    const float4 low = turned ? other : one, high = turned ? one : other;
    return {{low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w}};
}
__device__ __forceinline__ void store_shared(float* to, int chunk, const Columns<8>& c) {
    const bool turned = (chunk & 4) != 0;
    const float4 low = make_float4(c.value[0], c.value[1], c.value[2], c.value[3]);
    const float4 high = make_float4(c.value[4], c.value[5], c.value[6], c.value[7]);
    store4(to + (turned ? 4 : 0), turned ? high : low);
    store4(to + (turned ? 0 : 4), turned ? low : high);
}

// Multiplies a lane's columns, from `column` on, by their masks.
template <int Count> __device__ __forceinline__ void drop(Columns<Count>& c, const MaskRow& mask, int column) {
    if (!mask.any) return;
    uint4 drawn = mask.draw(column / 8);
    if (Count == 4 && (column & 4) != 0) drawn = make_uint4(drawn.z, drawn.w, 0, 0);
#pragma unroll
    for (int i = 0; i < Count; ++i) c.value[i] *= mask.factor(drawn, i);
}

// The sum of squares over the lanes of 64 columns. All lanes call it; one whose columns lie beyond the row brings zeros.
template <int Count> __device__ __forceinline__ float squares(const Columns<Count>& c) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < Count; ++i) sum = fmaf(c.value[i], c.value[i], sum);
#pragma unroll
    for (int step = NORM_COLUMNS / Count / 2; step > 0; step >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, step);
    return sum;
}

// Writes the partial sums of squares that this part of a row completes; called as `squares` is.
template <int Count>
__device__ __forceinline__ void write_partials(float* partials, int64_t row, int width, int column, const Columns<Count>& c) {
    const float sum = squares(c);
    const int count = (width + NORM_COLUMNS - 1) / NORM_COLUMNS;
    if (column % NORM_COLUMNS == 0 && column < width) partials[row * count + column / NORM_COLUMNS] = sum;
}

}  // namespace promptmix
