// Short attention's examples of at most four rows, as labels of one or two words are: a warp an example and head, a row each eight lanes.
// Few instructions, for a launch runs each of them once: the tile of the tensor cores that longer examples fill takes three times as many.
#pragma once
#include "attention.cuh"
#include "rows.cuh"

namespace promptmix {

constexpr int FEW_ROWS = 4;   // of an example
constexpr int FEW_LANES = 8;  // of a row

// A warp's example and head.
struct Short {
    int example, head, rows;
    int64_t row;             // packed, of its first
    int warp_row;            // of its rows in a tile that the block's warps share
    bool any;

    __device__ Short(const AttentionArguments& arguments, const Batch& batch, int example, int head, int warp_row)
        : example(example), head(head), rows(0), row(0), warp_row(warp_row), any(false) {
        if (example >= batch.examples()) return;
        row = batch.offset(arguments.query_side, example);
        rows = batch.offset(arguments.query_side, example + 1) - static_cast<int>(row);
        any = rows > 0;
    }
};

// A lane's columns of a head's row: each eighth of 64.
template <int Width> struct FewColumns {
    Columns<8> part[Width / 64];

    __device__ __forceinline__ void add_scaled(float by, const FewColumns& other) {
#pragma unroll
        for (int i = 0; i < Width / 64; ++i) {
#pragma unroll
            for (int j = 0; j < 8; ++j) part[i].value[j] = fmaf(by, other.part[i].value[j], part[i].value[j]);
        }
    }
    __device__ __forceinline__ void scale(float by) {
#pragma unroll
        for (int i = 0; i < Width / 64; ++i) {
#pragma unroll
            for (int j = 0; j < 8; ++j) part[i].value[j] *= by;
        }
    }
};

// A head's rows of a matrix, where the lane's columns begin. A lane whose columns lie after the width has the last ones once more.
template <int Width> struct FewRows {
    const bf16* first[Width / 64];
    int stride;

    __device__ __forceinline__ FewRows(const void* matrix, int stride, const Short& of, int width)
        : FewRows(static_cast<const bf16*>(matrix) + of.row * stride + of.head * width, stride, width) {}
    // From the first row of the head's columns on.
    __device__ __forceinline__ FewRows(const bf16* head, int stride, int width) : stride(stride) {
#pragma unroll
        for (int i = 0; i < Width / 64; ++i) first[i] = head + min(column(i), width - 8);
    }
    static __device__ __forceinline__ int column(int part) { return part * 64 + static_cast<int>(threadIdx.x % FEW_LANES) * 8; }

    __device__ __forceinline__ FewColumns<Width> load(int row) const {
        FewColumns<Width> columns;
#pragma unroll
        for (int i = 0; i < Width / 64; ++i) columns.part[i] = load_columns<8>(first[i] + static_cast<int64_t>(row) * stride);
        return columns;
    }
    // Zeros after the width: a product of rows then counts each column once.
    __device__ __forceinline__ FewColumns<Width> load_within(int row, int width) const {
        FewColumns<Width> columns = load(row);
#pragma unroll
        for (int i = 0; i < Width / 64; ++i) {
#pragma unroll
            for (int j = 0; j < 8; ++j) columns.part[i].value[j] = column(i) < width ? columns.part[i].value[j] : 0.0f;
        }
        return columns;
    }
    __device__ __forceinline__ void store(int row, int width, const FewColumns<Width>& columns) const {
#pragma unroll
        for (int i = 0; i < Width / 64; ++i) {
            if (column(i) < width) store_columns(const_cast<bf16*>(first[i]) + static_cast<int64_t>(row) * stride, columns.part[i]);
        }
    }
};

// The sum over the lanes of a row.
__device__ __forceinline__ float sum_over_lanes(float value) {
#pragma unroll
    for (int step = FEW_LANES / 2; step > 0; step >>= 1) value += __shfl_xor_sync(0xffffffffu, value, step);
    return value;
}
template <int Width> __device__ __forceinline__ float product_of_rows(const FewColumns<Width>& a, const FewColumns<Width>& b) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < Width / 64; ++i) {
#pragma unroll
        for (int j = 0; j < 8; ++j) sum = fmaf(a.part[i].value[j], b.part[i].value[j], sum);
    }
    return sum_over_lanes(sum);
}

