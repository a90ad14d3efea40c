// Cross attention absorbed into the encoder's rows, for short targets: no keys and no values of them exist.
//
//   q'_ih = W_k,h^T q_ih;  s_ihj = q'_ih · h_j;  p = softmax_j(s);  mixed_ih = sum_j p_ihj mask_ihj h_j;  o_ih = W_v,h mixed_ih
//   d_mixed = W_v,h^T d_o;  ds_ihj = p_ihj·(d_mixed_ih · h_j·mask_ihj - delta_ih), delta_ih = d_o_ih · o_ih
//   d_q' = sum_j ds_ihj h_j;  d_q = W_k,h d_q', inner = <d_q, q>
//   d_h_j = sum of all layers' sum_ih ds_ihj q'_ih + p_ihj mask_ihj d_mixed_ih
//
// Shapes: q, o, d_o, d_q [T, H·K]; q', mixed, d_mixed, d_q' [T, H, D]; h [R, D]; W_k, W_v [H·K, D]; all in the operand
// format; d_h [R, D] f32. K up to 128, K and D multiples of 8. The pairs of an example, its t·H rows by its n keys, lie row
// by row, rows as many pairs apart as n rounded up to eight; where an example begins follows from its first encoder row and
// the most targets that an example may have (`Pairs`), so no table of them is made. Of the scores, in f32, are kept with
// each tile's maximum and sum of exponentials; the weights of the products are bf16.
//
// Two products do all of it. `dot_products`: 64 rows by 64 rows along their columns, each of four warps 16 of the latter
// (scores, d_mixed · h, and the heads' products that end in K columns). `mix_rows`: 64 rows of weights by rows of 128
// columns, each warp 32 of them (mixed, d_q', d_h, and the heads' products that end in D columns). Of the 64 rows only
// multiples of 16 that exist are computed: t·H is often 16.
// Where heads are up to 64 wide, the product that makes q or d_o is one kernel with its widen: `project`, `project_backward`.
// Grids: widen and project (D / 128, T / 64, H) · scores and their backward (tiles of 64 encoder rows, rows / 64) · mix (D / 128,
// rows / 64, examples) · backward, which is d_q' alone, likewise · sources, which is d_h of up to 24 layers (D / 128, tiles) · narrow
// (K / 64, T / 16 to 64, H). Counts come from the descriptor; surplus blocks exit.
// Bytes, forward: W_k and W_v once for every 64 targets, h once for the scores and once for mixed, for every 64 rows of an
// example. Backward: the same, h read once more for d_q'; d_h written once for all layers, whose q', d_mixed, ds and p are kept
// until then: t·H rows of a layer are too few to fill a depth of 64, those of all layers are not. No atomics: a block owns what it
// writes. Backward keeps q', the scores and their tiles' sums.
// f32: a block a row, sums in order of columns; for verification.
// On sm_80: registers a thread, bytes of shared memory a block, blocks a multiprocessor at once:
//   cross_scores_bf16 120 49664 3, cross_scores_backward_bf16 120 49664 3, cross_widen_bf16 108 49664 3,
//   cross_project_bf16 116 73984 2, cross_project_backward_bf16 122 73984 2, cross_mix_bf16 120 49664 3,
//   cross_backward_bf16 109 49664 3, cross_sources_bf16 125 49664 3, cross_narrow_bf16 124 49664 3, cross_widen_f32 32 0 16,
//   cross_narrow_f32 45 128 10, cross_scores_f32 46 128 10, cross_mix_f32 32 0 16, cross_scores_backward_f32 54 128 9,
//   cross_backward_f32 32 0 16, cross_sources_f32 32 0 16
#include "cross_attention.cuh"
#include "dependent.cuh"

using namespace promptmix;

// The product before widen.
struct ProjectedArguments {
    CrossArguments of;
    const void* a;           // [T, D]: x, or d_x
    const void* weight;      // W_q [H·K, D], or W_o [D, H·K]
    const float* partials;   // of the norm of x
    void* middle;            // [T, H·K]: q, or d_o
    float epsilon;
    int padding;
};

// What d_h is summed from: of so many layers, in order.
constexpr int MAX_LAYERS = 24;
struct SourceArguments {
    CrossArguments of;
    const void* weights[2 * MAX_LAYERS];  // of each layer ds, then p·mask
    const void* rows[2 * MAX_LAYERS];     // of each layer q', then d_mixed
    int layers;
    int adds;                              // whether d_h is added to
};

constexpr int SLICE = 128;           // columns of a block of mix_rows
constexpr int STAGES = 3;            // of dot_products
constexpr int LEFT_BYTES = PAIR_TILE * 64 * 2, RIGHT_BYTES = 64 * SLICE * 2;

// Eight columns of a tile's row, by eight lanes a row.
__device__ __forceinline__ Columns<8> load_chunk(const float* tile, int row, int chunk) {
    return load_shared(tile + row * PAIR_STRIDE + chunk * 8, chunk);
}

