// The blocks of attention in bf16, a tile of 64 rows and a head each: forward, d_q, and d_k with d_v. Products are those of the device:
//
//   show_copies        has products see what this thread's copies wrote, before the barrier after which they are made
//   Rows, hold         the warps' own rows of a tile as left operands of many products, which no other warp reads
//   by_rows            a warp's 16 rows of a tile, or held, by rows of another, from a row on: sums over the width
//   two_by_rows        two such products
//   add_weighted       adds the warp's weights, rounded to bf16, times rows of a tile, from a row on
//   add_two_weighted   two such products
#pragma once
#include "attention.cuh"

namespace promptmix {

// Bytes of shared memory after the tiles: with dropout two masks of 64x64 bits; of d_k and d_v log_sum_exp and delta of two
// stages of queries; then the bias.
constexpr int MASK_BYTES = 64 * 8;
constexpr int SIDE_BYTES = 4 * 64 * 4;

// Starts copying the rows of a stage, of two matrices, to two tiles side by side.
template <int Width>
__device__ __forceinline__ void copy_stage(uint32_t to, const void* one, int stride, const void* other, int other_stride, int64_t row, int rows,
                                           int column, int width) {
    copy_rows<Width>(to, one, row, rows, stride, column, width);
    copy_rows<Width>(to + 64 * Width * 2, other, row, rows, other_stride, column, width);
    commit_copies();
}

// Gives `value` to the weights of keys, from the stage's key `from` on, that a thread's two rows do not see: they see `left` of the stage.
template <int Blocks>
__device__ __forceinline__ void leave_out(float (&weights)[Blocks][4], const int (&left)[2], int from, float value) {
#pragma unroll
    for (int j = 0; j < Blocks; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            if (from + j * 8 + static_cast<int>(threadIdx.x) % 4 * 2 + e % 2 >= left[e / 2]) weights[j][e] = value;
        }
    }
}

// A stage of forward: the scores of a warp's 16 queries with 64 keys, and what they change. `left` says how many of the keys
// each of a thread's two rows sees; only a stage that is masked asks. One body serves both: cold code costs more than a branch.
template <typename Products, int Width, bool Dropped>
__device__ __forceinline__ void attend_stage(float (&out)[Width / 8][4], float (&most)[2], float (&sum)[2],
                                             const typename Products::Rows& queries, uint32_t keys, const float* bias, bool masked,
                                             const int (&left)[2], float scale_log2, const uint8_t* bits, float scale) {
    const int lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 * 16;
    float scores[8][4] = {};
    Products::by_rows(scores, queries, keys, 0);
    float next[2] = {most[0], most[1]};
    // A thread's second row lies eight below its first: its biases are those of eight columns before.
    float before[2] = {bias[-8], bias[-7]};
#pragma unroll
    for (int j = 0; j < 8; ++j) {
        const float of_bias[2] = {bias[j * 8], bias[j * 8 + 1]};
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            scores[j][e] = fmaf(scores[j][e], scale_log2, e / 2 == 0 ? of_bias[e % 2] : before[e % 2]);
        }
        before[0] = of_bias[0];
        before[1] = of_bias[1];
    }
    if (masked) leave_out(scores, left, 0, -INFINITY);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) next[e / 2] = fmaxf(next[e / 2], scores[j][e]);
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
    Products::add_weighted(out, scores, keys + 64 * Width * 2, 0);
}