// The bias of a key, times log2 e; none for a key that the query does not see.
__device__ __forceinline__ float few_bias(const AttentionArguments& arguments, const Short& of, int query, int key) {
    const int max_distance = arguments.max_distance;
    float bias = 0.0f;
    if (arguments.bias != nullptr) {
        const float* const of_head = arguments.bias + static_cast<int64_t>(of.head) * (2 * max_distance + 1);
        bias = read_frozen(of_head + min(max(key - query + max_distance, 0), 2 * max_distance)) * LOG2_E;
    }
    return key < of.rows && !(arguments.causal && key > query) ? bias : -INFINITY;
}

// A bit each key that the lane's query keeps.
__device__ __forceinline__ uint32_t draw_few(const AttentionArguments& arguments, const Batch& batch, const Short& of, int query) {
    const MaskRow row(arguments.mask, batch, of.example, query, of.head);
    const uint4 drawn = row.draw(0);
    uint32_t kept = 0;
#pragma unroll
    for (int i = 0; i < FEW_ROWS; ++i) kept |= (row.factor(drawn, i) != 0.0f ? 1u : 0u) << i;
    return kept;
}

// What a lane asks for beside rows, of query lane / 8, or the last one for lanes of a row that does not exist, and key lane % 8.
struct FewBefore {
    float bias;         // times log2 e
    float log_sum_exp;  // of backward, times log2 e; a row that does not exist has no probability
    uint32_t kept;      // a bit each key
    float scale;        // of what is kept
};
template <bool Dropped, bool Backward>
__device__ __forceinline__ FewBefore load_few_before(const AttentionArguments& arguments, const Batch& batch, const Short& of) {
    const int row = threadIdx.x % 32 / FEW_LANES, query = min(row, of.rows - 1);
    FewBefore before = {0.0f, INFINITY, 0, 1.0f};
    before.bias = few_bias(arguments, of, query, threadIdx.x % FEW_LANES);
    if (Backward && row < of.rows) before.log_sum_exp = arguments.log_sum_exp[(of.row + row) * arguments.heads + of.head] * LOG2_E;
    if (Dropped) {
        before.kept = draw_few(arguments, batch, of, query);
        before.scale = arguments.mask.step->scale;
    }
    return before;
}

// What a lane works on: a head's queries, keys and values.
template <int Width> struct FewInput {
    FewRows<Width> queries, keys, values;
};

// `bias_of` gives the query's bias of a key.
template <int Width, bool Dropped, typename BiasOf>
__device__ __forceinline__ void attention_few(const AttentionArguments& arguments, const Short& of, const FewInput<Width>& input,
                                              const FewBefore& before, const BiasOf& bias_of, int width) {
    // Lanes of a row that does not exist have the last one once more, and store nothing.
    const int row = threadIdx.x % 32 / FEW_LANES, query = min(row, of.rows - 1);
    const FewColumns<Width> q = input.queries.load_within(query, width);
    const float scale_log2 = arguments.softmax_scale * LOG2_E;
    float most = -INFINITY, sum = 0.0f;
    FewColumns<Width> out = {};
    // Every query sees the first key, so that `most` is a number from then on.
#pragma unroll 1
    for (int key = 0; key < of.rows; ++key) {
        const FewColumns<Width> k = input.keys.load(key), v = input.values.load(key);
        const float score = fmaf(product_of_rows(q, k), scale_log2, bias_of(key));
        const float next = fmaxf(most, score), shrink = power_of_two(most - next);
        float p = power_of_two(score - next);
        most = next;
        sum = fmaf(sum, shrink, p);
        if (Dropped) p *= factor_of_bit(before.kept, key, before.scale);
        out.scale(shrink);
        out.add_scaled(p, v);
    }
    out.scale(__fdividef(1.0f, sum));
    if (row >= of.rows) return;
    FewRows<Width>(arguments.o, arguments.heads * width, of, width).store(query, width, out);
    if (threadIdx.x % FEW_LANES == 0) {
        arguments.log_sum_exp[(of.row + query) * arguments.heads + of.head] = (most + log2f(sum)) * LN_2;
    }
}