// Stores the scores of a tile of keys, their maximum and their sum of exponentials above it; `tile` has them, from `first_row` on.
__device__ __forceinline__ void store_scores(const CrossArguments& arguments, const Pairs& pairs, const TileEntry& entry, const float* tile,
                                             int first_row) {
    const int rows = pairs.rows - first_row;
    const int chunk = threadIdx.x % 8, key = entry.first + chunk * 8;
#pragma unroll 1
    for (int row = threadIdx.x / 8; row < (min(rows, PAIR_TILE) + 15) / 16 * 16; row += 16) {
        Columns<8> c = load_chunk(tile, row, chunk);
        const float2 sum = sum_of_scores(c, key, pairs.keys);
        if (row >= rows) continue;
        if (key < pairs.stride) {
            store_columns(arguments.scores + pairs.start + static_cast<int64_t>(first_row + row) * pairs.stride + key, c);
        }
        if (chunk == 0) {
            const int most_rows = arguments.longest * arguments.heads;
            arguments.sums[pairs.slot + static_cast<int64_t>(entry.first / PAIR_TILE) * most_rows + first_row + row] = sum;
        }
    }
}

// The log-sum-exp and delta of at most a tile's rows from `first_row` on.
__device__ __forceinline__ void find_delta(const CrossArguments& arguments, const Pairs& pairs, int first_row, float* log_sum_exp, float* delta) {
    const int rows = pairs.rows - first_row, chunk = threadIdx.x % 8;
    if (static_cast<int>(threadIdx.x) < min(rows, PAIR_TILE)) {
        log_sum_exp[threadIdx.x] = pairs.log_sum_exp(arguments, first_row + threadIdx.x);
    }
#pragma unroll 1
    for (int row = threadIdx.x / 8; row < (min(rows, PAIR_TILE) + 15) / 16 * 16; row += 16) {
        const float sum = delta_of(arguments, pairs.row + first_row + row, row < rows);
        if (chunk == 0) delta[row] = sum;
    }
}

// Stores ds and p·mask of a tile of keys, from d_mixed · h, which `tile` has.
__device__ __forceinline__ void store_gradients(const CrossArguments& arguments, const Batch& batch, const Pairs& pairs,
                                                const TileEntry& entry, const float* tile, const float* log_sum_exp, const float* delta,
                                                int first_row) {
    const int rows = pairs.rows - first_row, chunk = threadIdx.x % 8;
    const int key = entry.first + chunk * 8;
    if (key >= pairs.stride) return;
#pragma unroll 1
    for (int row = threadIdx.x / 8; row < min(rows, PAIR_TILE); row += 16) {
        const int64_t at = pairs.start + static_cast<int64_t>(first_row + row) * pairs.stride + key;
        Columns<8> ds = load_chunk(tile, row, chunk), p = load_columns<8>(arguments.scores + at);
        const Columns<8> factor = factors(arguments, batch, entry.example, first_row + row, key);
        find_gradients(ds, p, factor, log_sum_exp[row], delta[row], key, pairs.keys);
        store_columns(static_cast<bf16*>(arguments.ds) + at, ds);
        store_columns(static_cast<bf16*>(arguments.p) + at, p);
    }
}

// Starts copying `rows` of at most 16·fragments rows and 64 columns, zeros after what exists.
template <int Width>
__device__ __forceinline__ void copy_rows(uint32_t to, const bf16* from, int rows, int64_t stride, int width, int fragments) {
    constexpr int Chunks = Width / 8, AtOnce = 128 / Chunks;
    const int first = threadIdx.x / Chunks, chunk = threadIdx.x % Chunks;
#pragma unroll 4
    for (int row = first; row < fragments * 16; row += AtOnce) {
        const bool any = row < rows && chunk * 8 < width;
        copy_async(to + swizzled<Width>(row, chunk), any ? from + row * stride + chunk * 8 : from, any);
    }
}

// Rows along their columns: what `dot_products` multiplies.
struct Operand {
    const bf16* from;
    int64_t stride;
    int rows;
};

// left (16·fragments rows) times right (64 rows) along `depth` columns, into a tile of f32 with rows PAIR_STRIDE apart. Where right
// lies Across, its rows are the depth, and what are its `rows` otherwise are columns.
template <bool Across = false>
__device__ __forceinline__ float* dot_products(unsigned char* shared, const Operand& left, const Operand& right, int depth, int fragments) {
    constexpr int StageBytes = 2 * LEFT_BYTES;
    const uint32_t base = shared_address(shared);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, stages = (depth + 63) / 64;
    const auto load = [&](uint32_t to, int stage) {
        if (stage < stages) {
            copy_rows<64>(to, left.from + stage * 64, left.rows, left.stride, depth - stage * 64, fragments);
            if (Across) {
                copy_rows<64>(to + LEFT_BYTES, right.from + stage * 64 * right.stride, depth - stage * 64, right.stride, right.rows, 4);
            } else {
                copy_rows<64>(to + LEFT_BYTES, right.from + stage * 64, right.rows, right.stride, depth - stage * 64, 4);
            }
        }
        commit_copies();
    };
    float sums[4][2][4] = {};
    load(base, 0);
    load(base + StageBytes, 1);
    uint32_t full = base, empty = base + (STAGES - 1) * StageBytes;
    for (int stage = 0; stage < stages; ++stage) {
        wait_for_copies<STAGES - 2>();
        __syncthreads();
        load(empty, stage + STAGES - 1);
#pragma unroll
        for (int step = 0; step < 4; ++step) {
            uint32_t b[4];
            if (Across) {
                right_columns<64>(b, full + LEFT_BYTES, warp * 2, step);
            } else {
                right_rows<64>(b, full + LEFT_BYTES, warp * 16, step);
            }
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                if (i < fragments) {
                    uint32_t a[4];
                    left_fragment<64>(a, full, i * 16, step);
                    multiply_add(sums[i][0], a, b[0], b[1]);
                    multiply_add(sums[i][1], a, b[2], b[3]);
                }
            }
        }
        full = full + StageBytes == base + STAGES * StageBytes ? base : full + StageBytes;
        empty = empty + StageBytes == base + STAGES * StageBytes ? base : empty + StageBytes;
    }
    wait_for_copies<0>();
    __syncthreads();
    float* const tile = reinterpret_cast<float*>(shared);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        if (i < fragments) {
#pragma unroll
            for (int j = 0; j < 2; ++j) {
                float* const to = tile + (i * 16 + lane / 4) * PAIR_STRIDE + warp * 16 + j * 8 + lane % 4 * 2;
                store_pair(to, sums[i][j][0], sums[i][j][1]);
                store_pair(to + 8 * PAIR_STRIDE, sums[i][j][2], sums[i][j][3]);
            }
        }
    }
    __syncthreads();
    return tile;
}