template <typename Products, int Width, bool Dropped> __device__ __forceinline__ void attention_forward(const AttentionArguments& arguments) {
    constexpr int TileBytes = 64 * Width * 2;
    extern __shared__ __align__(1024) unsigned char shared[];
    unsigned char* const side = shared + 5 * TileBytes;
    float* const table = reinterpret_cast<float*>(side + (Dropped ? 2 * MASK_BYTES : 0));
    const Batch batch{arguments.batch};
    const Tile tile(arguments, batch, false, blockIdx.x);
    if (!tile.any) return;
    const int head = blockIdx.y, width = arguments.width;
    const int lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 * 16;
    const uint32_t base = shared_address(shared);
    const int rows = tile.queries - tile.first;
    const int seen = arguments.causal ? min(tile.keys, tile.first + 64) : tile.keys;
    const int last = (seen - 1) / 64;
    const auto load = [&](int stage) {
        copy_stage<Width>(base + TileBytes * (1 + 2 * (stage & 1)), arguments.k, arguments.kv_stride, arguments.v, arguments.kv_stride,
                          tile.key_row + stage * 64, tile.keys - stage * 64, head * width, width);
    };
    copy_rows<Width>(base, arguments.q, tile.query_row + tile.first, rows, arguments.q_stride, head * width, width);
    load(0);
    load_bias(table, arguments, head);
    const float scale = Dropped ? arguments.mask.step->scale : 1.0f, scale_log2 = arguments.softmax_scale * LOG2_E;
    float out[Width / 8][4] = {};
    float most[2] = {-INFINITY, -INFINITY}, sum[2] = {0.0f, 0.0f};
    typename Products::Rows own_rows;
    const float* const own = bias_of_zero(table, arguments.max_distance) - (warp_row + lane / 4) + lane % 4 * 2;
    // Only the last stage has keys that do not exist, or that lie after a query.
    int left[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int query = tile.first + warp_row + lane / 4 + half * 8;
        left[half] = (arguments.causal ? min(tile.keys, query + 1) : tile.keys) - last * 64;
    }
#pragma unroll 1
    for (int stage = 0; stage <= last; ++stage) {
        uint8_t* const bits = side + (stage & 1) * MASK_BYTES;
        if (Dropped) draw_mask(bits, arguments, batch, tile, head, tile.first, stage * 64);
        wait_for_copies<0>();
        Products::show_copies();
        __syncthreads();
        if (stage < last) load(stage + 1);
        if (stage == 0) Products::hold(own_rows, base);
        const uint32_t at = base + TileBytes * (1 + 2 * (stage & 1));
        const float* const of_stage = own + shift_of(stage * 64 - tile.first, arguments.max_distance);
        attend_stage<Products, Width, Dropped>(out, most, sum, own_rows, at, of_stage, stage == last, left, scale_log2, bits, scale);
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
                arguments.log_sum_exp[(tile.query_row + tile.first + row) * arguments.heads + head] = (most[half] + log2f(sum[half])) * LN_2;
            }
        }
    }
}

// A stage of d_q: probabilities anew, then what a score's gradient brings.
template <typename Products, int Width, bool Dropped>
__device__ __forceinline__ void queries_stage(float (&d_q)[Width / 8][4], const float (&log_sum_exp)[2], const float (&delta)[2],
                                              const typename Products::Rows& queries, const typename Products::Rows& d_o, uint32_t keys,
                                              const float* bias, bool masked, const int (&left)[2], float scale_log2, const uint8_t* bits,
                                              float scale) {
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
        Products::two_by_rows(scores, queries, keys, d_p, d_o, keys + TileBytes, from);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const float of_bias[2] = {bias[from + j * 8], bias[from + j * 8 + 1]};
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const int half = e / 2, column = j * 8 + lane % 4 * 2 + e % 2;
                const float added = (half == 0 ? of_bias[e % 2] : before[e % 2]) - log_sum_exp[half];
                scores[j][e] = power_of_two(fmaf(scores[j][e], scale_log2, added));
                if (Dropped) d_p[j][e] *= factor_of_bit(from == 0 ? kept[half].x : kept[half].y, column, scale);
            }
            before[0] = of_bias[0];
            before[1] = of_bias[1];
        }
        if (masked) leave_out(scores, left, from, 0.0f);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
#pragma unroll
            for (int e = 0; e < 4; ++e) scores[j][e] *= d_p[j][e] - delta[e / 2];
        }
        Products::add_weighted(d_q, scores, keys, from);
    }
}

