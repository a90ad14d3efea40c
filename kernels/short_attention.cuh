// Short attention's examples of five to sixteen rows: a 16x16 tile of the tensor cores a warp, whose rows lie in tiles of shared memory.
#pragma once
#include "attention_few.cuh"

namespace promptmix {

constexpr int MAX_ROWS = 16;  // of an example
constexpr int MASK_BYTES = MAX_ROWS * 2;  // of a warp: a bit a query and key
constexpr int TURNED_STRIDE = 48;  // bytes from row to row of probabilities: eight rows fall on all banks
constexpr int TURNED_BYTES = MAX_ROWS * TURNED_STRIDE;

// Starts copying a warp's rows, zeros after the last and after `width`.
template <int Width> __device__ __forceinline__ void copy_short(uint32_t tile, const void* from, int stride, const Short& of, int width) {
    constexpr int Chunks = Width / 8, AtOnce = 32 / Chunks;
    const int lane = threadIdx.x % 32, chunk = lane % Chunks;
    const bf16* const first = static_cast<const bf16*>(from) + of.row * stride + of.head * width;
    // Few instructions more than once rather than many once: a launch runs each piece of its code straight from memory.
#pragma unroll 1
    for (int i = 0; i < MAX_ROWS; i += AtOnce) {
        const int row = i + lane / Chunks;
        const bool any = row < of.rows && chunk * 8 < width;
        copy_async(tile + swizzled<Width>(of.warp_row + row, chunk), any ? first + static_cast<int64_t>(row) * stride + chunk * 8 : first, any);
    }
}

// Stores a warp's rows of a tile.
template <int Width>
__device__ __forceinline__ void store_short(const unsigned char* tile, void* to, int stride, const Short& of, int width) {
    constexpr int Chunks = Width / 8;
    const int chunk = threadIdx.x % 32 % Chunks;
    if (chunk * 8 >= width) return;
    bf16* const first = static_cast<bf16*>(to) + of.row * stride + of.head * width + chunk * 8;
#pragma unroll 1
    for (int row = threadIdx.x % 32 / Chunks; row < of.rows; row += 32 / Chunks) {
        *reinterpret_cast<uint4*>(first + static_cast<int64_t>(row) * stride) =
            *reinterpret_cast<const uint4*>(tile + swizzled<Width>(of.warp_row + row, chunk));
    }
}

// to = weights (16x16, in registers or turned, as left operand) times a warp's 16 rows of a tile.
template <int Width> __device__ __forceinline__ void weigh_rows(float (&to)[Width / 8][4], const uint32_t (&weights)[4], uint32_t tile, int row) {
#pragma unroll
    for (int block = 0; block < Width / 8; block += 2) {
        uint32_t right[4];
        right_columns<Width>(right, tile, block, row / 16);
        multiply(to[block], weights, right[0], right[1]);
        multiply(to[block + 1], weights, right[2], right[3]);
    }
}
__device__ __forceinline__ void pack_short(uint32_t (&to)[4], const float (&from)[2][4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) to[i] = pack_bf16(from[i / 2][i % 2 * 2], from[i / 2][i % 2 * 2 + 1]);
}

// The biases of a thread's scores, times log2 e; none for a key that its query does not see.
__device__ __forceinline__ void short_biases(float (&to)[2][4], const AttentionArguments& arguments, const Short& of) {
    const int lane = threadIdx.x % 32, max_distance = arguments.max_distance;
    const float* const bias = arguments.bias + static_cast<int64_t>(of.head) * (2 * max_distance + 1);
    float values[2][4] = {};
    // All loads come before the first use.
    if (arguments.bias != nullptr) {
#pragma unroll
        for (int j = 0; j < 2; ++j) {
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const int query = lane / 4 + e / 2 * 8, key = j * 8 + lane % 4 * 2 + e % 2;
                values[j][e] = read_frozen(bias + min(max(key - query + max_distance, 0), 2 * max_distance));
            }
        }
    }
#pragma unroll
    for (int j = 0; j < 2; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            const int query = lane / 4 + e / 2 * 8, key = j * 8 + lane % 4 * 2 + e % 2;
            to[j][e] = key < of.rows && !(arguments.causal && key > query) ? values[j][e] * LOG2_E : -INFINITY;
        }
    }
}

// Which keys each query keeps: a lane draws for eight keys of a query. Read after a warp's barrier.
__device__ __forceinline__ void draw_short(uint8_t* bits, const AttentionArguments& arguments, const Batch& batch, const Short& of) {
    const int lane = threadIdx.x % 32;
    const MaskRow row(arguments.mask, batch, of.example, lane / 2, of.head);
    const uint4 drawn = row.draw(lane % 2);
    uint32_t kept = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) kept |= (row.factor(drawn, i) != 0.0f ? 1u : 0u) << i;
    bits[lane] = static_cast<uint8_t>(kept);
}