__device__ __forceinline__ int fragments_of(int rows) { return (min(rows, PAIR_TILE) + 15) / 16; }

// Scores of a tile of keys, their maximum and their sum of exponentials above it.
extern "C" __global__ void __launch_bounds__(128, 4) cross_scores_bf16(CrossArguments arguments) {
    wait_for_earlier_launches();
    extern __shared__ __align__(128) unsigned char shared[];
    const Batch batch{arguments.batch};
    const TileEntry entry = batch.tile(ENCODER, ALL, blockIdx.x);
    if (entry.example < 0) return;
    const Pairs pairs(arguments, entry);
    const int first_row = blockIdx.y * PAIR_TILE, rows = pairs.rows - first_row, depth = arguments.depth;
    if (rows <= 0) return;
    const Operand left{static_cast<const bf16*>(arguments.absorbed_q) + (pairs.row + first_row) * depth, depth, rows};
    const Operand right{static_cast<const bf16*>(arguments.h) + (pairs.key + entry.first) * depth, depth, pairs.keys - entry.first};
    const int fragments = fragments_of(rows);
    const float* const tile = dot_products(shared, left, right, depth, fragments);
    store_scores(arguments, pairs, entry, tile, first_row);
}

// ds and p·mask of a tile of keys, from d_mixed · h.
extern "C" __global__ void __launch_bounds__(128, 4) cross_scores_backward_bf16(CrossArguments arguments) {
    wait_for_earlier_launches();
    extern __shared__ __align__(128) unsigned char shared[];
    float* const log_sum_exp = reinterpret_cast<float*>(shared + STAGES * 2 * LEFT_BYTES);
    float* const delta = log_sum_exp + PAIR_TILE;
    const Batch batch{arguments.batch};
    const TileEntry entry = batch.tile(ENCODER, ALL, blockIdx.x);
    if (entry.example < 0) return;
    const Pairs pairs(arguments, entry);
    const int first_row = blockIdx.y * PAIR_TILE, rows = pairs.rows - first_row, depth = arguments.depth;
    if (rows <= 0) return;
    const int fragments = fragments_of(rows);
    find_delta(arguments, pairs, first_row, log_sum_exp, delta);
    const Operand left{static_cast<const bf16*>(arguments.d_mixed) + (pairs.row + first_row) * depth, depth, rows};
    const Operand right{static_cast<const bf16*>(arguments.h) + (pairs.key + entry.first) * depth, depth, pairs.keys - entry.first};
    const float* const tile = dot_products(shared, left, right, depth, fragments);
    store_gradients(arguments, batch, pairs, entry, tile, log_sum_exp, delta, first_row);
}

// to += a left tile of 64x64 times a right one of 64 rows and SLICE columns, of which a warp computes 32. The left tile's rows
// are the product's, or, turned, its depth.
template <bool Turned>
__device__ __forceinline__ void mix_tile(float (&to)[4][4][4], uint32_t left, uint32_t right, int fragments) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int step = 0; step < 4; ++step) {
        uint32_t b[2][4];
        right_columns<SLICE>(b[0], right, warp * 4, step);
        right_columns<SLICE>(b[1], right, warp * 4 + 2, step);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            if (i < fragments) {
                uint32_t a[4];
                if (Turned) {
                    load_matrices_transposed(a, left + swizzled<64>(step * 16 + lane / 16 * 8 + lane % 8, i * 2 + lane / 8 % 2));
                } else {
                    left_fragment<64>(a, left, i * 16, step);
                }
#pragma unroll
                for (int j = 0; j < 4; ++j) multiply_add(to[i][j], a, b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
            }
        }
    }
}

// Sums mix_tile over stages: `ahead` starts the copies of a stage's tiles, left before right, while the one before is
// multiplied; `now` writes what of them is not copied.
template <bool Turned, typename Ahead, typename Now>
__device__ __forceinline__ void mix_rows(float (&sums)[4][4][4], unsigned char* shared, int stages, int fragments, const Ahead& ahead,
                                         const Now& now) {
    constexpr int StageBytes = LEFT_BYTES + RIGHT_BYTES;
    const uint32_t base = shared_address(shared);
    ahead(base, 0);
    commit_copies();
    for (int stage = 0; stage < stages; ++stage) {
        const int at = (stage & 1) * StageBytes;
        now(shared + at, stage);
        wait_for_copies<0>();
        __syncthreads();
        if (stage + 1 < stages) ahead(base + (StageBytes - at), stage + 1);
        commit_copies();
        mix_tile<Turned>(sums, base + at, base + at + LEFT_BYTES, fragments);
    }
    __syncthreads();
}

