// Attention over packed examples: of an encoder or decoder to itself, or of decoder rows to encoder rows.
//
//   s_ij = q_i · k_j + bias[j - i],  p = softmax_j(s)·mask,  o_i = sum_j p_ij v_j,  log_sum_exp_i
//   d_v_j = sum_i p_ij d_o_i;  ds_ij = softmax_ij·(d_o_i · v_j·mask - delta_i), delta_i = d_o_i · o_i
//   d_q_i = sum_j ds_ij k_j;   d_k_j = sum_i ds_ij q_i;   inner = the row's <d_q, q> and <d_k, k> + <d_v, v>, for the norm's backward
//
// No 1 / sqrt(K). The bias is frozen: one short row a head, looked up by j - i, and no gradient of it.
// Shapes: q [queries, H·K], k and v [keys, H·K] with strides, bias [H, 2·reach + 1] f32; K up to 128, a multiple of 8.
// Grid: x over tiles of 64 rows of one example (the descriptor's tile map), y over heads; 128 threads, a warp 16 rows.
// bf16: flash style, tensor cores, keys and values (or queries and d_o) in two stages of cp.async, swizzled tiles; nothing
// of size n x n leaves the chip. Backward is two kernels, one a tile of queries and one a tile of keys: no atomics.
// f32: a warp a row, a lane a key; for verification.
// Bytes: forward reads q once and k, v once for every tile of queries of the example, writes o and log_sum_exp. Backward
// keeps q, k, v, o and log_sum_exp.
// On sm_80, with a bias of reach 128: registers a thread, bytes of shared memory a block, blocks a multiprocessor at once:
//   attention_64 148 44036 3, attention_128 128 84996 1, attention_queries_64 168 52228 3,
//   attention_queries_128 204 101380 1, attention_keys_64 168 52228 3, attention_keys_128 255 101380 1,
//   attention_delta_bf16 31 0 16, attention_delta_f32 30 0 16, attention_f32 48 0 10, attention_queries_f32 64 0 8,
//   attention_keys_f32 64 0 8
#include "attention.cuh"

using namespace promptmix;

// Bytes of shared memory behind the tiles: two masks of 64x64 bits, log_sum_exp and delta of two stages, the bias.
constexpr int MASK_BYTES = 64 * 8;
constexpr int SIDE_BYTES = 2 * MASK_BYTES + 4 * 64 * 4;

template <int Width> __device__ __forceinline__ void attention_forward(const AttentionArguments& arguments) {
    constexpr int TileBytes = 64 * Width * 2;
    extern __shared__ __align__(128) unsigned char shared[];
    unsigned char* const side = shared + 5 * TileBytes;
    float* const bias = reinterpret_cast<float*>(side + SIDE_BYTES);
    const Batch batch{arguments.batch};
    const Tile tile(arguments, batch, false);
    if (!tile.any) return;
    const int head = blockIdx.y, width = arguments.width;
    const int lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 * 16;
    const uint32_t base = shared_address(shared);
    const bf16* const q = static_cast<const bf16*>(arguments.q) + (tile.query_row + tile.first) * arguments.q_stride + head * width;
    const bf16* const k = static_cast<const bf16*>(arguments.k) + tile.key_row * arguments.kv_stride + head * width;
    const bf16* const v = static_cast<const bf16*>(arguments.v) + tile.key_row * arguments.kv_stride + head * width;
    const int rows = tile.queries - tile.first;
    const int seen = arguments.causal ? min(tile.keys, tile.first + 64) : tile.keys;
    const int stages = (seen + 63) / 64;
    const auto load = [&](int stage) {
        const uint32_t to = base + TileBytes * (1 + 2 * (stage & 1));
        copy_tile<Width>(to, k + static_cast<int64_t>(stage) * 64 * arguments.kv_stride, tile.keys - stage * 64, arguments.kv_stride, width);
        copy_tile<Width>(to + TileBytes, v + static_cast<int64_t>(stage) * 64 * arguments.kv_stride, tile.keys - stage * 64,
                         arguments.kv_stride, width);
        commit_copies();
    };
    copy_tile<Width>(base, q, rows, arguments.q_stride, width);
    load(0);
    load_bias(bias, arguments, head);
    const float scale = arguments.mask.step != nullptr ? arguments.mask.step->scale : 1.0f;
    float out[Width / 8][4] = {};
    float most[2] = {-INFINITY, -INFINITY}, sum[2] = {0.0f, 0.0f};
    for (int stage = 0; stage < stages; ++stage) {
        uint8_t* const bits = side + (stage & 1) * MASK_BYTES;
        draw_mask(bits, arguments, batch, tile, head, tile.first, stage * 64);
        wait_for_copies<0>();
        __syncthreads();
        if (stage + 1 < stages) load(stage + 1);
        const uint32_t keys = base + TileBytes * (1 + 2 * (stage & 1));
        float scores[8][4] = {};
        rows_by_rows<Width>(scores, base, warp_row, keys);
        float next[2] = {most[0], most[1]};
#pragma unroll
        for (int j = 0; j < 8; ++j) {
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const int query = tile.first + warp_row + lane / 4 + e / 2 * 8, key = stage * 64 + j * 8 + lane % 4 * 2 + e % 2;
                scores[j][e] = sees(arguments, tile, query, key) ? scores[j][e] + bias_of(bias, arguments, query, key) : -INFINITY;
                next[e / 2] = fmaxf(next[e / 2], scores[j][e]);
            }
        }
        float shrink[2];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            next[half] = quad_max(next[half]);
            shrink[half] = __expf(most[half] - next[half]);
            sum[half] *= shrink[half];
            most[half] = next[half];
        }
