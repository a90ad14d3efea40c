// Attention over packed examples: of an encoder or decoder to itself, or of decoder rows to encoder rows.
//
//   s_ij = softmax_scale q_i · k_j + bias[j - i],  p = softmax_j(s)·mask,  o_i = sum_j p_ij v_j,  log_sum_exp_i
//   d_v_j = sum_i p_ij d_o_i;  ds_ij = softmax_ij·(d_o_i · v_j·mask - delta_i), delta_i = d_o_i · o_i
//   d_q_i = softmax_scale sum_j ds_ij k_j;  d_k_j = softmax_scale sum_i ds_ij q_i;  inner = the row's <d_q, q> and <d_k, k> + <d_v, v>, for the norm's backward
//
// T5's softmax_scale is 1. The bias is frozen: one short row a head, looked up by j - i, and no gradient of it.
// Shapes: q [queries, H·K], k and v [keys, H·K] with strides, bias [H, 2·max_distance + 1] f32; K up to 128, a multiple of 8.
// Grid: x over tiles of 64 rows of one example (the descriptor's tile map), of backward those of keys before those of queries, which are
// left out where d_q is not wanted; y over heads; 128 threads, a warp 16 rows.
// bf16: flash style, tensor cores, keys and values (or queries and d_o) in two stages of cp.async, swizzled tiles; nothing
// of size n x n leaves the chip. Backward has blocks of a tile of keys and blocks of a tile of queries: no atomics.
// f32: a warp a row, a lane a key; for verification.
// Bytes: forward reads q once and k, v once for every tile of queries of the example, writes o and log_sum_exp. Backward
// keeps q, k, v, o and log_sum_exp.
// On sm_80, with a bias of reach 128: registers a thread, bytes of shared memory a block, blocks a multiprocessor at once:
//   attention_64 124 42996 3, attention_dropped_64 152 44020 3, attention_128 160 83956 1, attention_dropped_128 176 84980 1,
//   attention_delta_bf16 31 0 16, attention_delta_f32 30 0 16, attention_backward_64 168 52212 3, attention_backward_dropped_64 176 53236 2,
//   attention_backward_128 222 101364 1, attention_backward_dropped_128 230 102388 1, attention_f32 44 0 10, attention_backward_f32 72 0 7
#include "attention_tile.cuh"
#include "dependent.cuh"

using namespace promptmix;

// By mma.sync: a warp's products read its own rows, and need no other warp.
template <int Width> struct WarpProducts {
    using Rows = uint32_t;  // where their tile lies

    static __device__ __forceinline__ void show_copies() {}
    static __device__ __forceinline__ void hold(Rows& to, uint32_t tile) { to = tile; }
    template <int Blocks>
    static __device__ __forceinline__ void by_rows(float (&to)[Blocks][4], Rows left, uint32_t right, int from) {
        rows_by_rows<Width, Blocks>(to, left, threadIdx.x / 32 * 16, right, from);
    }
    template <int Blocks>
    static __device__ __forceinline__ void two_by_rows(float (&to)[Blocks][4], Rows left, uint32_t right, float (&second)[Blocks][4],
                                                       Rows second_left, uint32_t second_right, int from) {
        by_rows(to, left, right, from);
        by_rows(second, second_left, second_right, from);
    }
    template <int Blocks>
    static __device__ __forceinline__ void add_weighted(float (&to)[Width / 8][4], const float (&weights)[Blocks][4], uint32_t tile, int from) {
        weighted_rows<Width, Blocks>(to, weights, tile, from);
    }
    template <int Blocks>
    static __device__ __forceinline__ void add_two_weighted(float (&to)[Width / 8][4], const float (&weights)[Blocks][4], uint32_t tile,
                                                            float (&second)[Width / 8][4], const float (&second_weights)[Blocks][4],
                                                            uint32_t second_tile, int from) {
        add_weighted(second, second_weights, second_tile, from);
        add_weighted(to, weights, tile, from);
    }
};

extern "C" __global__ void __launch_bounds__(128, 4) attention_64(AttentionArguments arguments) {
    wait_for_earlier_launches();
    attention_forward<WarpProducts<64>, 64, false>(arguments);
}
extern "C" __global__ void __launch_bounds__(128, 3) attention_dropped_64(AttentionArguments arguments) {
    wait_for_earlier_launches();
    attention_forward<WarpProducts<64>, 64, true>(arguments);
}
extern "C" __global__ void __launch_bounds__(128, 1) attention_128(AttentionArguments arguments) {
    wait_for_earlier_launches();
    attention_forward<WarpProducts<128>, 128, false>(arguments);
}
extern "C" __global__ void __launch_bounds__(128, 1) attention_dropped_128(AttentionArguments arguments) {
    wait_for_earlier_launches();
    attention_forward<WarpProducts<128>, 128, true>(arguments);
}

