// Attention over packed examples: of an encoder or decoder to itself, or of decoder rows to encoder rows.
//
//   s_ij = softmax_scale q_i · k_j + bias[j - i],  p = softmax_j(s)·mask,  o_i = sum_j p_ij v_j,  log_sum_exp_i
//   d_v_j = sum_i p_ij d_o_i;  ds_ij = softmax_ij·(d_o_i · v_j·mask - delta_i), delta_i = d_o_i · o_i
//   d_q_i = softmax_scale sum_j ds_ij k_j;  d_k_j = softmax_scale sum_i ds_ij q_i;  inner = the row's <d_q, q> and <d_k, k> + <d_v, v>, for the norm's backward
//
// T5's softmax_scale is 1. The bias is frozen: one short row a head, looked up by j - i, and no gradient of it.
// Shapes: q [queries, H·K], k and v [keys, H·K] with strides, bias [H, 2·max_distance + 1] f32; K up to 128, a multiple of 8.
// Grid: x over tiles of 64 rows of one example (the descriptor's tile map), y over heads; 128 threads, a warp 16 rows.
// bf16: flash style, tensor cores, keys and values (or queries and d_o) in two stages of cp.async, swizzled tiles; nothing
// of size n x n leaves the chip. Backward is two kernels, one a tile of queries and one a tile of keys: no atomics.
// f32: a warp a row, a lane a key; for verification.
// Bytes: forward reads q once and k, v once for every tile of queries of the example, writes o and log_sum_exp. Backward
// keeps q, k, v, o and log_sum_exp.
// On sm_80, with a bias of reach 128: registers a thread, bytes of shared memory a block, blocks a multiprocessor at once:
//   attention_64 128 42996 3, attention_dropped_64 152 44020 3, attention_128 163 83956 1, attention_dropped_128 180 84980 1,
//   attention_delta_bf16 31 0 16, attention_delta_f32 30 0 16, attention_queries_64 165 51188 3,
//   attention_queries_dropped_64 164 52212 3, attention_queries_128 160 100340 1, attention_queries_dropped_128 164 101364 1,
//   attention_keys_64 166 52212 3, attention_keys_dropped_64 201 53236 2, attention_keys_128 218 101364 1,
//   attention_keys_dropped_128 236 102388 1, attention_f32 44 0 10, attention_queries_f32 48 0 10, attention_keys_f32 56 0 9
#include "attention.cuh"

using namespace promptmix;

// Bytes of shared memory behind the tiles: with dropout two masks of 64x64 bits; of d_k and d_v log_sum_exp and delta of two
// stages of queries; then the bias.
constexpr int MASK_BYTES = 64 * 8;
constexpr int SIDE_BYTES = 4 * 64 * 4;

// A stage of forward: the scores of a warp's 16 queries with 64 keys, and what they change. `left` says how many of the keys
// each of a thread's two rows sees; only a stage that is Masked asks.
template <int Width, bool Dropped, bool Masked>
__device__ __forceinline__ void attend_stage(float (&out)[Width / 8][4], float (&most)[2], float (&sum)[2], uint32_t queries, uint32_t keys,
                                             const float* bias, const int (&left)[2], float scale_log2, const uint8_t* bits, float scale) {
    const int lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 * 16;
    float scores[8][4] = {};
    rows_by_rows<Width>(scores, queries, warp_row, keys);
    float next[2] = {most[0], most[1]};
    // A thread's second row lies eight below its first: its biases are those of eight columns before.
    float before[2] = {bias[-8], bias[-7]};
#pragma unroll
    for (int j = 0; j < 8; ++j) {
        const float of_bias[2] = {bias[j * 8], bias[j * 8 + 1]};
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            scores[j][e] = fmaf(scores[j][e], scale_log2, e / 2 == 0 ? of_bias[e % 2] : before[e % 2]);
            if (Masked && j * 8 + lane % 4 * 2 + e % 2 >= left[e / 2]) scores[j][e] = -INFINITY;
            next[e / 2] = fmaxf(next[e / 2], scores[j][e]);
        }
        before[0] = of_bias[0];
        before[1] = of_bias[1];
    }
    float shrink[2], more[2] = {};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        next[half] = quad_max(next[half]);
        shrink[half] = power_of_two(most[half] - next[half]);
        most[half] = next[half];
    }
    uint2 kept[2];
    if (Dropped) {
#pragma unroll
        for (int half = 0; half < 2; ++half) kept[half] = kept_of_query(bits, warp_row + lane / 4 + half * 8);
    }