#pragma unroll
        for (int j = 0; j < 8; ++j) {
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                scores[j][e] = __expf(scores[j][e] - most[e / 2]);
                sum[e / 2] += scores[j][e];
                if (arguments.mask.step != nullptr) {
                    scores[j][e] *= kept_factor(bits, scale, warp_row + lane / 4 + e / 2 * 8, j * 8 + lane % 4 * 2 + e % 2);
                }
            }
        }
#pragma unroll
        for (int block = 0; block < Width / 8; ++block) {
#pragma unroll
            for (int e = 0; e < 4; ++e) out[block][e] *= shrink[e / 2];
        }
        weighted_rows<Width>(out, scores, keys + TileBytes);
    }
    sum[0] = quad_sum(sum[0]);
    sum[1] = quad_sum(sum[1]);
    const int64_t total = static_cast<int64_t>(arguments.heads) * width;
    bf16* const o = static_cast<bf16*>(arguments.o) + (tile.query_row + tile.first) * total + head * width;
    // The tile of queries is read no more, and a warp writes only the rows that it read itself.
    store_rows<Width>(shared, out, 1.0f / sum[0], 1.0f / sum[1], o, total, rows, width);
    if (lane % 4 == 0) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int row = warp_row + lane / 4 + half * 8;
            if (row < rows) {
                arguments.log_sum_exp[(tile.query_row + tile.first + row) * arguments.heads + head] = most[half] + logf(sum[half]);
            }
        }
    }
}

extern "C" __global__ void __launch_bounds__(128, 3) attention_64(AttentionArguments arguments) { attention_forward<64>(arguments); }
extern "C" __global__ void __launch_bounds__(128) attention_128(AttentionArguments arguments) { attention_forward<128>(arguments); }

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

extern "C" __global__ void __launch_bounds__(128) attention_delta_bf16(AttentionArguments arguments) { attention_delta<bf16>(arguments); }
extern "C" __global__ void __launch_bounds__(128) attention_delta_f32(AttentionArguments arguments) { attention_delta<float>(arguments); }