// delta = sum of d_o·o over a head's columns: a warp a row and head.
template <typename T> __device__ __forceinline__ void attention_delta(const AttentionArguments& arguments) {
    const Batch batch{arguments.batch};
    const int64_t index = static_cast<int64_t>(blockIdx.x) * 4 + threadIdx.x / 32;
    const int64_t row = index / arguments.heads;
    if (row >= batch.rows(arguments.query_side)) return;
    const int64_t start = index * arguments.width;
    float sum = 0.0f;
    for (int column = threadIdx.x % 32; column < arguments.width; column += 32) {
        sum = fmaf(to_float(static_cast<const T*>(arguments.d_o)[start + column]),
                   to_float(static_cast<const T*>(arguments.o)[start + column]), sum);
    }
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) arguments.delta[index] = sum;
}

extern "C" __global__ void __launch_bounds__(128) attention_delta_bf16(AttentionArguments arguments) {
    wait_for_earlier_launches();
    attention_delta<bf16>(arguments);
}
extern "C" __global__ void __launch_bounds__(128) attention_delta_f32(AttentionArguments arguments) {
    wait_for_earlier_launches();
    attention_delta<float>(arguments);
}

// So many blocks have room in the shared memory of a multiprocessor: registers for more would be spilled for nothing.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1200
#define BACKWARD_BLOCKS 1
#else
#define BACKWARD_BLOCKS 3
#endif
extern "C" __global__ void __launch_bounds__(128, BACKWARD_BLOCKS) attention_backward_64(AttentionArguments arguments) {
    wait_for_earlier_launches();
    attention_backward<WarpProducts<64>, 64, false>(arguments);
}
extern "C" __global__ void __launch_bounds__(128, 2) attention_backward_dropped_64(AttentionArguments arguments) {
    wait_for_earlier_launches();
    attention_backward<WarpProducts<64>, 64, true>(arguments);
}
extern "C" __global__ void __launch_bounds__(128, 1) attention_backward_128(AttentionArguments arguments) {
    wait_for_earlier_launches();
    attention_backward<WarpProducts<128>, 128, false>(arguments);
}
extern "C" __global__ void __launch_bounds__(128, 1) attention_backward_dropped_128(AttentionArguments arguments) {
    wait_for_earlier_launches();
    attention_backward<WarpProducts<128>, 128, true>(arguments);
}

// f32. A warp works on one row of a tile; a lane on one key (or query) of 32 at a time, then on columns lane, lane + 32, ..
constexpr int LANE_PARTS = 4;  // columns a lane holds: K up to 128

// The column of a lane's part, the last one for lanes beyond it: a warp that shuffles must not part, so they compute too, and
// what they have is never stored.
__device__ __forceinline__ int column_of(int lane, int part, int width) { return min(lane + part * 32, width - 1); }

__device__ __forceinline__ float dot_f32(const float* a, const float* b, int width) {
    float sum = 0.0f;
    for (int i = 0; i < width; ++i) sum = fmaf(a[i], b[i], sum);
    return sum;
}

// Finds this warp's row of the tile: four warps take every fourth row. Returns false when the tile has no such row.
#define FOR_ROWS_OF_TILE(row, rows) for (int row = threadIdx.x / 32; row < min(64, rows); row += 4)

__device__ __forceinline__ float mask_f32(const AttentionArguments& arguments, const Batch& batch, const Tile& tile, int head, int query,
                                          int key) {
    const MaskRow row(arguments.mask, batch, tile.example, query, head);
    return row.any ? row.factor(row.draw(key / 8), key % 8) : 1.0f;
}

__device__ __forceinline__ float bias_f32(const AttentionArguments& arguments, int head, int query, int key) {
    if (arguments.bias == nullptr) return 0.0f;
    const int slot = min(max(key - query + arguments.max_distance, 0), 2 * arguments.max_distance);
    return arguments.bias[static_cast<int64_t>(head) * (2 * arguments.max_distance + 1) + slot];
}