#pragma unroll
    for (int j = 0; j < 8; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            scores[j][e] = power_of_two(scores[j][e] - most[e / 2]);
            more[e / 2] += scores[j][e];
            if (Dropped) scores[j][e] *= factor_of_bit(j < 4 ? kept[e / 2].x : kept[e / 2].y, j % 4 * 8 + lane % 4 * 2 + e % 2, scale);
        }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) sum[half] = fmaf(sum[half], shrink[half], more[half]);
#pragma unroll
    for (int block = 0; block < Width / 8; ++block) {
#pragma unroll
        for (int e = 0; e < 4; ++e) out[block][e] *= shrink[e / 2];
    }
    weighted_rows<Width>(out, scores, keys + 64 * Width * 2);
}

template <int Width, bool Dropped> __device__ __forceinline__ void attention_forward(const AttentionArguments& arguments) {
    constexpr int TileBytes = 64 * Width * 2;
    extern __shared__ __align__(128) unsigned char shared[];
    unsigned char* const side = shared + 5 * TileBytes;
    float* const table = reinterpret_cast<float*>(side + (Dropped ? 2 * MASK_BYTES : 0));
    const Batch batch{arguments.batch};
    const Tile tile(arguments, batch, false);
    if (!tile.any) return;
    const int head = blockIdx.y, width = arguments.width;
    const int lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 * 16;
    const uint32_t base = shared_address(shared);
    const bf16* const q = static_cast<const bf16*>(arguments.q) + (tile.query_row + tile.first) * arguments.q_stride + head * width;
    const int rows = tile.queries - tile.first;
    const int seen = arguments.causal ? min(tile.keys, tile.first + 64) : tile.keys;
    const int last = (seen - 1) / 64;
    RowCopies<Width> keys(arguments.k, arguments.v, tile.key_row, tile.keys, arguments.kv_stride, head * width, width);
    copy_tile<Width>(base, q, rows, arguments.q_stride, width);
    keys.load(base + TileBytes);
    load_bias(table, arguments, head);
    const float scale = Dropped ? arguments.mask.step->scale : 1.0f, scale_log2 = arguments.softmax_scale * LOG2_E;
    float out[Width / 8][4] = {};
    float most[2] = {-INFINITY, -INFINITY}, sum[2] = {0.0f, 0.0f};
    int left[2] = {64, 64};
    const float* const own = bias_of_zero(table, arguments.max_distance) - (warp_row + lane / 4) + lane % 4 * 2;
    const auto stage_of = [&](int stage, auto masked) {
        constexpr bool Masked = decltype(masked)::value;
        uint8_t* const bits = side + (stage & 1) * MASK_BYTES;
        if (Dropped) draw_mask(bits, arguments, batch, tile, head, tile.first, stage * 64);
        wait_for_copies<0>();
        __syncthreads();
        const uint32_t at = base + TileBytes * (1 + 2 * (stage & 1));
        if (!Masked) keys.load(base + TileBytes * (3 - 2 * (stage & 1)));
        attend_stage<Width, Dropped, Masked>(out, most, sum, base, at, own + shift_of(stage * 64 - tile.first, arguments.max_distance), left,
                                             scale_log2, bits, scale);
    };
    for (int stage = 0; stage < last; ++stage) stage_of(stage, Flag<false>());
    // Only the last stage has keys that do not exist, or that lie behind a query.
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int query = tile.first + warp_row + lane / 4 + half * 8;
        left[half] = (arguments.causal ? min(tile.keys, query + 1) : tile.keys) - last * 64;
    }
    stage_of(last, Flag<true>());
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
                arguments.log_sum_exp[(tile.query_row + tile.first + row) * arguments.heads + head] = (most[half] + log2f(sum[half])) * LN_2;
            }
        }
    }
}

