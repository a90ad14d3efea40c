// The mixture of prompts, all in f32: pool, scorer, scores, softmax, interpolation; and back.
//
//   x_b = max over the example's embedding rows, (max - mean) · scale in a run that standardizes its inputs;  h by the scorer;
//   a = softmax_j(key_j · h / temperature), or of learnt logits alone
//   Z_b = P_tgt + sum_j a_j P_j, times the embedding's mask: the encoder's prompt rows, with their partial sums of squares
//   d_a_j = <d_Z_b, P_j>;  d_P_tgt by the value, the residual add and its key; the scorer's gradients
//
// Shapes: table [V, D], sources [S, M, D] with keys [S, D], the trained state [runs, length] by offsets, x and d_x [R, D];
// attention and scores [B, P] ([B, M, P] for the token scorer), P = S + 1 with the target last, or S without it.
// Kernels and grids: `target_keys` a block 32 columns of a target prompt, its rows in eight parts; `mix_scores` and `mix_d_scores` a block of 1,024
// threads an example; `token_scores` a block a prompt row and eight examples; `mix_rows` a block a prompt row and sixteen
// examples, so that a source number is read once for sixteen; `mix_d_attention` a block a prompt row and eight examples;
// `mix_d_state` a thread a number of the state, which sums over its run's examples in order, found once a block: no atomics.
// Bytes: forward reads the table rows of each example's tokens, the sources once for sixteen examples, and writes B·M rows of
// 4·D + 2·D + D / 16.
// Backward keeps attention, scores, x_b, W_down x_b, the LayerNorm's standardised rows and deviations, h, and arg-maxes.
// On sm_80, with D of 512 and a rank of 100: registers a thread, bytes of shared memory a block, blocks a multiprocessor at once:
//   target_keys 32 2048 8, mix_scores 64 4624 1, token_scores 39 0 6, mix_rows 124 4352 4, mix_d_attention 40 16384 6,
//   mix_d_scores 64 6272 1, mix_d_state 48 1056 5
#include "dependent.cuh"
#include "rows.cuh"

using namespace promptmix;

enum ScorerKind : int { PLAIN_PROMPT = -1, BOTTLENECK = 0, LINEAR = 1, DOT = 2, TOKEN = 3, UNIFORM = 4, CONSTANT = 5 };

struct MixArguments {
    Descriptor batch;
    const float* table;
    const float* sources;
    const float* source_keys;
    const float* values;        // the trained state
    float* gradient;
    float* x;                   // or d_x, which is read
    bf16* copy;                 // of x, or null
    float* partials;            // [R, ceil(D / 64)], or null
    Mask mask;                  // of x
    float* attention;
    float* scores;
    float* pooled;              // [B, D]
    float* down;                // [B, Q]
    float* standardised;        // [B, D]
    float* reciprocal_deviation;// [B]
    float* h;                   // [B, D]
    float* target_keys;         // [runs·targets, D]
    int* target_rows;           // [runs·targets, D]
    float* d_attention;         // [M, B, P]
    float* d_scores;            // as attention
    float* d_h;                 // [B, D]
    float* d_v;                 // [B, D]: of the LayerNorm's input
    float* d_down;              // [B, Q]
    int64_t state_length;       // of one run
    // Where each part lies in a run's state; -1 where it is not.
    int64_t target_prompts;
    int64_t w_down;
    int64_t w_up;
    int64_t weight;
    int64_t norm_weight;
    int64_t norm_bias;
    int64_t log_temperature;
    int64_t logits;
    int64_t input_mean;
    int64_t input_scale;
    int source_count;
    int prompts;                // P
    int scorer;
    int length;                 // M
    int width;                  // D
    int bottleneck_dim;                   // Q
    int targets;
    int runs;
    float temperature;
    float layer_norm_epsilon;
};

constexpr int THREADS = 256;
constexpr int WARPS = THREADS / 32;
// Of `mix_scores` and `mix_d_scores`, whose one block an example waits for memory all its life: the more warps, the more of
// it at once.
constexpr int SCORE_THREADS = 1024;
constexpr int SCORE_WARPS = SCORE_THREADS / 32;