// d_q of a tile of queries.
template <int Width> __device__ __forceinline__ void attention_queries(const AttentionArguments& arguments) {
    constexpr int TileBytes = 64 * Width * 2;
    extern __shared__ __align__(128) unsigned char shared[];
    unsigned char* const side = shared + 6 * TileBytes;
    float* const bias = reinterpret_cast<float*>(side + SIDE_BYTES);
    const Batch batch{arguments.batch};
    const Tile tile(arguments, batch, false);
    if (!tile.any) return;
    const int head = blockIdx.y, width = arguments.width;
    const int lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 * 16;
    const uint32_t base = shared_address(shared);
    const int64_t total = static_cast<int64_t>(arguments.heads) * width, first_row = tile.query_row + tile.first;
    const bf16* const q = static_cast<const bf16*>(arguments.q) + first_row * arguments.q_stride + head * width;
    const bf16* const d_o = static_cast<const bf16*>(arguments.d_o) + first_row * total + head * width;
    const bf16* const k = static_cast<const bf16*>(arguments.k) + tile.key_row * arguments.kv_stride + head * width;
    const bf16* const v = static_cast<const bf16*>(arguments.v) + tile.key_row * arguments.kv_stride + head * width;
    const int most_rows = arguments.scope == PROMPT ? batch.prompt_length() : tile.queries;
    const int rows = most_rows - tile.first;
    const int seen = arguments.causal ? min(tile.keys, tile.first + 64) : tile.keys;
    const int stages = (seen + 63) / 64;
    const auto load = [&](int stage) {
        const uint32_t to = base + TileBytes * (2 + 2 * (stage & 1));
        const int64_t skipped = static_cast<int64_t>(stage) * 64 * arguments.kv_stride;
        copy_tile<Width>(to, k + skipped, tile.keys - stage * 64, arguments.kv_stride, width);
        copy_tile<Width>(to + TileBytes, v + skipped, tile.keys - stage * 64, arguments.kv_stride, width);
        commit_copies();
    };
    copy_tile<Width>(base, q, rows, arguments.q_stride, width);
    copy_tile<Width>(base + TileBytes, d_o, rows, static_cast<int>(total), width);
    load(0);
    load_bias(bias, arguments, head);
    const float scale = arguments.mask.step != nullptr ? arguments.mask.step->scale : 1.0f;
    float log_sum_exp[2] = {}, delta[2] = {};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int row = warp_row + lane / 4 + half * 8;
        if (row < rows) {
            log_sum_exp[half] = arguments.log_sum_exp[(first_row + row) * arguments.heads + head];
            delta[half] = arguments.delta[(first_row + row) * arguments.heads + head];
        }
    }
    float d_q[Width / 8][4] = {};
    for (int stage = 0; stage < stages; ++stage) {
        uint8_t* const bits = side + (stage & 1) * MASK_BYTES;
        draw_mask(bits, arguments, batch, tile, head, tile.first, stage * 64);
        wait_for_copies<0>();
        __syncthreads();
        if (stage + 1 < stages) load(stage + 1);
        const uint32_t keys = base + TileBytes * (2 + 2 * (stage & 1));
        float scores[8][4] = {}, d_p[8][4] = {};
        rows_by_rows<Width>(scores, base, warp_row, keys);
        rows_by_rows<Width>(d_p, base + TileBytes, warp_row, keys + TileBytes);
#pragma unroll
        for (int j = 0; j < 8; ++j) {
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const int query = tile.first + warp_row + lane / 4 + e / 2 * 8, key = stage * 64 + j * 8 + lane % 4 * 2 + e % 2;
                float p = 0.0f;
                if (sees(arguments, tile, query, key)) {
                    p = __expf(scores[j][e] + bias_of(bias, arguments, query, key) - log_sum_exp[e / 2]);
                }
                if (arguments.mask.step != nullptr) {
                    d_p[j][e] *= kept_factor(bits, scale, warp_row + lane / 4 + e / 2 * 8, j * 8 + lane % 4 * 2 + e % 2);
                }
                scores[j][e] = p * (d_p[j][e] - delta[e / 2]);
            }
        }
        weighted_rows<Width>(d_q, scores, keys);
    }
    const int64_t to_row = arguments.scope == PROMPT ? static_cast<int64_t>(tile.example) * most_rows + tile.first : first_row;
    if (arguments.inner != nullptr) {
        const float2 inner = row_products<Width>(shared, d_q);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int row = warp_row + lane / 4 + half * 8;
            if (lane % 4 == 0 && row < rows) {
                arguments.inner[(to_row + row) * arguments.inner_parts * arguments.heads + head] = half == 0 ? inner.x : inner.y;
            }
        }
    }
    bf16* const to = static_cast<bf16*>(arguments.d_q) + to_row * arguments.q_stride + head * width;
    store_rows<Width>(shared, d_q, 1.0f, 1.0f, to, arguments.q_stride, rows, width);
}