extern "C" __global__ void __launch_bounds__(128, 4) attention_64(AttentionArguments arguments) {
    attention_forward<64, false>(arguments);
}
extern "C" __global__ void __launch_bounds__(128, 3) attention_dropped_64(AttentionArguments arguments) {
    attention_forward<64, true>(arguments);
}
extern "C" __global__ void __launch_bounds__(128, 1) attention_128(AttentionArguments arguments) { attention_forward<128, false>(arguments); }
extern "C" __global__ void __launch_bounds__(128, 1) attention_dropped_128(AttentionArguments arguments) {
    attention_forward<128, true>(arguments);
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

extern "C" __global__ void __launch_bounds__(128) attention_delta_bf16(AttentionArguments arguments) { attention_delta<bf16>(arguments); }
extern "C" __global__ void __launch_bounds__(128) attention_delta_f32(AttentionArguments arguments) { attention_delta<float>(arguments); }

// A stage of d_q: probabilities anew, then what a score's gradient brings.
template <int Width, bool Dropped, bool Masked>
__device__ __forceinline__ void queries_stage(float (&d_q)[Width / 8][4], const float (&log_sum_exp)[2], const float (&delta)[2],
                                              uint32_t queries, uint32_t keys, const float* bias, const int (&left)[2], float scale_log2,
                                              const uint8_t* bits, float scale) {
    constexpr int TileBytes = 64 * Width * 2;
    const int lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 * 16;
    uint2 kept[2];
    if (Dropped) {
#pragma unroll
        for (int half = 0; half < 2; ++half) kept[half] = kept_of_query(bits, warp_row + lane / 4 + half * 8);
    }
    float before[2] = {bias[-8], bias[-7]};
    // 32 keys at a time: all 64 would take more registers than there are.
#pragma unroll 1
    for (int from = 0; from < 64; from += 32) {
        float scores[4][4] = {}, d_p[4][4] = {};
        rows_by_rows<Width, 4>(scores, queries, warp_row, keys, from);
        rows_by_rows<Width, 4>(d_p, queries + TileBytes, warp_row, keys + TileBytes, from);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const float of_bias[2] = {bias[from + j * 8], bias[from + j * 8 + 1]};
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const int half = e / 2, column = j * 8 + lane % 4 * 2 + e % 2;
                const float added = (half == 0 ? of_bias[e % 2] : before[e % 2]) - log_sum_exp[half];
                float p = power_of_two(fmaf(scores[j][e], scale_log2, added));
                if (Masked && from + column >= left[half]) p = 0.0f;
                if (Dropped) d_p[j][e] *= factor_of_bit(from == 0 ? kept[half].x : kept[half].y, column, scale);
                scores[j][e] = p * (d_p[j][e] - delta[half]);
            }
            before[0] = of_bias[0];
            before[1] = of_bias[1];
        }
        weighted_rows<Width, 4>(d_q, scores, keys, from);
    }
}