// Rounds the product into shared memory and stores the rows and columns that exist.
__device__ __forceinline__ void store_slice(const float (&sums)[4][4][4], unsigned char* shared, bf16* to, int64_t stride, int rows,
                                            int width, int fragments) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, within = lane % 4 * 4;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        if (i < fragments) {
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const int row = i * 16 + lane / 4;
                *reinterpret_cast<uint32_t*>(shared + swizzled<SLICE>(row, warp * 4 + j) + within) = pack_bf16(sums[i][j][0], sums[i][j][1]);
                *reinterpret_cast<uint32_t*>(shared + swizzled<SLICE>(row + 8, warp * 4 + j) + within) =
                    pack_bf16(sums[i][j][2], sums[i][j][3]);
            }
        }
    }
    __syncthreads();
    constexpr int Chunks = SLICE / 8;
    const int chunk = threadIdx.x % Chunks;
    if (chunk * 8 >= width) return;
    for (int row = threadIdx.x / Chunks; row < min(rows, fragments * 16); row += 128 / Chunks) {
        *reinterpret_cast<uint4*>(to + row * stride + chunk * 8) = *reinterpret_cast<const uint4*>(shared + swizzled<SLICE>(row, chunk));
    }
}

// Each head's K columns times its K rows of the weight: D columns a head.
extern "C" __global__ void __launch_bounds__(128, 4) cross_widen_bf16(CrossArguments arguments) {
    wait_for_earlier_launches();
    extern __shared__ __align__(128) unsigned char shared[];
    const Batch batch{arguments.batch};
    const int first_row = blockIdx.y * PAIR_TILE, rows = batch.rows(DECODER) - first_row;
    if (rows <= 0) return;
    const int head = blockIdx.z, first_column = blockIdx.x * SLICE, depth = arguments.depth, width = arguments.width;
    const int64_t total = static_cast<int64_t>(arguments.heads) * width;
    const bf16* const from = static_cast<const bf16*>(arguments.from) + first_row * total + head * width;
    const bf16* const weight = static_cast<const bf16*>(arguments.weight) + static_cast<int64_t>(head) * width * depth + first_column;
    const int fragments = fragments_of(rows);
    float sums[4][4][4] = {};
    mix_rows<false>(
        sums, shared, (width + 63) / 64, fragments,
        [&](uint32_t to, int stage) {
            copy_rows<64>(to, from + stage * 64, rows, total, width - stage * 64, fragments);
            const bf16* const rows_from = weight + static_cast<int64_t>(stage) * 64 * depth;
            copy_rows<SLICE>(to + LEFT_BYTES, rows_from, width - stage * 64, depth, depth - first_column, 4);
        },
        [](unsigned char*, int) {});
    const int64_t stride = static_cast<int64_t>(arguments.heads) * depth;
    bf16* const to = static_cast<bf16*>(arguments.to) + first_row * stride + static_cast<int64_t>(head) * depth + first_column;
    store_slice(sums, shared, to, stride, rows, depth - first_column, fragments);
}

// The product before widen and widen itself, of heads up to 64 wide: q = r·x W_q^T and then q', or d_o = d_x W_o and then d_mixed.
// What a head has of the first product is 64 columns over all of D, little enough that every block of its D columns makes it anew
// and the launch between the two, with its wait for memory, falls away; the first of them stores it.
template <bool Across> __device__ __forceinline__ void project_and_widen(const ProjectedArguments& arguments) {
    extern __shared__ __align__(128) unsigned char shared[];
    __shared__ float r[PAIR_TILE];
    const CrossArguments& of = arguments.of;
    const Batch batch{of.batch};
    const int first_row = blockIdx.y * PAIR_TILE, rows = batch.rows(DECODER) - first_row;
    if (rows <= 0) return;
    const int head = blockIdx.z, first_column = blockIdx.x * SLICE, depth = of.depth, width = of.width;
    const int64_t total = static_cast<int64_t>(of.heads) * width;
    const int fragments = fragments_of(rows);
    const uint32_t base = shared_address(shared);
    const uint32_t weight = base + STAGES * 2 * LEFT_BYTES, middle = weight + RIGHT_BYTES;
    const bf16* const from = static_cast<const bf16*>(of.weight) + static_cast<int64_t>(head) * width * depth + first_column;
    copy_rows<SLICE>(weight, from, width, depth, depth - first_column, 4);
    commit_copies();
    if (!Across && static_cast<int>(threadIdx.x) < PAIR_TILE) {
        const Norm norm{arguments.partials, depth, arguments.epsilon};
        r[threadIdx.x] = static_cast<int>(threadIdx.x) < rows ? norm.reciprocal_rms(first_row + threadIdx.x) : 0.0f;
    }
    const Operand left{static_cast<const bf16*>(arguments.a) + static_cast<int64_t>(first_row) * depth, depth, rows};
    const bf16* const first = static_cast<const bf16*>(arguments.weight);
    const Operand right{Across ? first + head * width : first + static_cast<int64_t>(head) * width * depth, Across ? total : depth, width};
    const float* const tile = dot_products<Across>(shared, left, right, depth, fragments);
    const int chunk = threadIdx.x % 8;
    unsigned char* const rounded = shared + (middle - base);
    for (int row = threadIdx.x / 8; row < fragments * 16; row += 16) {
        Columns<8> c = load_chunk(tile, row, chunk);
        if (!Across) {
#pragma unroll
            for (int i = 0; i < 8; ++i) c.value[i] *= r[row];
        }
        store_columns(reinterpret_cast<bf16*>(rounded + swizzled<64>(row, chunk)), c);
        if (blockIdx.x == 0 && row < rows && chunk * 8 < width) {
            store_columns(static_cast<bf16*>(arguments.middle) + (first_row + row) * total + head * width + chunk * 8, c);
        }
    }
    __syncthreads();
    float sums[4][4][4] = {};
    mix_tile<false>(sums, middle, weight, fragments);
    const int64_t stride = static_cast<int64_t>(of.heads) * depth;
    bf16* const to = static_cast<bf16*>(of.to) + first_row * stride + static_cast<int64_t>(head) * depth + first_column;
    store_slice(sums, shared, to, stride, rows, depth - first_column, fragments);
}