extern "C" __global__ void __launch_bounds__(128) attention_f32(AttentionArguments arguments) {
    wait_for_earlier_launches();
    const Batch batch{arguments.batch};
    const Tile tile(arguments, batch, false, blockIdx.x);
    if (!tile.any) return;
    const int head = blockIdx.y, width = arguments.width, lane = threadIdx.x % 32;
    const int64_t total = static_cast<int64_t>(arguments.heads) * width;
    const float* const k = static_cast<const float*>(arguments.k) + tile.key_row * arguments.kv_stride + head * width;
    const float* const v = static_cast<const float*>(arguments.v) + tile.key_row * arguments.kv_stride + head * width;
    FOR_ROWS_OF_TILE(row, tile.queries - tile.first) {
        const int query = tile.first + row;
        const float* const q = static_cast<const float*>(arguments.q) + (tile.query_row + query) * arguments.q_stride + head * width;
        float most = -INFINITY, sum = 0.0f, out[LANE_PARTS] = {};
        for (int first = 0; first < tile.keys; first += 32) {
            // Every lane works, one past the last key on the last: a warp that shuffles must not part.
            const int key = first + lane, safe = min(key, tile.keys - 1);
            const float product = dot_f32(q, k + static_cast<int64_t>(safe) * arguments.kv_stride, width);
            const float added = bias_f32(arguments, head, query, key);
            const float score = sees(arguments, tile, query, key) ? fmaf(product, arguments.softmax_scale, added) : -INFINITY;
            const float next = fmaxf(most, warp_max(score));
            if (next == -INFINITY) continue;
            const float shrink = expf(most - next), p = expf(score - next);
            sum = sum * shrink + warp_sum(p);
            most = next;
            const float kept = p * mask_f32(arguments, batch, tile, head, query, safe);
            for (int part = 0; part < LANE_PARTS; ++part) out[part] *= shrink;
            for (int j = 0; j < 32 && first + j < tile.keys; ++j) {
                const float weight = __shfl_sync(0xffffffffu, kept, j);
                const float* const row_v = v + static_cast<int64_t>(first + j) * arguments.kv_stride;
                for (int part = 0; part < LANE_PARTS; ++part) {
                    if (part * 32 < width) out[part] = fmaf(weight, row_v[column_of(lane, part, width)], out[part]);
                }
            }
        }
        float* const o = static_cast<float*>(arguments.o) + (tile.query_row + query) * total + head * width;
        for (int part = 0; part < LANE_PARTS; ++part) {
            if (lane + part * 32 < width) o[lane + part * 32] = out[part] / sum;
        }
        if (lane == 0) arguments.log_sum_exp[(tile.query_row + query) * arguments.heads + head] = most + logf(sum);
    }
}

__device__ __forceinline__ void queries_f32(const AttentionArguments& arguments) {
    const Batch batch{arguments.batch};
    const Tile tile(arguments, batch, false, blockIdx.x - arguments.key_tiles);
    if (!tile.any) return;
    const int head = blockIdx.y, width = arguments.width, lane = threadIdx.x % 32;
    const int64_t total = static_cast<int64_t>(arguments.heads) * width;
    const float* const k = static_cast<const float*>(arguments.k) + tile.key_row * arguments.kv_stride + head * width;
    const float* const v = static_cast<const float*>(arguments.v) + tile.key_row * arguments.kv_stride + head * width;
    const int rows = arguments.scope == PROMPT ? batch.prompt_length() : tile.queries;
    FOR_ROWS_OF_TILE(row, rows - tile.first) {
        const int query = tile.first + row;
        const int64_t packed = tile.query_row + query;
        const int64_t to = arguments.scope == PROMPT ? static_cast<int64_t>(tile.example) * rows + query : packed;
        const float* const q = static_cast<const float*>(arguments.q) + packed * arguments.q_stride + head * width;
        const float* const d_o = static_cast<const float*>(arguments.d_o) + packed * total + head * width;
        const float log_sum_exp = arguments.log_sum_exp[packed * arguments.heads + head];
        const float delta = arguments.delta[packed * arguments.heads + head];
        float out[LANE_PARTS] = {};
        for (int first = 0; first < tile.keys; first += 32) {
            const int key = first + lane, safe = min(key, tile.keys - 1);
            const int64_t skipped = static_cast<int64_t>(safe) * arguments.kv_stride;
            const float score = fmaf(dot_f32(q, k + skipped, width), arguments.softmax_scale, bias_f32(arguments, head, query, safe));
            const float p = sees(arguments, tile, query, key) ? expf(score - log_sum_exp) : 0.0f;
            const float ds = p * (dot_f32(d_o, v + skipped, width) * mask_f32(arguments, batch, tile, head, query, safe) - delta);
            for (int j = 0; j < 32 && first + j < tile.keys; ++j) {
                const float weight = __shfl_sync(0xffffffffu, ds, j);
                const float* const row_k = k + static_cast<int64_t>(first + j) * arguments.kv_stride;
                for (int part = 0; part < LANE_PARTS; ++part) {
                    if (part * 32 < width) out[part] = fmaf(weight, row_k[column_of(lane, part, width)], out[part]);
                }
            }
        }
        float* const d_q = static_cast<float*>(arguments.d_q) + to * arguments.q_stride + head * width;
        float inner = 0.0f;
        for (int part = 0; part < LANE_PARTS; ++part) {
            const int column = lane + part * 32;
            if (column < width) {
                out[part] *= arguments.softmax_scale;
                d_q[column] = out[part];
                inner = fmaf(out[part], q[column], inner);
            }
        }
        inner = warp_sum(inner);
        if (lane == 0 && arguments.inner != nullptr) arguments.inner[to * arguments.inner_parts * arguments.heads + head] = inner;
    }
}