// What dropout multiplies a thread's score by.
__device__ __forceinline__ float short_factor(const uint8_t* bits, int j, int e, float scale) {
    const int lane = threadIdx.x % 32, query = lane / 4 + e / 2 * 8;
    return factor_of_bit(bits[query * 2 + j], lane % 4 * 2 + e % 2, scale);
}

// What a warp asks for beside rows.
struct ShortBefore {
    float biases[2][4];
    float log_sum_exp[2];  // of backward, times log2 e
    float scale;           // of what dropout keeps
};
// `bits` has room for which keys are kept.
template <bool Dropped, bool Backward>
__device__ __forceinline__ ShortBefore load_short_before(const AttentionArguments& arguments, const Batch& batch, const Short& of,
                                                         uint8_t* bits) {
    ShortBefore before = {};
    short_biases(before.biases, arguments, of);
    if (Backward) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            // A row that does not exist has no probability.
            const int row = threadIdx.x % 32 / 4 + half * 8;
            const bool any = row < of.rows;
            before.log_sum_exp[half] = any ? arguments.log_sum_exp[(of.row + row) * arguments.heads + of.head] * LOG2_E : INFINITY;
        }
    }
    before.scale = 1.0f;
    if (Dropped) {
        draw_short(bits, arguments, batch, of);
        before.scale = arguments.mask.step->scale;
    }
    return before;
}

// Attention of a warp's rows of three tiles from `tiles` on: q, k and v.
template <int Width, bool Dropped>
__device__ __forceinline__ void attend_short(const AttentionArguments& arguments, const Short& of, unsigned char* tiles,
                                             const ShortBefore& before, const uint8_t* bits) {
    constexpr int TileBytes = 64 * Width * 2;
    const int width = arguments.width, lane = threadIdx.x % 32;
    const uint32_t base = shared_address(tiles);
    const float scale = before.scale, scale_log2 = arguments.softmax_scale * LOG2_E;
    float p[2][4] = {}, most[2] = {-INFINITY, -INFINITY}, sum[2] = {};
    rows_by_rows<Width, 2>(p, base, of.warp_row, base + TileBytes, of.warp_row);
#pragma unroll
    for (int j = 0; j < 2; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            p[j][e] = fmaf(p[j][e], scale_log2, before.biases[j][e]);
            most[e / 2] = fmaxf(most[e / 2], p[j][e]);
        }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) most[half] = quad_max(most[half]);
#pragma unroll
    for (int j = 0; j < 2; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            p[j][e] = power_of_two(p[j][e] - most[e / 2]);
            sum[e / 2] += p[j][e];
            if (Dropped) p[j][e] *= short_factor(bits, j, e, scale);
        }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) sum[half] = quad_sum(sum[half]);
    float out[Width / 8][4];
    uint32_t weights[4];
    pack_short(weights, p);
    weigh_rows<Width>(out, weights, base + 2 * TileBytes, of.warp_row);
    round_rows<Width>(tiles, out, __fdividef(1.0f, sum[0]), __fdividef(1.0f, sum[1]));
    store_short<Width>(tiles, arguments.o, arguments.heads * width, of, width);
    if (lane % 4 == 0) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int row = lane / 4 + half * 8;
            if (row < of.rows) arguments.log_sum_exp[(of.row + row) * arguments.heads + of.head] = (most[half] + log2f(sum[half])) * LN_2;
        }
    }
}

// Writes a warp's 16x16 numbers as bf16, and reads them turned, as the left operand.
__device__ __forceinline__ void store_turned(unsigned char* to, const float (&from)[2][4]) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
        unsigned char* const at = to + lane / 4 * TURNED_STRIDE + (j * 8 + lane % 4 * 2) * 2;
        *reinterpret_cast<uint32_t*>(at) = pack_bf16(from[j][0], from[j][1]);
        *reinterpret_cast<uint32_t*>(at + 8 * TURNED_STRIDE) = pack_bf16(from[j][2], from[j][3]);
    }
}
__device__ __forceinline__ void load_turned(uint32_t (&to)[4], uint32_t from) {
    const int lane = threadIdx.x % 32;
    load_matrices_transposed(to, from + (lane / 16 * 8 + lane % 8) * TURNED_STRIDE + lane / 8 % 2 * 16);
}
// The inner products of each row, from the 16x16 numbers that the gradients are made of:
// <d_q_i, q_i> = sum_j ds_ij (q_i · k_j), <d_k_j, k_j> = sum_i ds_ij (q_i · k_j) and <d_v_j, v_j> = sum_i p_ij (d_o_i · v_j).
__device__ __forceinline__ void store_inner(const AttentionArguments& arguments, const Short& of, const float (&scores)[2][4],
                                            const float (&ds)[2][4], const float (&d_p)[2][4], const float (&p)[2][4], float to_scale) {
    const int lane = threadIdx.x % 32, parts = arguments.inner_parts;
    float of_queries[2] = {}, of_keys[2][2] = {};
#pragma unroll
    for (int j = 0; j < 2; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            const float product = ds[j][e] * scores[j][e] * to_scale;
            of_queries[e / 2] += product;
            of_keys[j][e % 2] += fmaf(p[j][e], d_p[j][e], product);
        }
    }
    float* const to = arguments.inner + of.row * parts * arguments.heads + of.head;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const float sum = quad_sum(of_queries[half]);
        const int row = lane / 4 + half * 8;
        if (lane % 4 == 0 && row < of.rows) to[row * parts * arguments.heads] = sum;
    }
    if (parts != 2) return;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        float sum = of_keys[i / 2][i % 2];
