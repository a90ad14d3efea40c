// The head and its cross entropy without logits: attention with keys and values that are the head's rows E.
//
//   z_v = h · E_v;  log_sum_exp = log sum_v e^(z_v);  negative_log_likelihood = log_sum_exp - z_label
//   loss = (1 - e)·(log_sum_exp - z_label) + e·(log_sum_exp - mean_v z_v) + zeta·log_sum_exp^2
//   d_h = w·((1 + 2·zeta·log_sum_exp)·sum_v p_v E_v - (1 - e)·E_label - e·mean_v E_v), p = softmax(z), w the row's weight
//
// Shapes: hidden [T, D] and E [V, D] in the operand format, mean_v E_v [D] f32, d_hidden [T, D] f32; results [T].
// `loss_words` goes once through a range of words with a running maximum: of each row it leaves the maximum, the sum of
// exponentials above it, the most likely word (the lowest of equals), the label's logit, and sum_v e^(z_v - maximum) E_v.
// `loss_rows` joins the ranges in order.
//
// loss_words_bf16: a block takes 32 rows and up to 1,024 columns, a warp 128 of them, 16 words a step in two stages of
// cp.async. A warp copies, multiplies and sums its own columns of E alone: from one tile in shared memory it computes both its part of
// the logits, E's rows along the depth, and of the weighted sum, E's rows as the depth. So E is read once for every 32 rows;
// blocks of one range and other rows run beside each other and find it in the second-level cache. The warps' parts of the
// logits meet in shared memory. Where D is more than 1,024 a block sums the logits' other columns first, slice by slice.
// Grid: x ranges, y rows / 32, z D / 1,024. The weighted sums stay in registers through a range.
// Bytes: E V·D·2 once, and for T rows in G ranges 4·G·T·D written and read; G is what fills the GPU once. With logits it would be
// E twice, and 14·T·V.
// loss_rows: grid x rows, y D / 512. f32: a block a row and range; for verification.
// On sm_80, with D of 1,024; with D of 512 half of both, two blocks: registers a thread, bytes of shared memory a block, blocks a multiprocessor at once:
//   loss_words_bf16 255 83584 1, loss_rows_bf16 33 2176 12, loss_words_f32 64 512 8, loss_rows_f32 33 2176 12
#include "attention.cuh"
#include "dependent.cuh"
#include "rows.cuh"

using namespace promptmix;

struct LossArguments {
    Descriptor batch;
    const void* hidden;
    const void* lm_head;
    const float* mean;                 // [D], or null without label smoothing
    float4* partials;                  // [ranges, rows]: maximum, sum, most likely word as int bits
    float* label_logits;               // [rows]
    float* weighted;                   // [ranges, rows, D], or null without a gradient
    float* negative_log_likelihood;    // [rows]
    float* loss;                       // [rows]
    int* greedy;                       // [rows]
    float* d_hidden;                   // [rows, D], or null
    int width;                         // D
    int vocabulary;
    int words;                         // of a range
    int ranges;
    int rows;                          // room for T
    int slices;                        // of 1,024 columns
    float smoothing;
    float z_loss;
};

constexpr int BLOCK_ROWS = 32;
constexpr int WORDS = 16;           // of a step: the depth of one mma
constexpr int WARP_COLUMNS = 128;
constexpr int TILE_BYTES = WORDS * WARP_COLUMNS * 2;
constexpr int MAX_WARPS = 8;       // of a block, and so columns of which it holds the weighted sum
constexpr int MAX_RANGES = 256;    // that a row's parts are joined of

// A warp's columns of 32 rows, as left operands; zeros after what exists.
__device__ __forceinline__ void load_hidden(uint32_t (&to)[2][8][4], const bf16* hidden, int rows, int column, int width) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int step = 0; step < 8; ++step) {
#pragma unroll
            for (int part = 0; part < 4; ++part) {
                const int row = i * 16 + lane / 4 + part % 2 * 8, at = column + step * 16 + lane % 4 * 2 + part / 2 * 8;
                const bool any = row < rows && at < width;
                to[i][step][part] = any ? *reinterpret_cast<const uint32_t*>(hidden + static_cast<int64_t>(row) * width + at) : 0u;
            }
        }
    }
}