__device__ __forceinline__ void keys_f32(const AttentionArguments& arguments) {
    const Batch batch{arguments.batch};
    const Tile tile(arguments, batch, true, blockIdx.x);
    if (!tile.any) return;
    const int head = blockIdx.y, width = arguments.width, lane = threadIdx.x % 32;
    const int64_t total = static_cast<int64_t>(arguments.heads) * width;
    const float* const q = static_cast<const float*>(arguments.q) + tile.query_row * arguments.q_stride + head * width;
    const float* const d_o = static_cast<const float*>(arguments.d_o) + tile.query_row * total + head * width;
    const int rows = arguments.scope == PROMPT ? batch.prompt_length() : tile.keys;
    FOR_ROWS_OF_TILE(row, rows - tile.first) {
        const int key = tile.first + row;
        const int64_t packed = tile.key_row + key;
        const int64_t to = arguments.scope == PROMPT ? static_cast<int64_t>(tile.example) * rows + key : packed;
        const float* const k = static_cast<const float*>(arguments.k) + packed * arguments.kv_stride + head * width;
        const float* const v = static_cast<const float*>(arguments.v) + packed * arguments.kv_stride + head * width;
        float d_k[LANE_PARTS] = {}, d_v[LANE_PARTS] = {};
        for (int first = 0; first < tile.queries; first += 32) {
            const int query = first + lane, safe = min(query, tile.queries - 1);
            const int64_t at = (tile.query_row + safe) * arguments.heads + head;
            const float product = dot_f32(q + static_cast<int64_t>(safe) * arguments.q_stride, k, width);
            const float score = fmaf(product, arguments.softmax_scale, bias_f32(arguments, head, safe, key));
            const bool any = query < tile.queries && sees(arguments, tile, query, key);
            const float p = any ? expf(score - arguments.log_sum_exp[at]) : 0.0f;
            const float factor = mask_f32(arguments, batch, tile, head, safe, key), kept = p * factor;
            const float ds = p * (dot_f32(d_o + safe * total, v, width) * factor - arguments.delta[at]);
            for (int j = 0; j < 32 && first + j < tile.queries; ++j) {
                const float of_k = __shfl_sync(0xffffffffu, ds, j), of_v = __shfl_sync(0xffffffffu, kept, j);
                const float* const row_q = q + static_cast<int64_t>(first + j) * arguments.q_stride;
                const float* const row_d_o = d_o + (first + j) * total;
                for (int part = 0; part < LANE_PARTS; ++part) {
                    if (part * 32 >= width) break;
                    d_k[part] = fmaf(of_k, row_q[column_of(lane, part, width)], d_k[part]);
                    d_v[part] = fmaf(of_v, row_d_o[column_of(lane, part, width)], d_v[part]);
                }
            }
        }
        const int64_t start = to * arguments.kv_stride + head * width;
        float inner = 0.0f;
        for (int part = 0; part < LANE_PARTS; ++part) {
            const int column = lane + part * 32;
            if (column < width) {
                d_k[part] *= arguments.softmax_scale;
                static_cast<float*>(arguments.d_k)[start + column] = d_k[part];
                static_cast<float*>(arguments.d_v)[start + column] = d_v[part];
                inner = fmaf(d_k[part], k[column], fmaf(d_v[part], v[column], inner));
            }
        }
        inner = warp_sum(inner);
        if (lane == 0 && arguments.inner_parts == 2) arguments.inner[(to * 2 + 1) * arguments.heads + head] = inner;
    }
}

extern "C" __global__ void __launch_bounds__(128) attention_backward_f32(AttentionArguments arguments) {
    wait_for_earlier_launches();
    if (static_cast<int>(blockIdx.x) >= arguments.key_tiles) return queries_f32(arguments);
    keys_f32(arguments);
}