extern "C" __global__ void __launch_bounds__(128) attention_queries_64(AttentionArguments arguments) { attention_queries<64>(arguments); }
extern "C" __global__ void __launch_bounds__(128) attention_queries_128(AttentionArguments arguments) {
    attention_queries<128>(arguments);
}

// d_k and d_v of a tile of keys: everything transposed, so that a warp's 16 rows are keys.
template <int Width> __device__ __forceinline__ void attention_keys(const AttentionArguments& arguments) {
    constexpr int TileBytes = 64 * Width * 2;
    extern __shared__ __align__(128) unsigned char shared[];
    unsigned char* const side = shared + 6 * TileBytes;
    float* const rows_of_queries = reinterpret_cast<float*>(side + 2 * MASK_BYTES);  // log_sum_exp and delta, two stages
    float* const bias = reinterpret_cast<float*>(side + SIDE_BYTES);
    const Batch batch{arguments.batch};
    const Tile tile(arguments, batch, true);
    if (!tile.any) return;
    const int head = blockIdx.y, width = arguments.width;
    const int lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 * 16;
    const uint32_t base = shared_address(shared);
    const int64_t total = static_cast<int64_t>(arguments.heads) * width, first_row = tile.key_row + tile.first;
    const bf16* const q = static_cast<const bf16*>(arguments.q) + tile.query_row * arguments.q_stride + head * width;
    const bf16* const d_o = static_cast<const bf16*>(arguments.d_o) + tile.query_row * total + head * width;
    const bf16* const k = static_cast<const bf16*>(arguments.k) + first_row * arguments.kv_stride + head * width;
    const bf16* const v = static_cast<const bf16*>(arguments.v) + first_row * arguments.kv_stride + head * width;
    const int most_rows = arguments.scope == PROMPT ? batch.prompt_length() : tile.keys;
    const int rows = most_rows - tile.first;
    const int from = arguments.causal ? tile.first / 64 : 0, stages = (tile.queries + 63) / 64;
    const auto load = [&](int stage) {
        const uint32_t to = base + TileBytes * (2 + 2 * (stage & 1));
        const int left = tile.queries - stage * 64;
        copy_tile<Width>(to, q + static_cast<int64_t>(stage) * 64 * arguments.q_stride, left, arguments.q_stride, width);
        copy_tile<Width>(to + TileBytes, d_o + stage * 64 * total, left, static_cast<int>(total), width);
        commit_copies();
    };
    copy_tile<Width>(base, k, rows, arguments.kv_stride, width);
    copy_tile<Width>(base + TileBytes, v, rows, arguments.kv_stride, width);
    if (from < stages) load(from);
    load_bias(bias, arguments, head);
    const float scale = arguments.mask.step != nullptr ? arguments.mask.step->scale : 1.0f;
    float d_k[Width / 8][4] = {}, d_v[Width / 8][4] = {};
    for (int stage = from; stage < stages; ++stage) {
        uint8_t* const bits = side + (stage & 1) * MASK_BYTES;
        float* const log_sum_exp = rows_of_queries + (stage & 1) * 128;
        float* const delta = log_sum_exp + 64;
        draw_mask(bits, arguments, batch, tile, head, stage * 64, tile.first);
        {
            const int query = stage * 64 + threadIdx.x % 64;
            const float* const source = threadIdx.x < 64 ? arguments.log_sum_exp : arguments.delta;
            const float value = query < tile.queries ? source[(tile.query_row + query) * arguments.heads + head] : 0.0f;
            log_sum_exp[threadIdx.x] = value;
        }
        wait_for_copies<0>();
        __syncthreads();
        if (stage + 1 < stages) load(stage + 1);
        const uint32_t queries = base + TileBytes * (2 + 2 * (stage & 1));
        float p[8][4] = {}, ds[8][4] = {};
        rows_by_rows<Width>(p, base, warp_row, queries);
        rows_by_rows<Width>(ds, base + TileBytes, warp_row, queries + TileBytes);
#pragma unroll
        for (int j = 0; j < 8; ++j) {
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const int key = tile.first + warp_row + lane / 4 + e / 2 * 8, column = j * 8 + lane % 4 * 2 + e % 2;
                const int query = stage * 64 + column;
                float weight = 0.0f;
                if (query < tile.queries && sees(arguments, tile, query, key)) {
                    weight = __expf(p[j][e] + bias_of(bias, arguments, query, key) - log_sum_exp[column]);
                }
                float factor = 1.0f;
                if (arguments.mask.step != nullptr) {
                    factor = kept_factor(bits, scale, column, warp_row + lane / 4 + e / 2 * 8);
                }
                ds[j][e] = weight * (ds[j][e] * factor - delta[column]);
                p[j][e] = weight * factor;
            }
        }
        weighted_rows<Width>(d_v, p, queries + TileBytes);
        weighted_rows<Width>(d_k, ds, queries);
    }
    wait_for_copies<0>();
    __syncthreads();
    const int64_t to_row = arguments.scope == PROMPT ? static_cast<int64_t>(tile.example) * most_rows + tile.first : first_row;
    if (arguments.inner_parts == 2) {
        const float2 of_k = row_products<Width>(shared, d_k), of_v = row_products<Width>(shared + TileBytes, d_v);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int row = warp_row + lane / 4 + half * 8;
            if (lane % 4 == 0 && row < rows) {
                arguments.inner[((to_row + row) * 2 + 1) * arguments.heads + head] = half == 0 ? of_k.x + of_v.x : of_k.y + of_v.y;
            }
        }
    }
    const int64_t start = to_row * arguments.kv_stride + head * width;
    store_rows<Width>(shared, d_k, 1.0f, 1.0f, static_cast<bf16*>(arguments.d_k) + start, arguments.kv_stride, rows, width);
    store_rows<Width>(shared + TileBytes, d_v, 1.0f, 1.0f, static_cast<bf16*>(arguments.d_v) + start, arguments.kv_stride, rows, width);
}