extern "C" __global__ void __launch_bounds__(MAX_WARPS * 32, 1) loss_words_bf16(LossArguments arguments) {
    wait_for_earlier_launches();
    extern __shared__ __align__(128) unsigned char shared[];
    __shared__ float most[BLOCK_ROWS], sum[BLOCK_ROWS], shrink[BLOCK_ROWS];
    __shared__ int best[BLOCK_ROWS], labels[BLOCK_ROWS];
    const Batch batch{arguments.batch};
    const int first_row = blockIdx.y * BLOCK_ROWS, rows = batch.rows(DECODER) - first_row;
    if (rows <= 0) return;
    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32, warps = blockDim.x / 32;
    const int width = arguments.width, slices = arguments.slices, own = blockIdx.z, fragments = rows > 16 ? 2 : 1;
    const int first_word = blockIdx.x * arguments.words, words = min(arguments.words, arguments.vocabulary - first_word);
    const int steps = (words + WORDS - 1) / WORDS;
    const uint32_t tiles = shared_address(shared) + warp * 2 * TILE_BYTES;
    float2* const logits = reinterpret_cast<float2*>(shared + warps * 2 * TILE_BYTES);    // [warps, 8, 32]: parts, as fragments lie
    uint32_t* const p = reinterpret_cast<uint32_t*>(logits + warps * 8 * 32);             // [8, 32]: left operands
    const bf16* const hidden = static_cast<const bf16*>(arguments.hidden) + static_cast<int64_t>(first_row) * width;
    const bf16* const lm_head = static_cast<const bf16*>(arguments.lm_head) + static_cast<int64_t>(first_word) * width;
    const auto load = [&](uint32_t to, int step, int slice) {
        const int chunk = lane % 16, column = (slice * warps + warp) * WARP_COLUMNS + chunk * 8;
        if (step < steps) {
#pragma unroll
            for (int i = 0; i < WORDS / 2; ++i) {
                const int row = i * 2 + lane / 16, word = step * WORDS + row;
                const bool any = word < words && column < width;
                copy_async(to + swizzled<WARP_COLUMNS>(row, chunk), any ? lm_head + static_cast<int64_t>(word) * width + column : lm_head, any);
            }
        }
        commit_copies();
    };
    if (thread < BLOCK_ROWS) {
        most[thread] = -INFINITY;
        sum[thread] = 0.0f;
        best[thread] = arguments.vocabulary;
        labels[thread] = thread < rows ? batch.label(first_row + thread) : -1;
    }
    float weighted[2][16][4] = {};
    uint32_t left[2][8][4];
    // The block's own slice comes last, so that its tile is still there when the logits are whole.
    int slice = own + 1 < slices ? own + 1 : 0;
    uint32_t full = tiles, empty = tiles + TILE_BYTES;
    load(full, 0, slice);
    if (slices == 1) load_hidden(left, hidden, rows, warp * WARP_COLUMNS, width);
    __syncthreads();
    for (int step = 0; step < steps; ++step) {
        float z[2][2][4] = {};
        for (int pass = 0; pass < slices; ++pass) {
            const int next = slice + 1 < slices ? slice + 1 : 0;
            __syncwarp();
            load(empty, pass + 1 < slices ? step : step + 1, next);
            wait_for_copies<1>();
            __syncwarp();
            if (slices > 1) load_hidden(left, hidden, rows, (slice * warps + warp) * WARP_COLUMNS, width);
#pragma unroll
            for (int depth = 0; depth < WARP_COLUMNS / 16; ++depth) {
                uint32_t right[4];
                right_rows<WARP_COLUMNS>(right, full, 0, depth);
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    if (i < fragments) {
                        multiply_add(z[i][0], left[i][depth], right[0], right[1]);
                        multiply_add(z[i][1], left[i][depth], right[2], right[3]);
                    }
                }
            }
            slice = next;
            const uint32_t last = full;
            full = empty;
            empty = last;
        }
        // `empty` is now the own slice's tile: nothing is loaded into it before the weighted sum has it.
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            if (i < fragments) {
#pragma unroll
                for (int half = 0; half < 2; ++half) {
#pragma unroll
                    for (int j = 0; j < 2; ++j) {
                        logits[(warp * 8 + (i * 2 + half) * 2 + j) * 32 + lane] = make_float2(z[i][j][half * 2], z[i][j][half * 2 + 1]);
                    }
                }
            }
        }
        __syncthreads();
        // Eight rows at a time, a quad a row, as fragments lie: four words a lane.
        for (int eight = warp; eight < fragments * 2; eight += warps) {
            const int row = eight * 8 + lane / 4, word = step * WORDS + lane % 4 * 2;
            float value[4] = {};
            for (int part = 0; part < warps; ++part) {
#pragma unroll
                for (int j = 0; j < 2; ++j) {
                    const float2 two = logits[(part * 8 + eight * 2 + j) * 32 + lane];
                    value[j * 2] += two.x;
                    value[j * 2 + 1] += two.y;
                }
            }
            float top = -INFINITY;
            int of_top = arguments.vocabulary;
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const int at = word + e / 2 * 8 + e % 2;
                if (at >= words) value[e] = -INFINITY;
                if (value[e] > top) {
                    top = value[e];
                    of_top = first_word + at;
                }
                if (at < words && first_word + at == labels[row] && own == 0) arguments.label_logits[first_row + row] = value[e];
            }