__device__ __forceinline__ int64_t target_index(const MixArguments& m, const Batch& batch, int b) {
    return static_cast<int64_t>(batch.run(b)) * m.targets + batch.target(b);
}
__device__ __forceinline__ int64_t target_start(const MixArguments& m, const Batch& batch, int b) {
    const int64_t prompt = static_cast<int64_t>(m.length) * m.width;
    return batch.run(b) * m.state_length + m.target_prompts +
           batch.target(b) * prompt;
}
__device__ __forceinline__ int attention_rows(const MixArguments& m) { return m.scorer == TOKEN ? m.length : 1; }
__device__ __forceinline__ float inverse_temperature(const MixArguments& m, int run) {
    if (m.log_temperature < 0) return 1.0f / m.temperature;
    return 1.0f / expf(m.values[run * m.state_length + m.log_temperature]);
}

// Sum over the block in one fixed order; every thread gets the sum. Ends with all threads past the shared memory.
template <int Warps> __device__ __forceinline__ float block_sum(float value, float* shared) {
    value = warp_sum(value);
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
    __syncthreads();
    float sum = 0.0f;
    for (int i = 0; i < Warps; ++i) sum += shared[i];
    __syncthreads();
    return sum;
}

constexpr int KEY_COLUMNS = 32;                   // of a block of `target_keys`
constexpr int KEY_PARTS = THREADS / KEY_COLUMNS;  // of the prompt's rows

// Each column's largest number and the lowest row that has it. A number that is none is never larger, and stays where it comes
// first of all.
extern "C" __global__ void __launch_bounds__(THREADS) target_keys(MixArguments m) {
    wait_for_earlier_launches();
    __shared__ float largest[KEY_PARTS][KEY_COLUMNS];
    __shared__ int largest_row[KEY_PARTS][KEY_COLUMNS];
    const int of_block = threadIdx.x % KEY_COLUMNS, part = threadIdx.x / KEY_COLUMNS, column = blockIdx.x * KEY_COLUMNS + of_block;
    const int64_t prompt = blockIdx.y, run = prompt / m.targets, target = prompt % m.targets;
    const float* const values = m.values + run * m.state_length + m.target_prompts + target * m.length * m.width + column;
    const int rows = (m.length + KEY_PARTS - 1) / KEY_PARTS, first = part * rows, last = min(first + rows, m.length);
    float most = -INFINITY;
    int kept = first;
    if (column < m.width) {
        if (part == 0) most = values[0];
#pragma unroll 16
        for (int row = first; row < last; ++row) {
            const float value = values[static_cast<int64_t>(row) * m.width];
            if (value > most) {
                most = value;
                kept = row;
            }
        }
    }
    largest[part][of_block] = most;
    largest_row[part][of_block] = kept;
    __syncthreads();
    if (part != 0 || column >= m.width) return;
    for (int i = 1; i < KEY_PARTS; ++i) {
        if (largest[i][of_block] > most) {
            most = largest[i][of_block];
            kept = largest_row[i][of_block];
        }
    }
    m.target_keys[prompt * m.width + column] = most;
    m.target_rows[prompt * m.width + column] = kept;
}

__device__ __forceinline__ float sigmoid(float u) { return 1.0f / (1.0f + expf(-u)); }

// Softmax of `count` scores by one warp, `from` and `to` in global memory.
__device__ __forceinline__ void warp_softmax(const float* from, float* to, int count) {
    const int lane = threadIdx.x % 32;
    float most = -INFINITY, sum = 0.0f;
    for (int j = lane; j < count; j += 32) most = fmaxf(most, from[j]);
    most = warp_max(most);
    for (int j = lane; j < count; j += 32) sum += expf(from[j] - most);
    sum = warp_sum(sum);
    for (int j = lane; j < count; j += 32) to[j] = expf(from[j] - most) / sum;
}

__device__ __forceinline__ float dot(const float* a, const float* b, int width) {
    float sum = 0.0f;
#pragma unroll 8
    for (int i = threadIdx.x % 32; i < width; i += 32) sum = fmaf(a[i], b[i], sum);
    return warp_sum(sum);
}

// Rows and columns that a warp takes at once, so that their loads do not wait for each other.
constexpr int DOTS = 4;
constexpr int AT_ONCE = 4;
// Rows of W_up whose numbers a thread of the backward pass asks for at once.
constexpr int SHARE_AT_ONCE = 16;