// d_q of a tile of queries.
template <typename Products, int Width, bool Dropped> __device__ __forceinline__ void attention_queries(const AttentionArguments& arguments) {
    constexpr int TileBytes = 64 * Width * 2;
    extern __shared__ __align__(1024) unsigned char shared[];
    unsigned char* const side = shared + 6 * TileBytes;
    float* const table = reinterpret_cast<float*>(side + (Dropped ? 2 * MASK_BYTES : 0));
    const Batch batch{arguments.batch};
    const Tile tile(arguments, batch, false, blockIdx.x - arguments.key_tiles);
    if (!tile.any) return;
    const int head = blockIdx.y, width = arguments.width;
    const int lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 * 16;
    const uint32_t base = shared_address(shared);
    const int total = arguments.heads * width;
    const int64_t first_row = tile.query_row + tile.first;
    const int most_rows = arguments.scope == PROMPT ? batch.prompt_length() : tile.queries;
    const int rows = most_rows - tile.first;
    const int seen = arguments.causal ? min(tile.keys, tile.first + 64) : tile.keys;
    const int last = (seen - 1) / 64;
    const auto load = [&](int stage) {
        copy_stage<Width>(base + TileBytes * (2 + 2 * (stage & 1)), arguments.k, arguments.kv_stride, arguments.v, arguments.kv_stride,
                          tile.key_row + stage * 64, tile.keys - stage * 64, head * width, width);
    };
    copy_rows<Width>(base, arguments.q, first_row, rows, arguments.q_stride, head * width, width);
    copy_rows<Width>(base + TileBytes, arguments.d_o, first_row, rows, total, head * width, width);
    load(0);
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
    typename Products::Rows own_rows, own_d_o;
    const float* const own = bias_of_zero(table, arguments.max_distance) - (warp_row + lane / 4) + lane % 4 * 2;
    // Only the last stage has keys that do not exist, or that lie after a query.
    int left[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int query = tile.first + warp_row + lane / 4 + half * 8;
        left[half] = (arguments.causal ? min(tile.keys, query + 1) : tile.keys) - last * 64;
    }
#pragma unroll 1
    for (int stage = 0; stage <= last; ++stage) {
        uint8_t* const bits = side + (stage & 1) * MASK_BYTES;
        if (Dropped) draw_mask(bits, arguments, batch, tile, head, tile.first, stage * 64);
        wait_for_copies<0>();
        Products::show_copies();
        __syncthreads();
        if (stage < last) load(stage + 1);
        if (stage == 0) {
            Products::hold(own_rows, base);
            Products::hold(own_d_o, base + TileBytes);
        }
        const uint32_t at = base + TileBytes * (2 + 2 * (stage & 1));
        const float* const of_stage = own + shift_of(stage * 64 - tile.first, arguments.max_distance);
        queries_stage<Products, Width, Dropped>(d_q, log_sum_exp, delta, own_rows, own_d_o, at, of_stage, stage == last, left, scale_log2, bits,
                                                scale);
    }
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

// A stage of d_k and d_v: a warp's 16 keys with 64 queries, whose log_sum_exp (times log2 e) and delta lie side by side in
// `of_queries`. A query that does not exist has a log_sum_exp of infinity, so that its probabilities are zero. A stage that is
// masked leaves out queries before their keys.
template <typename Products, int Width, bool Dropped>
__device__ __forceinline__ void keys_stage(float (&d_k)[Width / 8][4], float (&d_v)[Width / 8][4], const float* of_queries, uint32_t keys,
                                           uint32_t values, uint32_t queries, const float* bias, bool masked, float scale_log2,
                                           const uint8_t* bits, float scale) {
    constexpr int TileBytes = 64 * Width * 2;
    const int lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 * 16;
    float before[2] = {bias[8], bias[7]};
    // So many queries at a time: all 64 would take more registers than there are.
    constexpr int Blocks = Width > 64 ? 2 : 4;
#pragma unroll 1
    for (int from = 0; from < 64; from += 8 * Blocks) {
        float p[Blocks][4] = {}, ds[Blocks][4] = {};
        Products::two_by_rows(p, keys, queries, ds, values, queries + TileBytes, from);
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
                float factor = 1.0f;
                if (Dropped) factor = factor_of_bit(kept_of_keys(bits, column), e / 2 * 8 + lane / 4, scale);
                const float weight = power_of_two(fmaf(p[j][e], scale_log2, added));
                ds[j][e] = weight * (ds[j][e] * factor - delta[e % 2]);
                p[j][e] = weight * factor;
            }
            before[0] = of_bias[0];
            before[1] = of_bias[1];
        }
        if (masked) {
#pragma unroll
            for (int j = 0; j < Blocks; ++j) {
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    if (warp_row + lane / 4 + e / 2 * 8 > from + j * 8 + lane % 4 * 2 + e % 2) p[j][e] = ds[j][e] = 0.0f;
                }
            }
        }
        Products::add_two_weighted(d_k, ds, queries, d_v, p, queries + TileBytes, from);
    }
}