#pragma unroll
            for (int across = 1; across < 4; across <<= 1) {
                const float other = __shfl_xor_sync(0xffffffffu, top, across);
                const int of_other = __shfl_xor_sync(0xffffffffu, of_top, across);
                if (other > top || (other == top && of_other < of_top)) {
                    top = other;
                    of_top = of_other;
                }
            }
            const float before = most[row], now = fmaxf(before, top);
            float part = 0.0f;
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                value[e] = __expf(value[e] - now);
                part += value[e];
            }
            part = quad_sum(part);
            // Register half + 2·j of the left operand of its sixteen rows.
#pragma unroll
            for (int j = 0; j < 2; ++j) {
                p[(eight / 2 * 4 + eight % 2 + 2 * j) * 32 + lane] = pack_bf16(value[2 * j], value[2 * j + 1]);
            }
            __syncwarp();
            if (lane % 4 == 0) {
                const float less = __expf(before - now);
                shrink[row] = less;
                sum[row] = sum[row] * less + part;
                most[row] = now;
                if (top > before) best[row] = of_top;
            }
        }
        __syncthreads();
        if (arguments.weighted == nullptr) continue;
        uint32_t weights[2][4];
        bool shrinks = false;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            if (i < fragments) {
                shrinks = shrinks || shrink[i * 16 + lane / 4] != 1.0f || shrink[i * 16 + lane / 4 + 8] != 1.0f;
#pragma unroll
                for (int part = 0; part < 4; ++part) weights[i][part] = p[(i * 4 + part) * 32 + lane];
            }
        }
        if (__any_sync(0xffffffffu, shrinks)) {
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                if (i < fragments) {
                    const float low = shrink[i * 16 + lane / 4], high = shrink[i * 16 + lane / 4 + 8];
#pragma unroll
                    for (int j = 0; j < 16; ++j) {
                        weighted[i][j][0] *= low;
                        weighted[i][j][1] *= low;
                        weighted[i][j][2] *= high;
                        weighted[i][j][3] *= high;
                    }
                }
            }
        }
#pragma unroll
        for (int j = 0; j < 16; j += 2) {
            uint32_t right[4];
            right_columns<WARP_COLUMNS>(right, empty, j, 0);
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                if (i < fragments) {
                    multiply_add(weighted[i][j], weights[i], right[0], right[1]);
                    multiply_add(weighted[i][j + 1], weights[i], right[2], right[3]);
                }
            }
        }
    }
    wait_for_copies<0>();
    const int64_t start = static_cast<int64_t>(blockIdx.x) * arguments.rows + first_row;
    if (own == 0 && thread < min(rows, BLOCK_ROWS)) {
        arguments.partials[start + thread] = make_float4(most[thread], sum[thread], __int_as_float(best[thread]), 0.0f);
    }
    if (arguments.weighted == nullptr) return;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int row = i * 16 + lane / 4 + half * 8;
            if (row >= rows) continue;
            float* const to = arguments.weighted + (start + row) * width;