extern "C" __global__ void __launch_bounds__(128) attention_keys_64(AttentionArguments arguments) { attention_keys<64>(arguments); }
extern "C" __global__ void __launch_bounds__(128) attention_keys_128(AttentionArguments arguments) { attention_keys<128>(arguments); }

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
    const int slot = min(max(key - query + arguments.reach, 0), 2 * arguments.reach);
    return arguments.bias[static_cast<int64_t>(head) * (2 * arguments.reach + 1) + slot];
}

extern "C" __global__ void __launch_bounds__(128) attention_f32(AttentionArguments arguments) {
    const Batch batch{arguments.batch};
    const Tile tile(arguments, batch, false);
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
            // Every lane works, one behind the last key on that: a warp that shuffles must not part.
            const int key = first + lane, safe = min(key, tile.keys - 1);
            const float product = dot_f32(q, k + static_cast<int64_t>(safe) * arguments.kv_stride, width);
            const float score = sees(arguments, tile, query, key) ? product + bias_f32(arguments, head, query, key) : -INFINITY;
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

extern "C" __global__ void __launch_bounds__(128) attention_queries_f32(AttentionArguments arguments) {
    const Batch batch{arguments.batch};
    const Tile tile(arguments, batch, false);
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
            const float score = dot_f32(q, k + skipped, width) + bias_f32(arguments, head, query, safe);
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
                d_q[column] = out[part];
                inner = fmaf(out[part], q[column], inner);
            }
        }
        inner = warp_sum(inner);
        if (lane == 0 && arguments.inner != nullptr) arguments.inner[to * arguments.inner_parts * arguments.heads + head] = inner;
    }
}

extern "C" __global__ void __launch_bounds__(128) attention_keys_f32(AttentionArguments arguments) {
    const Batch batch{arguments.batch};
    const Tile tile(arguments, batch, true);
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
            const float score = dot_f32(q + static_cast<int64_t>(safe) * arguments.q_stride, k, width) +
                                bias_f32(arguments, head, safe, key);
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
                static_cast<float*>(arguments.d_k)[start + column] = d_k[part];
                static_cast<float*>(arguments.d_v)[start + column] = d_v[part];
                inner = fmaf(d_k[part], k[column], fmaf(d_v[part], v[column], inner));
            }
        }
        inner = warp_sum(inner);
        if (lane == 0 && arguments.inner_parts == 2) arguments.inner[(to * 2 + 1) * arguments.heads + head] = inner;
    }
}