// Gives `to` the products of `rows` rows of `matrix` with `x`, four a warp at a time.
template <typename To>
__device__ __forceinline__ void products(const float* matrix, int rows, const float* x, int width, const To& to) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (int first = warp; first < rows; first += SCORE_WARPS * DOTS) {
        float sums[DOTS] = {};
        // All loads come before the first sum. Columns after the last are the last once more and count nothing: a loop that ends early
        // would wait for its last columns one by one.
        for (int start = lane; start < width; start += 32 * AT_ONCE) {
            float of_x[AT_ONCE], of_row[AT_ONCE][DOTS];
#pragma unroll
            for (int k = 0; k < AT_ONCE; ++k) {
                const int i = min(start + 32 * k, width - 1);
                of_x[k] = start + 32 * k < width ? x[i] : 0.0f;
#pragma unroll
                for (int j = 0; j < DOTS; ++j) {
                    of_row[k][j] = matrix[static_cast<int64_t>(min(first + j * SCORE_WARPS, rows - 1)) * width + i];
                }
            }
#pragma unroll
            for (int k = 0; k < AT_ONCE; ++k) {
#pragma unroll
                for (int j = 0; j < DOTS; ++j) sums[j] = fmaf(of_row[k][j], of_x[k], sums[j]);
            }
        }
#pragma unroll
        for (int j = 0; j < DOTS; ++j) {
            const float sum = warp_sum(sums[j]);
            if (lane == 0 && first + j * SCORE_WARPS < rows) to(first + j * SCORE_WARPS, sum);
        }
    }
}

extern "C" __global__ void __launch_bounds__(SCORE_THREADS) mix_scores(MixArguments m) {
    wait_for_earlier_launches();
    extern __shared__ float shared[];  // x_b, then h: D each; then W_down x_b: Q; then a sum a warp
    const Batch batch{m.batch};
    const int b = blockIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (b >= batch.examples()) return;
    const int run = batch.run(b), width = m.width;
    float *const x = shared, *const h = shared + width, *const down = h + width, *const sums = down + m.bottleneck_dim;
    if (m.scorer == UNIFORM) {
        for (int j = threadIdx.x; j < m.prompts; j += SCORE_THREADS) m.attention[b * m.prompts + j] = 1.0f / m.prompts;
        return;
    }
    const float* const state = m.values + run * m.state_length;
    if (m.scorer == CONSTANT) {
        if (warp == 0) warp_softmax(state + m.logits, m.attention + static_cast<int64_t>(b) * m.prompts, m.prompts);
        return;
    }
    const int first = batch.offset(ENCODER, b) + m.length, last = batch.offset(ENCODER, b + 1);
    const int padding = batch.at(batch.of.pooled_padding, b);
    for (int column = threadIdx.x; column < width; column += SCORE_THREADS) {
        float most = -INFINITY;
#pragma unroll 8
        for (int row = first; row < last + (padding >= 0 ? 1 : 0); ++row) {
            const int id = row < last ? batch.id(ENCODER, row) : padding;
            const float value = m.table[static_cast<int64_t>(id) * width + column];
            if (value > most || isnan(value)) most = value;
        }
        if (m.input_mean >= 0) most = (most - state[m.input_mean + column]) * state[m.input_scale + column];
        x[column] = most;
        h[column] = most;
        m.pooled[static_cast<int64_t>(b) * width + column] = most;
    }
    __syncthreads();
    if (m.scorer == LINEAR) {
        products(state + m.weight, width, x, width, [&](int row, float value) { h[row] = value; });
        __syncthreads();
    }
    if (m.scorer == BOTTLENECK || m.scorer == TOKEN) {
        products(state + m.w_down, m.bottleneck_dim, x, width, [&](int row, float value) {
            m.down[static_cast<int64_t>(b) * m.bottleneck_dim + row] = value;
            down[row] = value * sigmoid(value);
        });
        __syncthreads();
        products(state + m.w_up, width, down, m.bottleneck_dim, [&](int row, float value) { h[row] = value; });
        __syncthreads();
    }
    if (m.scorer != DOT) {
        float sum = 0.0f;
        for (int column = threadIdx.x; column < width; column += SCORE_THREADS) sum += h[column];
        const float mean = block_sum<SCORE_WARPS>(sum, sums) / width;
        sum = 0.0f;
        for (int column = threadIdx.x; column < width; column += SCORE_THREADS) sum += (h[column] - mean) * (h[column] - mean);
        const float reciprocal = 1.0f / sqrtf(block_sum<SCORE_WARPS>(sum, sums) / width + m.layer_norm_epsilon);
        for (int column = threadIdx.x; column < width; column += SCORE_THREADS) {
            const float standard = (h[column] - mean) * reciprocal;
            m.standardised[static_cast<int64_t>(b) * width + column] = standard;
            h[column] = standard * state[m.norm_weight + column] + state[m.norm_bias + column];
        }
        if (threadIdx.x == 0) m.reciprocal_deviation[b] = reciprocal;
        __syncthreads();
    }
    for (int column = threadIdx.x; column < width; column += SCORE_THREADS) m.h[static_cast<int64_t>(b) * width + column] = h[column];
    if (m.scorer == TOKEN) return;
    const float inverse = inverse_temperature(m, run);
    float* const scores = m.scores + static_cast<int64_t>(b) * m.prompts;
    for (int j = warp; j < m.prompts; j += SCORE_WARPS) {
        const float* const key = j < m.source_count ? m.source_keys + static_cast<int64_t>(j) * width
                                                    : m.target_keys + target_index(m, batch, b) * width;
        const float value = inverse * dot(key, h, width);
        if (lane == 0) scores[j] = value;
    }
    __syncthreads();
    if (warp == 0) warp_softmax(scores, m.attention + static_cast<int64_t>(b) * m.prompts, m.prompts);
}