extern "C" __global__ void __launch_bounds__(128, 3) cross_project_bf16(ProjectedArguments arguments) {
    wait_for_earlier_launches();
    project_and_widen<false>(arguments);
}
extern "C" __global__ void __launch_bounds__(128, 3) cross_project_backward_bf16(ProjectedArguments arguments) {
    wait_for_earlier_launches();
    project_and_widen<true>(arguments);
}

// mixed: probabilities times the example's rows.
extern "C" __global__ void __launch_bounds__(128, 4) cross_mix_bf16(CrossArguments arguments) {
    wait_for_earlier_launches();
    extern __shared__ __align__(128) unsigned char shared[];
    float* const log_sum_exp = reinterpret_cast<float*>(shared + 2 * (LEFT_BYTES + RIGHT_BYTES));
    const Batch batch{arguments.batch};
    const int example = blockIdx.z;
    const Pairs pairs(arguments, batch, example);
    const int first_row = blockIdx.y * PAIR_TILE, rows = pairs.rows - first_row, depth = arguments.depth;
    if (rows <= 0) return;
    const int first_column = blockIdx.x * SLICE, fragments = fragments_of(rows);
    if (static_cast<int>(threadIdx.x) < min(rows, PAIR_TILE)) {
        log_sum_exp[threadIdx.x] = pairs.log_sum_exp(arguments, first_row + threadIdx.x);
    }
    __syncthreads();
    const bf16* const h = static_cast<const bf16*>(arguments.h) + pairs.key * depth + first_column;
    const float* const scores = arguments.scores + pairs.start + static_cast<int64_t>(first_row) * pairs.stride;
    float sums[4][4][4] = {};
    mix_rows<false>(
        sums, shared, (pairs.keys + 63) / 64, fragments,
        [&](uint32_t to, int stage) {
            const bf16* const rows_from = h + static_cast<int64_t>(stage) * 64 * depth;
            copy_rows<SLICE>(to + LEFT_BYTES, rows_from, pairs.keys - stage * 64, depth, depth - first_column, 4);
        },
        [&](unsigned char* to, int stage) {
            const int chunk = threadIdx.x % 8, key = stage * 64 + chunk * 8;
            for (int row = threadIdx.x / 8; row < fragments * 16; row += 16) {
                Columns<8> c = {};
                if (row < rows && key < pairs.stride) {
                    c = load_columns<8>(scores + static_cast<int64_t>(row) * pairs.stride + key);
                    const Columns<8> factor = factors(arguments, batch, example, first_row + row, key);
#pragma unroll
                    for (int i = 0; i < 8; ++i) c.value[i] = __expf(c.value[i] - log_sum_exp[row]) * factor.value[i];
                }
                store_columns(reinterpret_cast<bf16*>(to + swizzled<64>(row, chunk)), c);
            }
        });
    bf16* const to = static_cast<bf16*>(arguments.to) + (pairs.row + first_row) * depth + first_column;
    store_slice(sums, shared, to, depth, rows, depth - first_column, fragments);
}

// d_q' of 64 rows of an example.
extern "C" __global__ void __launch_bounds__(128, 4) cross_backward_bf16(CrossArguments arguments) {
    wait_for_earlier_launches();
    extern __shared__ __align__(128) unsigned char shared[];
    const Batch batch{arguments.batch};
    const int first_column = blockIdx.x * SLICE, first_row = blockIdx.y * PAIR_TILE, depth = arguments.depth;
    const Pairs pairs(arguments, batch, blockIdx.z);
    const int rows = pairs.rows - first_row;
    if (rows <= 0) return;
    const int fragments = fragments_of(rows);
    const bf16* const ds = static_cast<const bf16*>(arguments.ds) + pairs.start + static_cast<int64_t>(first_row) * pairs.stride;
    const bf16* const h = static_cast<const bf16*>(arguments.h) + pairs.key * depth + first_column;
    float sums[4][4][4] = {};
    mix_rows<false>(
        sums, shared, (pairs.keys + 63) / 64, fragments,
        [&](uint32_t to, int stage) {
            copy_rows<64>(to, ds + stage * 64, rows, pairs.stride, pairs.stride - stage * 64, fragments);
            const bf16* const rows_from = h + static_cast<int64_t>(stage) * 64 * depth;
            copy_rows<SLICE>(to + LEFT_BYTES, rows_from, pairs.keys - stage * 64, depth, depth - first_column, 4);
        },
        [](unsigned char*, int) {});
    bf16* const to = static_cast<bf16*>(arguments.d_absorbed_q) + (pairs.row + first_row) * depth + first_column;
    store_slice(sums, shared, to, depth, rows, depth - first_column, fragments);
}