#pragma unroll
            for (int j = 0; j < 16; ++j) {
                const int column = (own * warps + warp) * WARP_COLUMNS + j * 8 + lane % 4 * 2;
                if (column < width) *reinterpret_cast<float2*>(to + column) = make_float2(weighted[i][j][half * 2], weighted[i][j][half * 2 + 1]);
            }
        }
    }
}

// A row and a range: 128 words at a time.
extern "C" __global__ void __launch_bounds__(128) loss_words_f32(LossArguments arguments) {
    wait_for_earlier_launches();
    __shared__ float z[128];
    const Batch batch{arguments.batch};
    const int64_t row = blockIdx.y;
    if (row >= batch.rows(DECODER)) return;
    const int thread = threadIdx.x, width = arguments.width, label = batch.label(row);
    const int first_word = blockIdx.x * arguments.words, words = min(arguments.words, arguments.vocabulary - first_word);
    const float* const hidden = static_cast<const float*>(arguments.hidden) + row * width;
    const float* const lm_head = static_cast<const float*>(arguments.lm_head) + static_cast<int64_t>(first_word) * width;
    const int64_t at = static_cast<int64_t>(blockIdx.x) * arguments.rows + row;
    float* const to = arguments.weighted == nullptr ? nullptr : arguments.weighted + at * width;
    float most = -INFINITY, sum = 0.0f;
    int best = arguments.vocabulary;
    for (int first = 0; first < words; first += 128) {
        const int count = min(128, words - first);
        __syncthreads();
        for (int word = thread / 32; word < count; word += 4) {
            const float* const e = lm_head + static_cast<int64_t>(first + word) * width;
            float value = 0.0f;
            for (int column = thread % 32; column < width; column += 32) value = fmaf(hidden[column], e[column], value);
            value = warp_sum(value);
            if (thread % 32 == 0) z[word] = value;
        }
        __syncthreads();
        float now = most;
        for (int word = 0; word < count; ++word) {
            if (z[word] > now) {
                now = z[word];
                best = first_word + first + word;
            }
        }
        const int of_label = label - first_word - first;
        if (thread == 0 && of_label >= 0 && of_label < count) arguments.label_logits[row] = z[of_label];
        __syncthreads();
        if (thread < count) z[thread] = expf(z[thread] - now);
        __syncthreads();
        const float shrink = expf(most - now);
        sum *= shrink;
        for (int word = 0; word < count; ++word) sum += z[word];
        most = now;
        if (to == nullptr) continue;
        for (int column = thread; column < width; column += 128) {
            float value = first == 0 ? 0.0f : to[column] * shrink;
            for (int word = 0; word < count; ++word) value = fmaf(z[word], lm_head[static_cast<int64_t>(first + word) * width + column], value);
            to[column] = value;
        }
    }
    if (thread == 0) arguments.partials[at] = make_float4(most, sum, __int_as_float(best), 0.0f);
}