// A prompt row against eight examples, a warp each.
extern "C" __global__ void __launch_bounds__(THREADS) token_scores(MixArguments m) {
    wait_for_earlier_launches();
    const Batch batch{m.batch};
    const int row = blockIdx.x, b = blockIdx.y * WARPS + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (b >= batch.examples()) return;
    const int width = m.width;
    const float inverse = inverse_temperature(m, batch.run(b));
    const float* const h = m.h + static_cast<int64_t>(b) * width;
    const int64_t at = (static_cast<int64_t>(b) * m.length + row) * m.prompts;
    for (int j = 0; j < m.prompts; ++j) {
        const float* const key = j < m.source_count
                                     ? m.sources + (static_cast<int64_t>(j) * m.length + row) * width
                                     : m.values + target_start(m, batch, b) + static_cast<int64_t>(row) * width;
        const float value = inverse * dot(key, h, width);
        if (lane == 0) m.scores[at + j] = value;
    }
    __syncwarp();
    warp_softmax(m.scores + at, m.attention + at, m.prompts);
}

constexpr int MIXED = 16;       // examples that share one reading of the sources
constexpr int MIXED_THREADS = 128;
constexpr int ATTENTION_PART = 64;  // prompts whose weights are in shared memory at a time

// x[prompt row of b] = (sum_j a_j P_j + (1 + a_own) P_tgt)·mask, for 16 examples; a thread four columns.
extern "C" __global__ void __launch_bounds__(MIXED_THREADS) mix_rows(MixArguments m) {
    wait_for_earlier_launches();
    __shared__ float weights[MIXED][ATTENTION_PART];
    __shared__ float own_weights[MIXED];
    __shared__ int64_t starts[MIXED];  // of the target prompts
    __shared__ int first_rows[MIXED];
    const Batch batch{m.batch};
    const int row = blockIdx.x, first = blockIdx.z * MIXED, column = (blockIdx.y * MIXED_THREADS + threadIdx.x) * FLOAT_COLUMNS;
    const int examples = min(MIXED, batch.examples() - first);
    if (examples <= 0) return;
    const int attention_row = m.scorer == TOKEN ? row : 0, rows = attention_rows(m);
    if (static_cast<int>(threadIdx.x) < examples) {
        const int example = first + threadIdx.x;
        const int64_t own = (static_cast<int64_t>(example) * rows + attention_row) * m.prompts + m.source_count;
        first_rows[threadIdx.x] = batch.offset(ENCODER, example);
        if (m.target_prompts >= 0) {
            own_weights[threadIdx.x] = 1.0f + (m.scorer == PLAIN_PROMPT ? 0.0f : m.attention[own]);
            starts[threadIdx.x] = target_start(m, batch, example);
        }
    }
    __syncthreads();
    float4 z[MIXED] = {};
    const int mixed = m.scorer == PLAIN_PROMPT ? 0 : m.source_count;
    for (int part = 0; part < mixed; part += ATTENTION_PART) {
        const int count = min(ATTENTION_PART, mixed - part);
        __syncthreads();
        for (int i = threadIdx.x; i < MIXED * ATTENTION_PART; i += MIXED_THREADS) {
            const int b = i / ATTENTION_PART, j = i % ATTENTION_PART;
            const bool any = b < examples && j < count;
            weights[b][j] = any ? m.attention[(static_cast<int64_t>(first + b) * rows + attention_row) * m.prompts + part + j] : 0.0f;
        }
        __syncthreads();
        if (column < m.width) {
#pragma unroll 2
            for (int j = 0; j < count; ++j) {
                const float4 p = load4(m.sources + (static_cast<int64_t>(part + j) * m.length + row) * m.width + column);
#pragma unroll
                for (int b = 0; b < MIXED; ++b) {
                    const float a = weights[b][j];
                    z[b].x = fmaf(a, p.x, z[b].x);
                    z[b].y = fmaf(a, p.y, z[b].y);
                    z[b].z = fmaf(a, p.z, z[b].z);
                    z[b].w = fmaf(a, p.w, z[b].w);
                }
            }
        }
    }
    int64_t held = -1;  // where the target prompt that `p` is of begins: most examples share one
    float4 p = {};
#pragma unroll
    for (int b = 0; b < MIXED; ++b) {
        if (b >= examples) break;
        Columns<FLOAT_COLUMNS> c = {};
        if (column < m.width) {
            if (m.target_prompts >= 0) {
                const float own = own_weights[b];
                if (starts[b] != held) {
                    held = starts[b];
                    const float* const from = m.values + held + static_cast<int64_t>(row) * m.width + column;
                    // States are stacked without gaps: after one of an odd length the next begins anywhere.
                    p = m.state_length % 4 == 0 ? load4(from) : make_float4(from[0], from[1], from[2], from[3]);
                }
                z[b].x = fmaf(own, p.x, z[b].x);
                z[b].y = fmaf(own, p.y, z[b].y);
                z[b].z = fmaf(own, p.z, z[b].z);
                z[b].w = fmaf(own, p.w, z[b].w);
            }
            c = {{z[b].x, z[b].y, z[b].z, z[b].w}};
            if (m.mask.step != nullptr) drop(c, MaskRow(m.mask, batch, first + b, row), column);
            const int64_t at = static_cast<int64_t>(first_rows[b] + row) * m.width + column;
            store_columns(m.x + at, c);
            if (m.copy != nullptr) store_columns(m.copy + at, c);
        }
        if (m.partials != nullptr) write_partials(m.partials, first_rows[b] + row, m.width, column, c);
    }
}