// d_q of a tile of queries.
template <int Width, bool Dropped> __device__ __forceinline__ void attention_queries(const AttentionArguments& arguments) {
    constexpr int TileBytes = 64 * Width * 2;
    extern __shared__ __align__(128) unsigned char shared[];
    unsigned char* const side = shared + 6 * TileBytes;
    float* const table = reinterpret_cast<float*>(side + (Dropped ? 2 * MASK_BYTES : 0));
    const Batch batch{arguments.batch};
    const Tile tile(arguments, batch, false);
    if (!tile.any) return;
    const int head = blockIdx.y, width = arguments.width;
    const int lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 * 16;
    const uint32_t base = shared_address(shared);
    const int64_t total = static_cast<int64_t>(arguments.heads) * width, first_row = tile.query_row + tile.first;
    const bf16* const q = static_cast<const bf16*>(arguments.q) + first_row * arguments.q_stride + head * width;
    const bf16* const d_o = static_cast<const bf16*>(arguments.d_o) + first_row * total + head * width;
    const int most_rows = arguments.scope == PROMPT ? batch.prompt_length() : tile.queries;
    const int rows = most_rows - tile.first;
    const int seen = arguments.causal ? min(tile.keys, tile.first + 64) : tile.keys;
    const int last = (seen - 1) / 64;
    RowCopies<Width> keys(arguments.k, arguments.v, tile.key_row, tile.keys, arguments.kv_stride, head * width, width);
    copy_tile<Width>(base, q, rows, arguments.q_stride, width);
    copy_tile<Width>(base + TileBytes, d_o, rows, static_cast<int>(total), width);
    keys.load(base + 2 * TileBytes);
    load_bias(table, arguments, head);
    const float scale = Dropped ? arguments.mask.step->scale : 1.0f, scale_log2 = arguments.softmax_scale * LOG2_E;
    float log_sum_exp[2] = {}, delta[2] = {};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int row = warp_row + lane / 4 + half * 8;
        if (row < rows) {
            log_sum_exp[half] = arguments.log_sum_exp[(first_row + row) * arguments.heads + head] * LOG2_E;
            delta[half] = arguments.delta[(first_row + row) * arguments.heads + head];
        }
    }
    float d_q[Width / 8][4] = {};
    int left[2] = {64, 64};
    const float* const own = bias_of_zero(table, arguments.max_distance) - (warp_row + lane / 4) + lane % 4 * 2;
    const auto stage_of = [&](int stage, auto masked) {
        constexpr bool Masked = decltype(masked)::value;
        uint8_t* const bits = side + (stage & 1) * MASK_BYTES;
        if (Dropped) draw_mask(bits, arguments, batch, tile, head, tile.first, stage * 64);
        wait_for_copies<0>();
        __syncthreads();
        const uint32_t at = base + TileBytes * (2 + 2 * (stage & 1));
        if (!Masked) keys.load(base + TileBytes * (4 - 2 * (stage & 1)));
        queries_stage<Width, Dropped, Masked>(d_q, log_sum_exp, delta, base, at, own + shift_of(stage * 64 - tile.first, arguments.max_distance), left,
                                              scale_log2, bits, scale);
    };
    for (int stage = 0; stage < last; ++stage) stage_of(stage, Flag<false>());
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int query = tile.first + warp_row + lane / 4 + half * 8;
        left[half] = (arguments.causal ? min(tile.keys, query + 1) : tile.keys) - last * 64;
    }
    stage_of(last, Flag<true>());
    const int64_t to_row = arguments.scope == PROMPT ? static_cast<int64_t>(tile.example) * most_rows + tile.first : first_row;
    const float to_scale = arguments.softmax_scale;
    if (arguments.inner != nullptr) {
        const float2 inner = row_products<Width>(shared, d_q);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int row = warp_row + lane / 4 + half * 8;
            if (lane % 4 == 0 && row < rows) {
                arguments.inner[(to_row + row) * arguments.inner_parts * arguments.heads + head] = (half == 0 ? inner.x : inner.y) * to_scale;
            }
        }
    }
    bf16* const to = static_cast<bf16*>(arguments.d_q) + to_row * arguments.q_stride + head * width;
    store_rows<Width>(shared, d_q, to_scale, to_scale, to, arguments.q_stride, rows, width);
}

extern "C" __global__ void __launch_bounds__(128, 3) attention_queries_64(AttentionArguments arguments) {
    attention_queries<64, false>(arguments);
}
extern "C" __global__ void __launch_bounds__(128, 3) attention_queries_dropped_64(AttentionArguments arguments) {
    attention_queries<64, true>(arguments);
}
extern "C" __global__ void __launch_bounds__(128) attention_queries_128(AttentionArguments arguments) {
    attention_queries<128, false>(arguments);
}
extern "C" __global__ void __launch_bounds__(128) attention_queries_dropped_128(AttentionArguments arguments) {
    attention_queries<128, true>(arguments);
}