// The ranges of one row together, four columns of d_hidden a thread.
template <typename T> __device__ __forceinline__ void loss_rows(const LossArguments& arguments) {
    __shared__ float factors[MAX_RANGES], sums[MAX_RANGES];
    __shared__ float products[4];
    const Batch batch{arguments.batch};
    const int64_t row = blockIdx.x;
    if (row >= batch.rows(DECODER)) return;
    const int thread = threadIdx.x, width = arguments.width, ranges = arguments.ranges;
    const float4* const partials = arguments.partials + row;
    for (int range = thread; range < ranges; range += 128) {
        const float4 one = partials[static_cast<int64_t>(range) * arguments.rows];
        factors[range] = one.x;
        sums[range] = one.y;
    }
    __syncthreads();
    float most = -INFINITY;
    int largest = 0;
#pragma unroll 8
    for (int range = 0; range < ranges; ++range) {
        if (factors[range] > most) {
            most = factors[range];
            largest = range;
        }
    }
    __syncthreads();
    for (int range = thread; range < ranges; range += 128) factors[range] = expf(factors[range] - most);
    __syncthreads();
    float sum = 0.0f;
#pragma unroll 8
    for (int range = 0; range < ranges; ++range) sum = fmaf(factors[range], sums[range], sum);
    const float log_sum_exp = most + logf(sum), smoothing = arguments.smoothing;
    if (blockIdx.y == 0) {
        float mean = 0.0f;
        if (arguments.mean != nullptr) {
            const T* const hidden = static_cast<const T*>(arguments.hidden) + row * width;
            for (int column = thread; column < width; column += 128) mean = fmaf(to_float(hidden[column]), arguments.mean[column], mean);
            mean = warp_sum(mean);
            if (thread % 32 == 0) products[thread / 32] = mean;
            __syncthreads();
            mean = products[0] + products[1] + products[2] + products[3];
        }
        if (thread == 0) {
            const float negative = log_sum_exp - arguments.label_logits[row];
            arguments.negative_log_likelihood[row] = negative;
            float loss = negative;
            if (arguments.mean != nullptr) loss = (1.0f - smoothing) * negative + smoothing * (log_sum_exp - mean);
            arguments.loss[row] = loss + arguments.z_loss * log_sum_exp * log_sum_exp;
            const int best = __float_as_int(partials[static_cast<int64_t>(largest) * arguments.rows].z);
            // A row without a finite logit has no most likely token.
            arguments.greedy[row] = best < arguments.vocabulary ? best : 0;
        }
    }
    const int column = (blockIdx.y * 128 + thread) * FLOAT_COLUMNS;
    if (arguments.d_hidden == nullptr || column >= width) return;
    const float weight = batch.row_weight(row);
    const float of_words = weight * (1.0f + 2.0f * arguments.z_loss * log_sum_exp) / sum, of_label = weight * (1.0f - smoothing);
    const float* const weighted = arguments.weighted + row * width + column;
    Columns<FLOAT_COLUMNS> c = {};
    // Few blocks have many ranges to wait for: some at once.
    constexpr int AtOnce = 8;
    for (int first = 0; first < ranges; first += AtOnce) {
        Columns<FLOAT_COLUMNS> some[AtOnce];
#pragma unroll
        for (int j = 0; j < AtOnce; ++j) {
            const int64_t range = min(first + j, ranges - 1);
            some[j] = load_columns<FLOAT_COLUMNS>(weighted + range * arguments.rows * width);
        }
#pragma unroll
        for (int j = 0; j < AtOnce; ++j) {
            const float factor = first + j < ranges ? factors[first + j] : 0.0f;
#pragma unroll
            for (int i = 0; i < FLOAT_COLUMNS; ++i) c.value[i] = fmaf(factor, some[j].value[i], c.value[i]);
        }
    }
    const int label = batch.label(row);
    const Columns<FLOAT_COLUMNS> e =
        load_columns<FLOAT_COLUMNS>(static_cast<const T*>(arguments.lm_head) + static_cast<int64_t>(label) * width + column);
#pragma unroll
    for (int i = 0; i < FLOAT_COLUMNS; ++i) c.value[i] = of_words * c.value[i] - of_label * e.value[i];
    if (arguments.mean != nullptr) {
        const Columns<FLOAT_COLUMNS> mean = load_columns<FLOAT_COLUMNS>(arguments.mean + column);
#pragma unroll
        for (int i = 0; i < FLOAT_COLUMNS; ++i) c.value[i] -= weight * smoothing * mean.value[i];
    }
    store_columns(arguments.d_hidden + row * width + column, c);
}

extern "C" __global__ void __launch_bounds__(128) loss_rows_bf16(LossArguments arguments) {
    wait_for_earlier_launches();
    loss_rows<bf16>(arguments);
}
extern "C" __global__ void __launch_bounds__(128) loss_rows_f32(LossArguments arguments) {
    wait_for_earlier_launches();
    loss_rows<float>(arguments);
}