// d_k and d_v of a tile of keys: everything transposed, so that a warp's 16 rows are keys.
template <typename Products, int Width, bool Dropped> __device__ __forceinline__ void attention_keys(const AttentionArguments& arguments) {
    constexpr int TileBytes = 64 * Width * 2;
    extern __shared__ __align__(1024) unsigned char shared[];
    unsigned char* const side = shared + 6 * TileBytes;
    float* const rows_of_queries = reinterpret_cast<float*>(side + (Dropped ? 2 * MASK_BYTES : 0));
    float* const table = rows_of_queries + SIDE_BYTES / 4;
    const Batch batch{arguments.batch};
    const Tile tile(arguments, batch, true, blockIdx.x);
    if (!tile.any) return;
    const int head = blockIdx.y, width = arguments.width;
    const int lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 * 16;
    const uint32_t base = shared_address(shared);
    const int total = arguments.heads * width;
    const int64_t first_row = tile.key_row + tile.first;
    const auto rows_of = [&](const Tile& of) { return arguments.scope == PROMPT ? batch.prompt_length() : of.keys; };
    const int from = arguments.causal ? tile.first / 64 : 0;
    const int own_count = rows_of(tile) - tile.first;
    copy_rows<Width>(base, arguments.k, first_row, own_count, arguments.kv_stride, head * width, width);
    copy_rows<Width>(base + TileBytes, arguments.v, first_row, own_count, arguments.kv_stride, head * width, width);
    const auto load = [&](int stage) {
        copy_stage<Width>(base + TileBytes * (2 + 2 * (stage & 1)), arguments.q, arguments.q_stride, arguments.d_o, total,
                          tile.query_row + stage * 64, tile.queries - stage * 64, head * width, width);
    };
    if (from * 64 < tile.queries) load(from);
    load_bias(table, arguments, head);
    const float scale = Dropped ? arguments.mask.step->scale : 1.0f, scale_log2 = arguments.softmax_scale * LOG2_E;
    float d_k[Width / 8][4] = {}, d_v[Width / 8][4] = {};
    const float* const own = bias_of_zero(table, arguments.max_distance) + warp_row + lane / 4 - lane % 4 * 2;
#pragma unroll 1
    for (int stage = from; stage * 64 < tile.queries; ++stage) {
        uint8_t* const bits = side + (stage & 1) * MASK_BYTES;
        float* const of_queries = rows_of_queries + (stage & 1) * 128;
        if (Dropped) draw_mask(bits, arguments, batch, tile, head, stage * 64, tile.first);
        // Of a query that does not exist, the last one's is read instead.
        const int query = stage * 64 + threadIdx.x / 2, lane_of_pair = threadIdx.x % 2;
        const float* const of_query = lane_of_pair == 0 ? arguments.log_sum_exp : arguments.delta;
        const float value = of_query[(tile.query_row + min(query, tile.queries - 1)) * arguments.heads + head];
        const float after = lane_of_pair == 0 ? INFINITY : 0.0f;
        of_queries[threadIdx.x] = query < tile.queries ? value * (lane_of_pair == 0 ? LOG2_E : 1.0f) : after;
        wait_for_copies<0>();
        Products::show_copies();
        __syncthreads();
        if ((stage + 1) * 64 < tile.queries) load(stage + 1);
        // Only the first stage of a causal tile has queries before its keys.
        const float* const of_stage = own + shift_of(tile.first - stage * 64, arguments.max_distance);
        keys_stage<Products, Width, Dropped>(d_k, d_v, of_queries, base, base + TileBytes, base + TileBytes * (2 + 2 * (stage & 1)), of_stage,
                                             arguments.causal && stage * 64 == tile.first, scale_log2, bits, scale);
    }
    wait_for_copies<0>();
    __syncthreads();
    // Read again, so that none of it takes a register through the loop.
    const Tile again(arguments, batch, true, blockIdx.x);
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
                arguments.inner[((to_row + row) * 2 + 1) * arguments.heads + head] =
                    half == 0 ? fmaf(of_k.x, to_scale, of_v.x) : fmaf(of_k.y, to_scale, of_v.y);
            }
        }
    }
    const int64_t start = to_row * arguments.kv_stride + head * width;
    store_rows<Width>(shared, d_k, to_scale, to_scale, static_cast<bf16*>(arguments.d_k) + start, arguments.kv_stride, rows, width);
    store_rows<Width>(shared + TileBytes, d_v, 1.0f, 1.0f, static_cast<bf16*>(arguments.d_v) + start, arguments.kv_stride, rows, width);
}

// Both in one launch: the blocks of one fill the multiprocessors that those of the other leave.
template <typename Products, int Width, bool Dropped> __device__ __forceinline__ void attention_backward(const AttentionArguments& arguments) {
    if (static_cast<int>(blockIdx.x) >= arguments.key_tiles) return attention_queries<Products, Width, Dropped>(arguments);
    attention_keys<Products, Width, Dropped>(arguments);
}

}  // namespace promptmix