#pragma unroll
        for (int step = 4; step < 32; step <<= 1) sum += __shfl_xor_sync(0xffffffffu, sum, step);
        const int row = i / 2 * 8 + lane % 4 * 2 + i % 2;
        if (lane < 4 && row < of.rows) to[(row * 2 + 1) * arguments.heads] = sum;
    }
}

// Backward of a warp's rows of four tiles from `tiles` on: q, k, v and d_o. `turned` is two times TURNED_BYTES of the warp's own.
template <int Width, bool Dropped>
__device__ __forceinline__ void attend_short_backward(const AttentionArguments& arguments, const Short& of, unsigned char* tiles,
                                                      unsigned char* turned, const ShortBefore& before, const uint8_t* bits) {
    constexpr int TileBytes = 64 * Width * 2;
    const int width = arguments.width;
    const uint32_t q = shared_address(tiles), k = q + TileBytes, v = q + 2 * TileBytes, d_o = q + 3 * TileBytes;
    const float scale = before.scale, scale_log2 = arguments.softmax_scale * LOG2_E;
    float scores[2][4] = {}, d_p[2][4] = {}, p[2][4], ds[2][4], delta[2] = {};
    rows_by_rows<Width, 2>(scores, q, of.warp_row, k, of.warp_row);
    rows_by_rows<Width, 2>(d_p, d_o, of.warp_row, v, of.warp_row);
#pragma unroll
    for (int j = 0; j < 2; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            const float factor = Dropped ? short_factor(bits, j, e, scale) : 1.0f;
            p[j][e] = power_of_two(fmaf(scores[j][e], scale_log2, before.biases[j][e] - before.log_sum_exp[e / 2]));
            ds[j][e] = d_p[j][e] * factor;
            delta[e / 2] = fmaf(p[j][e], ds[j][e], delta[e / 2]);
        }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) delta[half] = quad_sum(delta[half]);
#pragma unroll
    for (int j = 0; j < 2; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            ds[j][e] = p[j][e] * (ds[j][e] - delta[e / 2]);
            if (Dropped) p[j][e] *= short_factor(bits, j, e, scale);
        }
    }
    store_turned(turned, p);
    store_turned(turned + TURNED_BYTES, ds);
    __syncwarp();
    const uint32_t turned_p = shared_address(turned), turned_ds = turned_p + TURNED_BYTES;
    const float to_scale = arguments.softmax_scale;
    if (arguments.inner != nullptr) store_inner(arguments, of, scores, ds, d_p, p, to_scale);
    uint32_t weights[4];
    {
        float d_v[Width / 8][4];
        load_turned(weights, turned_p);
        weigh_rows<Width>(d_v, weights, d_o, of.warp_row);
        round_rows<Width>(tiles + 2 * TileBytes, d_v, 1.0f, 1.0f);
    }
    float d_q[Width / 8][4], d_k[Width / 8][4];
    pack_short(weights, ds);
    weigh_rows<Width>(d_q, weights, k, of.warp_row);
    load_turned(weights, turned_ds);
    weigh_rows<Width>(d_k, weights, q, of.warp_row);
    round_rows<Width>(tiles, d_q, to_scale, to_scale);
    round_rows<Width>(tiles + TileBytes, d_k, to_scale, to_scale);
#pragma unroll 1
    for (int part = 0; part < 3; ++part) {
        void* const to = part == 0 ? arguments.d_q : part == 1 ? arguments.d_k : arguments.d_v;
        store_short<Width>(tiles + part * TileBytes, to, part == 0 ? arguments.q_stride : arguments.kv_stride, of, width);
    }
}

}  // namespace promptmix