// Which octet of an example's rows lies at some place of all layers' rows, packed: of each layer ds' rows, then those of p, both
// rounded up to eight.
struct Octet {
    int part;                // 2·layer, and one more for p
    int row;                 // of its first, among the example's
    __device__ Octet(int index, int of_part) : part(index / of_part), row((index - part * of_part) * 8) {}
};

// d_h of a tile of encoder rows, of all layers at once: their rows are one depth.
extern "C" __global__ void __launch_bounds__(128, 4) cross_sources_bf16(const __grid_constant__ SourceArguments arguments) {
    wait_for_earlier_launches();
    extern __shared__ __align__(128) unsigned char shared[];
    const Batch batch{arguments.of.batch};
    const TileEntry entry = batch.tile(ENCODER, ALL, blockIdx.y);
    if (entry.example < 0) return;
    const int first_column = blockIdx.x * SLICE, depth = arguments.of.depth;
    const Pairs pairs(arguments.of, entry);
    const int keys = pairs.keys - entry.first, fragments = fragments_of(keys);
    const int of_part = (pairs.rows + 7) / 8, octets = 2 * arguments.layers * of_part;
    float sums[4][4][4] = {};
    mix_rows<true>(
        sums, shared, (octets + 7) / 8, fragments,
        [&](uint32_t to, int stage) {
            const int left_chunk = threadIdx.x % 8, left_row = threadIdx.x / 8 % 8;
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int within = i * 2 + threadIdx.x / 64, index = stage * 8 + within;
                const Octet octet(min(index, octets - 1), of_part);
                const int row = octet.row + left_row;
                const bool any = index < octets && row < pairs.rows && entry.first + left_chunk * 8 < pairs.stride;
                const bf16* const from = static_cast<const bf16*>(arguments.weights[octet.part]) + pairs.start;
                copy_async(to + swizzled<64>(within * 8 + left_row, left_chunk),
                           any ? from + static_cast<int64_t>(row) * pairs.stride + entry.first + left_chunk * 8 : from, any);
            }
            const int chunk = threadIdx.x % 16, right_row = threadIdx.x / 16;
            const bool inside = first_column + chunk * 8 < depth;
#pragma unroll 4
            for (int i = 0; i < 8; ++i) {
                const int index = stage * 8 + i;
                const Octet octet(min(index, octets - 1), of_part);
                const int row = octet.row + right_row;
                const bool any = index < octets && row < pairs.rows && inside;
                const bf16* const from = static_cast<const bf16*>(arguments.rows[octet.part]) + pairs.row * depth;
                copy_async(to + LEFT_BYTES + swizzled<SLICE>(i * 8 + right_row, chunk),
                           any ? from + static_cast<int64_t>(row) * depth + first_column + chunk * 8 : from, any);
            }
        },
        [](unsigned char*, int) {});
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    float* const d_h = arguments.of.d_h + (pairs.key + entry.first) * depth + first_column;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        if (i >= fragments) break;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int row = i * 16 + lane / 4 + half * 8;
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const int column = warp * 32 + j * 8 + lane % 4 * 2;
                if (row >= keys || column >= depth - first_column) continue;
                float2* const at = reinterpret_cast<float2*>(d_h + static_cast<int64_t>(row) * depth + column);
                float2 sum = make_float2(sums[i][j][half * 2], sums[i][j][half * 2 + 1]);
                if (arguments.adds) {
                    const float2 before = *at;
                    sum = make_float2(before.x + sum.x, before.y + sum.y);
                }
                *at = sum;
            }
        }
    }
}

// Each head's D columns times its K rows of the weight read the other way: K columns a head, and their product with q's.
extern "C" __global__ void __launch_bounds__(128, 4) cross_narrow_bf16(CrossArguments arguments) {
    wait_for_earlier_launches();
    extern __shared__ __align__(128) unsigned char shared[];
    const Batch batch{arguments.batch};
    const int first_row = blockIdx.y * arguments.fragments * 16, rows = batch.rows(DECODER) - first_row;
    if (rows <= 0) return;
    const int head = blockIdx.z, first_column = blockIdx.x * 64, depth = arguments.depth, width = arguments.width;
    const int64_t stride = static_cast<int64_t>(arguments.heads) * depth, total = static_cast<int64_t>(arguments.heads) * width;
    const bf16* const from = static_cast<const bf16*>(arguments.from) + first_row * stride + static_cast<int64_t>(head) * depth;
    const bf16* const weight = static_cast<const bf16*>(arguments.weight) + (static_cast<int64_t>(head) * width + first_column) * depth;
    const int fragments = min(arguments.fragments, fragments_of(rows));
    const Operand left{from, stride, rows}, right{weight, depth, width - first_column};
    const float* const tile = dot_products(shared, left, right, depth, fragments);
    const int chunk = threadIdx.x % 8, column = first_column + chunk * 8;
    for (int row = threadIdx.x / 8; row < fragments * 16; row += 16) {
        const bool any = row < rows && column < width;
        const int64_t at = (first_row + row) * total + head * width + column;
        const Columns<8> c = load_chunk(tile, row, chunk);
        if (any) store_columns(static_cast<bf16*>(arguments.to) + at, c);
        if (arguments.q == nullptr) continue;
        float sum = 0.0f;
        if (any) {
            const Columns<8> q = load_columns<8>(static_cast<const bf16*>(arguments.q) + at);
#pragma unroll
            for (int i = 0; i < 8; ++i) sum = fmaf(c.value[i], q.value[i], sum);
        }
        sum = row_sum(sum);
        if (chunk == 0 && row < rows) {
            arguments.inner[(static_cast<int64_t>(first_row + row) * arguments.heads + head) * gridDim.x + blockIdx.x] = sum;
        }
    }
}