// A stage of d_k and d_v: a warp's 16 keys with 64 queries, whose log_sum_exp (times log2 e) and delta lie side by side in
// `of_queries`. A query that does not exist has a log_sum_exp of infinity, so that its probabilities are zero. A stage that is
// Masked leaves out queries before their keys.
template <int Width, bool Dropped, bool Masked>
__device__ __forceinline__ void keys_stage(float (&d_k)[Width / 8][4], float (&d_v)[Width / 8][4], const float* of_queries, uint32_t keys,
                                           uint32_t queries, const float* bias, float scale_log2, const uint8_t* bits, float scale) {
    constexpr int TileBytes = 64 * Width * 2;
    const int lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 * 16;
    float before[2] = {bias[8], bias[7]};
    // So many queries at a time: all 64 would take more registers than there are.
    constexpr int Blocks = Width > 64 ? 2 : 4;
#pragma unroll 1
    for (int from = 0; from < 64; from += 8 * Blocks) {
        float p[Blocks][4] = {}, ds[Blocks][4] = {};
        rows_by_rows<Width, Blocks>(p, keys, warp_row, queries, from);
        rows_by_rows<Width, Blocks>(ds, keys + TileBytes, warp_row, queries + TileBytes, from);
#pragma unroll
        for (int j = 0; j < Blocks; ++j) {
            const int first = from + j * 8;
            const float of_bias[2] = {bias[-first], bias[-first - 1]};
            const float4 both = load4(of_queries + (first + lane % 4 * 2) * 2);
            const float log_sum_exp[2] = {both.x, both.z}, delta[2] = {both.y, both.w};
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const int column = first + lane % 4 * 2 + e % 2;
                const float added = (e / 2 == 0 ? of_bias[e % 2] : before[e % 2]) - log_sum_exp[e % 2];
                float weight = power_of_two(fmaf(p[j][e], scale_log2, added));
                if (Masked && warp_row + lane / 4 + e / 2 * 8 > column) weight = 0.0f;
                float factor = 1.0f;
                if (Dropped) factor = factor_of_bit(kept_of_keys(bits, column), e / 2 * 8 + lane / 4, scale);
                ds[j][e] = weight * (ds[j][e] * factor - delta[e % 2]);
                p[j][e] = weight * factor;
            }
            before[0] = of_bias[0];
            before[1] = of_bias[1];
        }
        weighted_rows<Width, Blocks>(d_v, p, queries + TileBytes, from);
        weighted_rows<Width, Blocks>(d_k, ds, queries, from);
    }
}