template <int Width, bool Dropped>
__device__ __forceinline__ void attention_few_backward(const AttentionArguments& arguments, const Short& of, const FewInput<Width>& input,
                                                       const FewRows<Width>& d_outs, const FewBefore& before, int width) {
    // A lane has columns of `row`, which is a query and a key; and the score of query `row` and key `key`.
    const int row = threadIdx.x % 32 / FEW_LANES, key = threadIdx.x % FEW_LANES;
    const bool any = row < of.rows;
    const int own = min(row, of.rows - 1);
    const FewColumns<Width> q = input.queries.load_within(own, width), d_o = d_outs.load_within(own, width);
    const float to_scale = arguments.softmax_scale;
    float score = 0.0f, d_p = 0.0f;
#pragma unroll 1
    for (int i = 0; i < of.rows; ++i) {
        const FewColumns<Width> k = input.keys.load(i), v = input.values.load(i);
        const float score_of_key = product_of_rows(q, k), d_p_of_key = product_of_rows(d_o, v);
        if (i == key) {
            score = score_of_key;
            d_p = d_p_of_key;
        }
    }
    const float factor = Dropped ? factor_of_bit(before.kept, key, before.scale) : 1.0f;
    float p = power_of_two(fmaf(score, to_scale * LOG2_E, before.bias - before.log_sum_exp));
    const float delta = sum_over_lanes(p * d_p * factor), ds = p * (d_p * factor - delta);
    p *= factor;
    if (arguments.inner != nullptr) {
        // As kernels/attention.cu has it: <d_q_i, q_i> = sum_j ds_ij (q_i · k_j), and so on.
        const int parts = arguments.inner_parts;
        float* const to = arguments.inner + of.row * parts * arguments.heads + of.head;
        const float product = ds * score * to_scale, of_query = sum_over_lanes(product);
        if (key == 0 && any) to[row * parts * arguments.heads] = of_query;
        float of_key = fmaf(p, d_p, product);
#pragma unroll
        for (int step = FEW_LANES; step < 32; step <<= 1) of_key += __shfl_xor_sync(0xffffffffu, of_key, step);
        if (parts == 2 && row == 0 && key < of.rows) to[(key * 2 + 1) * arguments.heads] = of_key;
    }
    FewColumns<Width> d_q = {}, d_k = {}, d_v = {};
#pragma unroll 1
    for (int i = 0; i < of.rows; ++i) {
        const FewColumns<Width> k = input.keys.load(i), q_i = input.queries.load(i), d_o_i = d_outs.load(i);
        d_q.add_scaled(__shfl_sync(0xffffffffu, ds, row * FEW_LANES + i), k);
        d_k.add_scaled(__shfl_sync(0xffffffffu, ds, i * FEW_LANES + row), q_i);
        d_v.add_scaled(__shfl_sync(0xffffffffu, p, i * FEW_LANES + row), d_o_i);
    }
    if (!any) return;
    d_q.scale(to_scale);
    d_k.scale(to_scale);
    FewRows<Width>(arguments.d_q, arguments.q_stride, of, width).store(row, width, d_q);
    FewRows<Width>(arguments.d_k, arguments.kv_stride, of, width).store(row, width, d_k);
    FewRows<Width>(arguments.d_v, arguments.kv_stride, of, width).store(row, width, d_v);
}

}  // namespace promptmix