constexpr int D_PROMPTS = 8;    // prompts whose row is in shared memory at a time
constexpr int D_COLUMNS = 512;  // columns of them

// <d_Z_b[row], P_j[row]> for eight examples, a warp each.
extern "C" __global__ void __launch_bounds__(THREADS) mix_d_attention(MixArguments m) {
    wait_for_earlier_launches();
    __shared__ float rows[D_PROMPTS][D_COLUMNS];
    const Batch batch{m.batch};
    const int row = blockIdx.x, b = blockIdx.y * WARPS + threadIdx.x / 32, lane = threadIdx.x % 32;
    const int examples = batch.examples();
    if (static_cast<int>(blockIdx.y) * WARPS >= examples) return;
    const bool any = b < examples;
    const float* const d_z = m.x + static_cast<int64_t>(any ? batch.offset(ENCODER, b) + row : 0) * m.width;
    float* const to = m.d_attention + (static_cast<int64_t>(row) * examples + b) * m.prompts;
    for (int first = 0; first < m.source_count; first += D_PROMPTS) {
        const int count = min(D_PROMPTS, m.source_count - first);
        float sums[D_PROMPTS] = {};
        for (int start = 0; start < m.width; start += D_COLUMNS) {
            const int columns = min(D_COLUMNS, m.width - start);
            __syncthreads();
#pragma unroll
            for (int i = threadIdx.x; i < D_PROMPTS * D_COLUMNS; i += THREADS) {
                const int j = i / D_COLUMNS, column = i % D_COLUMNS;
                const bool some = j < count && column < columns;
                rows[j][column] =
                    some ? m.sources[(static_cast<int64_t>(first + j) * m.length + row) * m.width + start + column] : 0.0f;
            }
            __syncthreads();
            if (any) {
#pragma unroll 8
                for (int column = lane; column < columns; column += 32) {
                    const float d = d_z[start + column];
#pragma unroll
                    for (int j = 0; j < D_PROMPTS; ++j) sums[j] = fmaf(d, rows[j][column], sums[j]);
                }
            }
        }
#pragma unroll
        for (int j = 0; j < D_PROMPTS; ++j) {
            const float sum = warp_sum(sums[j]);
            if (any && lane == 0 && j < count) to[first + j] = sum;
        }
    }
    if (any && m.target_prompts >= 0) {
        const float sum = dot(m.values + target_start(m, batch, b) + static_cast<int64_t>(row) * m.width, d_z, m.width);
        if (lane == 0) to[m.source_count] = sum;
    }
}