// d_k and d_v of a tile of keys: everything transposed, so that a warp's 16 rows are keys.
template <int Width, bool Dropped> __device__ __forceinline__ void attention_keys(const AttentionArguments& arguments) {
    constexpr int TileBytes = 64 * Width * 2;
    extern __shared__ __align__(128) unsigned char shared[];
    unsigned char* const side = shared + 6 * TileBytes;
    float* const rows_of_queries = reinterpret_cast<float*>(side + (Dropped ? 2 * MASK_BYTES : 0));
    float* const table = rows_of_queries + SIDE_BYTES / 4;
    const Batch batch{arguments.batch};
    const Tile tile(arguments, batch, true);
    if (!tile.any) return;
    const int head = blockIdx.y, width = arguments.width;
    const int lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 * 16;
    const uint32_t base = shared_address(shared);
    const int total = arguments.heads * width;
    const int64_t first_row = tile.key_row + tile.first;
    const bf16* const k = static_cast<const bf16*>(arguments.k) + first_row * arguments.kv_stride + head * width;
    const bf16* const v = static_cast<const bf16*>(arguments.v) + first_row * arguments.kv_stride + head * width;
    const auto rows_of = [&](const Tile& of) { return arguments.scope == PROMPT ? batch.prompt_length() : of.keys; };
    const int from = arguments.causal ? tile.first / 64 : 0, stages = (tile.queries + 63) / 64;
    copy_tile<Width>(base, k, rows_of(tile) - tile.first, arguments.kv_stride, width);
    copy_tile<Width>(base + TileBytes, v, rows_of(tile) - tile.first, arguments.kv_stride, width);
    const bf16* const q = static_cast<const bf16*>(arguments.q) + tile.query_row * arguments.q_stride + head * width;
    const bf16* const d_o = static_cast<const bf16*>(arguments.d_o) + tile.query_row * total + head * width;
    const auto load = [&](int stage) {
        const uint32_t to = base + TileBytes * (2 + 2 * (stage & 1));
        const int left = tile.queries - stage * 64;
        copy_tile<Width>(to, q + static_cast<int64_t>(stage) * 64 * arguments.q_stride, left, arguments.q_stride, width);
        copy_tile<Width>(to + TileBytes, d_o + static_cast<int64_t>(stage) * 64 * total, left, total, width);
        commit_copies();
    };
    if (from < stages) load(from);
    load_bias(table, arguments, head);
    const float scale = Dropped ? arguments.mask.step->scale : 1.0f, scale_log2 = arguments.softmax_scale * LOG2_E;
    float d_k[Width / 8][4] = {}, d_v[Width / 8][4] = {};
    const float* const own = bias_of_zero(table, arguments.max_distance) + warp_row + lane / 4 - lane % 4 * 2;
    const float* const of_query = (threadIdx.x % 2 == 0 ? arguments.log_sum_exp : arguments.delta) + tile.query_row * arguments.heads + head;
    const auto stage_of = [&](int stage, auto masked) {
        uint8_t* const bits = side + (stage & 1) * MASK_BYTES;
        float* const of_queries = rows_of_queries + (stage & 1) * 128;
        if (Dropped) draw_mask(bits, arguments, batch, tile, head, stage * 64, tile.first);
        const int query = stage * 64 + threadIdx.x / 2;
        float value = threadIdx.x % 2 == 0 ? INFINITY : 0.0f;
        if (query < tile.queries) value = of_query[static_cast<int64_t>(query) * arguments.heads] * (threadIdx.x % 2 == 0 ? LOG2_E : 1.0f);
        of_queries[threadIdx.x] = value;
        wait_for_copies<0>();
        __syncthreads();
        if (stage + 1 < stages) load(stage + 1);
        keys_stage<Width, Dropped, decltype(masked)::value>(d_k, d_v, of_queries, base, base + TileBytes * (2 + 2 * (stage & 1)),
                                                            own + shift_of(tile.first - stage * 64, arguments.max_distance), scale_log2, bits, scale);
    };
    // Only the first stage of a causal tile has queries before its keys.
    if (arguments.causal) stage_of(from, Flag<true>());
    for (int stage = from + (arguments.causal ? 1 : 0); stage < stages; ++stage) stage_of(stage, Flag<false>());
    wait_for_copies<0>();
    __syncthreads();
    // Read again, so that none of it takes a register through the loop.
    const Tile again(arguments, batch, true);
    const int rows = rows_of(again) - again.first;
    const int64_t before = arguments.scope == PROMPT ? static_cast<int64_t>(again.example) * rows_of(again) : again.key_row;
    const int64_t to_row = before + again.first;
    const float to_scale = arguments.softmax_scale;
    if (arguments.inner_parts == 2) {
        const float2 of_k = row_products<Width>(shared, d_k), of_v = row_products<Width>(shared + TileBytes, d_v);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int row = warp_row + lane / 4 + half * 8;
            if (lane % 4 == 0 && row < rows) {
                arguments.inner[((to_row + row) * 2 + 1) * arguments.heads + head] = half == 0 ? fmaf(of_k.x, to_scale, of_v.x) : fmaf(of_k.y, to_scale, of_v.y);
            }
        }
    }
    const int64_t start = to_row * arguments.kv_stride + head * width;
    store_rows<Width>(shared, d_k, to_scale, to_scale, static_cast<bf16*>(arguments.d_k) + start, arguments.kv_stride, rows, width);
    store_rows<Width>(shared + TileBytes, d_v, 1.0f, 1.0f, static_cast<bf16*>(arguments.d_v) + start, arguments.kv_stride, rows, width);
}

extern "C" __global__ void __launch_bounds__(128, 3) attention_keys_64(AttentionArguments arguments) {
    attention_keys<64, false>(arguments);
}
extern "C" __global__ void __launch_bounds__(128, 2) attention_keys_dropped_64(AttentionArguments arguments) {
    attention_keys<64, true>(arguments);
}
extern "C" __global__ void __launch_bounds__(128) attention_keys_128(AttentionArguments arguments) { attention_keys<128, false>(arguments); }
extern "C" __global__ void __launch_bounds__(128) attention_keys_dropped_128(AttentionArguments arguments) {
    attention_keys<128, true>(arguments);
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