// f32. A block of 128 threads a row, or a head's row.

__device__ __forceinline__ float dot_of_warp(const float* a, const float* b, int count) {
    float sum = 0.0f;
    for (int i = threadIdx.x % 32; i < count; i += 32) sum = fmaf(a[i], b[i], sum);
    return warp_sum(sum);
}

// The sum of four warps' numbers, of which every lane of a warp has its warp's.
__device__ __forceinline__ float sum_of_warps(float value) {
    __shared__ float values[4];
    __syncthreads();
    if (threadIdx.x % 32 == 0) values[threadIdx.x / 32] = value;
    __syncthreads();
    return values[0] + values[1] + values[2] + values[3];
}

__device__ __forceinline__ float factor_of(const CrossArguments& arguments, const Batch& batch, int example, int row, int key) {
    const MaskRow mask(arguments.mask, batch, example, row / arguments.heads, row % arguments.heads);
    return mask.any ? mask.factor(mask.draw(key / 8), key % 8) : 1.0f;
}

extern "C" __global__ void __launch_bounds__(128) cross_widen_f32(CrossArguments arguments) {
    wait_for_earlier_launches();
    const Batch batch{arguments.batch};
    const int column = blockIdx.x * 128 + threadIdx.x, head = blockIdx.z, depth = arguments.depth, width = arguments.width;
    const int64_t row = blockIdx.y;
    if (row >= batch.rows(DECODER) || column >= depth) return;
    const float* const from = static_cast<const float*>(arguments.from) + (row * arguments.heads + head) * width;
    const float* const weight = static_cast<const float*>(arguments.weight) + static_cast<int64_t>(head) * width * depth + column;
    float sum = 0.0f;
    for (int k = 0; k < width; ++k) sum = fmaf(from[k], weight[static_cast<int64_t>(k) * depth], sum);
    static_cast<float*>(arguments.to)[(row * arguments.heads + head) * depth + column] = sum;
}

extern "C" __global__ void __launch_bounds__(128) cross_narrow_f32(CrossArguments arguments) {
    wait_for_earlier_launches();
    const Batch batch{arguments.batch};
    const int head = blockIdx.z, depth = arguments.depth, width = arguments.width, warp = threadIdx.x / 32;
    const int64_t row = static_cast<int64_t>(blockIdx.y) * arguments.heads + head;
    if (static_cast<int>(blockIdx.y) >= batch.rows(DECODER)) return;
    const float* const from = static_cast<const float*>(arguments.from) + row * depth;
    const float* const weight = static_cast<const float*>(arguments.weight) + static_cast<int64_t>(head) * width * depth;
    float inner = 0.0f;
    for (int k = warp; k < width; k += 4) {
        const float value = dot_of_warp(from, weight + static_cast<int64_t>(k) * depth, depth);
        if (threadIdx.x % 32 == 0) static_cast<float*>(arguments.to)[row * width + k] = value;
        if (arguments.q != nullptr) inner = fmaf(value, static_cast<const float*>(arguments.q)[row * width + k], inner);
    }
    if (arguments.q == nullptr) return;
    inner = sum_of_warps(inner);
    if (threadIdx.x == 0) arguments.inner[row] = inner;
}

extern "C" __global__ void __launch_bounds__(128) cross_scores_f32(CrossArguments arguments) {
    wait_for_earlier_launches();
    const Batch batch{arguments.batch};
    const int target = blockIdx.x / arguments.heads, warp = threadIdx.x / 32, depth = arguments.depth;
    if (target >= batch.rows(DECODER)) return;
    const int example = batch.example_of_row(DECODER, target);
    const Pairs pairs(arguments, batch, example);
    const int row = static_cast<int>(blockIdx.x - pairs.row);
    const float* const q = static_cast<const float*>(arguments.absorbed_q) + static_cast<int64_t>(blockIdx.x) * depth;
    const float* const h = static_cast<const float*>(arguments.h) + pairs.key * depth;
    float* const scores = arguments.scores + pairs.start + static_cast<int64_t>(row) * pairs.stride;
    float* const p = static_cast<float*>(arguments.p) + pairs.start + static_cast<int64_t>(row) * pairs.stride;
    for (int key = warp; key < pairs.keys; key += 4) {
        const float score = dot_of_warp(q, h + static_cast<int64_t>(key) * depth, depth);
        if (threadIdx.x % 32 == 0) scores[key] = score;
    }
    __syncthreads();
    float most = -INFINITY;
    for (int key = 0; key < pairs.keys; ++key) most = fmaxf(most, scores[key]);
    float sum = 0.0f;
    for (int key = threadIdx.x; key < pairs.keys; key += 128) sum += expf(scores[key] - most);
    sum = sum_of_warps(warp_sum(sum));
    for (int key = threadIdx.x; key < pairs.keys; key += 128) {
        const float share = expf(scores[key] - most) / sum;
        scores[key] = share;
        p[key] = share * factor_of(arguments, batch, example, row, key);
    }
}