// d_scores of an example, d_h, the LayerNorm's backward and d_down.
extern "C" __global__ void __launch_bounds__(SCORE_THREADS, 1) mix_d_scores(MixArguments m) {
    wait_for_earlier_launches();
    extern __shared__ float shared[];  // d_h, then d_v: D; then a sum a warp
    const Batch batch{m.batch};
    const int b = blockIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32, examples = batch.examples();
    if (b >= examples) return;
    const int run = batch.run(b), width = m.width, rows = attention_rows(m);
    float *const d_h = shared, *const sums = shared + width;
    const int64_t start = static_cast<int64_t>(b) * rows * m.prompts;
    float* const d_scores = m.d_scores + start;
    const float* const attention = m.attention + start;
    // d_a of one softmax is the sum over its prompt rows, in order.
    for (int i = threadIdx.x; i < rows * m.prompts; i += SCORE_THREADS) {
        const int j = i % m.prompts, only = i / m.prompts;
        float sum = 0.0f;
#pragma unroll 8
        for (int row = rows == 1 ? 0 : only; row < (rows == 1 ? m.length : only + 1); ++row) {
            sum += m.d_attention[(static_cast<int64_t>(row) * examples + b) * m.prompts + j];
        }
        d_scores[i] = sum;
    }
    __syncthreads();
    for (int row = warp; row < rows; row += SCORE_WARPS) {
        const float mean = dot(d_scores + row * m.prompts, attention + row * m.prompts, m.prompts);
        for (int j = lane; j < m.prompts; j += 32) {
            const int i = row * m.prompts + j;
            d_scores[i] = attention[i] * (d_scores[i] - mean);
        }
    }
    if (m.scorer == CONSTANT) return;
    __syncthreads();
    const float inverse = inverse_temperature(m, run);
    for (int column = threadIdx.x; column < width; column += SCORE_THREADS) {
        float sum = 0.0f;
        for (int row = 0; row < rows; ++row) {
            for (int j = 0; j < m.prompts; ++j) {
                float key;
                if (j < m.source_count) {
                    key = rows == 1 ? m.source_keys[static_cast<int64_t>(j) * width + column]
                                    : m.sources[(static_cast<int64_t>(j) * m.length + row) * width + column];
                } else {
                    key = rows == 1 ? m.target_keys[target_index(m, batch, b) * width + column]
                                    : m.values[target_start(m, batch, b) + static_cast<int64_t>(row) * width + column];
                }
                sum = fmaf(d_scores[row * m.prompts + j] * inverse, key, sum);
            }
        }
        d_h[column] = sum;
        m.d_h[static_cast<int64_t>(b) * width + column] = sum;
    }
    __syncthreads();
    const float* const state = m.values + run * m.state_length;
    if (m.scorer != DOT) {
        const float* const standard = m.standardised + static_cast<int64_t>(b) * width;
        float sum = 0.0f, along = 0.0f;
        for (int column = threadIdx.x; column < width; column += SCORE_THREADS) {
            const float d = d_h[column] * state[m.norm_weight + column];
            d_h[column] = d;
            sum += d;
            along = fmaf(d, standard[column], along);
        }
        sum = block_sum<SCORE_WARPS>(sum, sums) / width;
        along = block_sum<SCORE_WARPS>(along, sums) / width;
        for (int column = threadIdx.x; column < width; column += SCORE_THREADS) {
            const float d = m.reciprocal_deviation[b] * (d_h[column] - sum - standard[column] * along);
            d_h[column] = d;
            m.d_v[static_cast<int64_t>(b) * width + column] = d;
        }
        __syncthreads();
    }
    if (m.scorer == BOTTLENECK || m.scorer == TOKEN) {
        // `Shares` threads sum up a number of d_down, each every so many columns, and one adds up their parts in order.
        constexpr int Numbers = 128, Shares = SCORE_THREADS / Numbers;
        __shared__ float parts[Shares][Numbers];
        const int share = threadIdx.x / Numbers, number = threadIdx.x % Numbers;
        for (int first = 0; first < m.bottleneck_dim; first += Numbers) {
            const int q = first + number;
            float sum = 0.0f;
            if (q < m.bottleneck_dim) {
                const float* const w_up = state + m.w_up + q;
                for (int start = share; start < width; start += Shares * SHARE_AT_ONCE) {
                    float of_up[SHARE_AT_ONCE];
#pragma unroll
                    for (int i = 0; i < SHARE_AT_ONCE; ++i) {
                        of_up[i] = w_up[static_cast<int64_t>(min(start + i * Shares, width - 1)) * m.bottleneck_dim];
                    }
#pragma unroll
                    for (int i = 0; i < SHARE_AT_ONCE; ++i) {
                        const int column = start + i * Shares;
                        if (column < width) sum = fmaf(d_h[column], of_up[i], sum);
                    }
                }
            }
            parts[share][number] = sum;
            __syncthreads();
            if (share == 0 && q < m.bottleneck_dim) {
                for (int i = 1; i < Shares; ++i) sum += parts[i][number];
                const float u = m.down[static_cast<int64_t>(b) * m.bottleneck_dim + q], s = sigmoid(u);
                m.d_down[static_cast<int64_t>(b) * m.bottleneck_dim + q] = sum * (s + u * s * (1.0f - s));
            }
            __syncthreads();
        }
    }
}

// A number of a run's state: the part it is of, and its row and column there; a target prompt's has the target too.
enum StatePart : int { TARGET_PROMPT, DOWN, UP, WEIGHT, NORM_WEIGHT, NORM_BIAS, LOG_TEMPERATURE, LOGIT, UNTRAINED };
struct StateNumber {
    StatePart part;
    int target;
    int row;
    int column;
};

__device__ __forceinline__ StateNumber state_number(const MixArguments& m, int64_t index) {
    const int64_t width = m.width, prompt = m.length * width, matrix = m.bottleneck_dim * width;
    const auto within = [&](int64_t start, int64_t length) { return start >= 0 && index >= start && index < start + length; };
    const auto cell = [&](StatePart part, int64_t offset, int64_t columns) {
        return StateNumber{part, 0, static_cast<int>(offset / columns), static_cast<int>(offset % columns)};
    };
    if (within(m.target_prompts, prompt * m.targets)) {
        const int64_t offset = index - m.target_prompts;
        StateNumber number = cell(TARGET_PROMPT, offset % prompt, width);
        number.target = static_cast<int>(offset / prompt);
        return number;
    }
    if (m.scorer != PLAIN_PROMPT && m.scorer != UNIFORM) {
        if (within(m.w_down, matrix)) return cell(DOWN, index - m.w_down, width);
        if (within(m.w_up, matrix)) return cell(UP, index - m.w_up, m.bottleneck_dim);
        if (within(m.weight, width * width)) return cell(WEIGHT, index - m.weight, width);
        if (within(m.norm_weight, width)) return cell(NORM_WEIGHT, index - m.norm_weight, width);
        if (within(m.norm_bias, width)) return cell(NORM_BIAS, index - m.norm_bias, width);
        if (index == m.log_temperature) return cell(LOG_TEMPERATURE, 0, 1);
        if (within(m.logits, m.prompts)) return cell(LOGIT, index - m.logits, m.prompts);
    }
    return cell(UNTRAINED, 0, 1);
}

// `sum` with what `of` makes of it for each example in order; loads of several do not wait for each other.
template <typename Of> __device__ __forceinline__ float over_examples(const int* examples, int count, float sum, const Of& of) {
#pragma unroll 8
    for (int i = 0; i < count; ++i) sum = of(examples[i], sum);
    return sum;
}