extern "C" __global__ void __launch_bounds__(128) cross_mix_f32(CrossArguments arguments) {
    wait_for_earlier_launches();
    const Batch batch{arguments.batch};
    const int target = blockIdx.y / arguments.heads, column = blockIdx.x * 128 + threadIdx.x, depth = arguments.depth;
    if (target >= batch.rows(DECODER) || column >= depth) return;
    const Pairs pairs(arguments, batch, batch.example_of_row(DECODER, target));
    const float* const h = static_cast<const float*>(arguments.h) + pairs.key * depth + column;
    const float* const p = static_cast<const float*>(arguments.p) + pairs.start + (blockIdx.y - pairs.row) * pairs.stride;
    float sum = 0.0f;
    for (int key = 0; key < pairs.keys; ++key) sum = fmaf(p[key], h[static_cast<int64_t>(key) * depth], sum);
    static_cast<float*>(arguments.to)[static_cast<int64_t>(blockIdx.y) * depth + column] = sum;
}

extern "C" __global__ void __launch_bounds__(128) cross_scores_backward_f32(CrossArguments arguments) {
    wait_for_earlier_launches();
    const Batch batch{arguments.batch};
    const int target = blockIdx.x / arguments.heads, warp = threadIdx.x / 32, depth = arguments.depth;
    if (target >= batch.rows(DECODER)) return;
    const int example = batch.example_of_row(DECODER, target);
    const Pairs pairs(arguments, batch, example);
    const int row = static_cast<int>(blockIdx.x - pairs.row);
    const float* const d_mixed = static_cast<const float*>(arguments.d_mixed) + static_cast<int64_t>(blockIdx.x) * depth;
    const float* const h = static_cast<const float*>(arguments.h) + pairs.key * depth;
    const int64_t start = pairs.start + static_cast<int64_t>(row) * pairs.stride;
    const float* const share = arguments.scores + start;
    float* const ds = static_cast<float*>(arguments.ds) + start;
    float* const p = static_cast<float*>(arguments.p) + start;
    float delta = 0.0f;
    for (int key = warp; key < pairs.keys; key += 4) {
        const float factor = factor_of(arguments, batch, example, row, key);
        const float d_p = dot_of_warp(d_mixed, h + static_cast<int64_t>(key) * depth, depth) * factor;
        delta = fmaf(share[key], d_p, delta);
        if (threadIdx.x % 32 == 0) {
            ds[key] = d_p;
            p[key] = share[key] * factor;
        }
    }
    delta = sum_of_warps(delta);
    for (int key = threadIdx.x; key < pairs.keys; key += 128) ds[key] = share[key] * (ds[key] - delta);
}

extern "C" __global__ void __launch_bounds__(128) cross_backward_f32(CrossArguments arguments) {
    wait_for_earlier_launches();
    const Batch batch{arguments.batch};
    const int column = blockIdx.x * 128 + threadIdx.x, depth = arguments.depth;
    const int64_t row = blockIdx.y;
    if (row / arguments.heads >= batch.rows(DECODER) || column >= depth) return;
    const Pairs pairs(arguments, batch, batch.example_of_row(DECODER, static_cast<int>(row / arguments.heads)));
    const float* const ds = static_cast<const float*>(arguments.ds) + pairs.start + (row - pairs.row) * pairs.stride;
    const float* const h = static_cast<const float*>(arguments.h) + pairs.key * depth + column;
    float sum = 0.0f;
    for (int key = 0; key < pairs.keys; ++key) sum = fmaf(ds[key], h[static_cast<int64_t>(key) * depth], sum);
    static_cast<float*>(arguments.d_absorbed_q)[row * depth + column] = sum;
}

extern "C" __global__ void __launch_bounds__(128) cross_sources_f32(const __grid_constant__ SourceArguments arguments) {
    wait_for_earlier_launches();
    const Batch batch{arguments.of.batch};
    const int column = blockIdx.x * 128 + threadIdx.x, depth = arguments.of.depth;
    if (column >= depth || static_cast<int>(blockIdx.y) >= batch.rows(ENCODER)) return;
    const Pairs pairs(arguments.of, batch, batch.example_of_row(ENCODER, blockIdx.y));
    const int64_t first = pairs.start + static_cast<int64_t>(blockIdx.y) - pairs.key;
    float* const to = arguments.of.d_h + static_cast<int64_t>(blockIdx.y) * depth + column;
    float sum = arguments.adds ? *to : 0.0f;
    for (int part = 0; part < 2 * arguments.layers; ++part) {
        const float* const weights = static_cast<const float*>(arguments.weights[part]) + first;
        const float* const rows = static_cast<const float*>(arguments.rows[part]) + pairs.row * depth + column;
        for (int row = 0; row < pairs.rows; ++row) {
            sum = fmaf(weights[static_cast<int64_t>(row) * pairs.stride], rows[static_cast<int64_t>(row) * depth], sum);
        }
    }
    *to = sum;
}