// `sum` with what `examples` of `run` add to the gradient of `number`.
__device__ __forceinline__ float with_examples(const MixArguments& m, const Batch& batch, int run, StateNumber number, const int* examples,
                                               int count, float sum) {
    const int row = number.row, column = number.column, width = m.width, bottleneck_dim = m.bottleneck_dim;
    const auto wide = [&](int b) { return static_cast<int64_t>(b) * width; };
    const auto narrow = [&](int b) { return static_cast<int64_t>(b) * bottleneck_dim; };
    const auto over = [&](const auto& of) { return over_examples(examples, count, sum, of); };
    switch (number.part) {
        case TARGET_PROMPT: {
            const bool weighted = m.scorer != PLAIN_PROMPT, token = m.scorer == TOKEN;
            const int64_t key = (static_cast<int64_t>(run) * m.targets + number.target) * width + column;
            const bool reached =
                token || (weighted && m.scorer != UNIFORM && m.scorer != CONSTANT && m.target_rows[key] == row);
            const float inverse = reached ? inverse_temperature(m, run) : 0.0f;
            return over([&](int b, float sum) {
                const bool own_target = batch.target(b) == number.target;
                const int64_t at = (static_cast<int64_t>(b) * attention_rows(m) + (token ? row : 0)) * m.prompts + m.source_count;
                const float own = 1.0f + (weighted ? m.attention[at] : 0.0f);
                const float by_key = reached ? m.d_scores[at] * inverse * m.h[wide(b) + column] : 0.0f;
                const float d_z = m.x[(batch.offset(ENCODER, b) + static_cast<int64_t>(row)) * width + column];
                return own_target ? sum + (own * d_z + by_key) : sum;
            });
        }
        case DOWN:
            return over([&](int b, float sum) { return fmaf(m.d_down[narrow(b) + row], m.pooled[wide(b) + column], sum); });
        case UP:
            return over([&](int b, float sum) {
                const float u = m.down[narrow(b) + column];
                return fmaf(m.d_v[wide(b) + row], u * sigmoid(u), sum);
            });
        case WEIGHT: return over([&](int b, float sum) { return fmaf(m.d_v[wide(b) + row], m.pooled[wide(b) + column], sum); });
        case NORM_WEIGHT:
            return over([&](int b, float sum) { return fmaf(m.d_h[wide(b) + column], m.standardised[wide(b) + column], sum); });
        case NORM_BIAS: return over([&](int b, float sum) { return sum + m.d_h[wide(b) + column]; });
        case LOG_TEMPERATURE: {
            const int64_t scores = static_cast<int64_t>(attention_rows(m)) * m.prompts;
            for (int i = 0; i < count; ++i) {
                for (int64_t j = examples[i] * scores; j < (examples[i] + 1) * scores; ++j) sum = fmaf(-m.d_scores[j], m.scores[j], sum);
            }
            return sum;
        }
        case LOGIT: return over([&](int b, float sum) { return sum + m.d_scores[static_cast<int64_t>(b) * m.prompts + column]; });
        default: return sum;
    }
}

// Adds to the gradient: a thread one number of one run's state. The block looks for its run's examples once, and not each
// thread among all examples: many runs share a batch.
extern "C" __global__ void __launch_bounds__(THREADS) mix_d_state(MixArguments m) {
    wait_for_earlier_launches();
    __shared__ int found[THREADS], counts[WARPS];
    const Batch batch{m.batch};
    const int64_t index = static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x;
    const int run = blockIdx.y, examples = batch.examples(), warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const StateNumber number = state_number(m, index);
    float sum = 0.0f;
    for (int first = 0; first < examples; first += THREADS) {
        const int candidate = first + threadIdx.x;
        const bool is_own = candidate < examples && batch.run(candidate) == run;
        const unsigned votes = __ballot_sync(0xffffffffu, is_own);
        if (lane == 0) counts[warp] = __popc(votes);
        __syncthreads();
        int before = __popc(votes & ((1u << lane) - 1)), count = 0;
        for (int i = 0; i < WARPS; ++i) {
            if (i < warp) before += counts[i];
            count += counts[i];
        }
        if (is_own) found[before] = candidate;
        __syncthreads();
        sum = with_examples(m, batch, run, number, found, count, sum);
    }
    if (index < m.state_length) m.gradient[run * m.state_length + index] += sum;
}
