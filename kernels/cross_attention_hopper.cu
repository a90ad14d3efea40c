// Absorbed cross attention, as kernels/cross_attention.cu has it, for compute capability 9.0: by tensor copies and products of a
// warpgroup.
//
//   project    q_h = r·x W_q,h^T, q'_h = q_h W_k,h        or        d_o_h = d_x W_o,h, d_mixed_h = d_o_h W_v,h
//   scores     s_ihj = q'_ih · h_j                        or        ds and p·mask from d_mixed_ih · h_j
//   mix        mixed_ih = sum_j p_ihj mask_ihj h_j        or        d_q'_ih = sum_j ds_ihj h_j
//
// r = 1 / rms of the row from its partial sums of squares. Shapes: x, d_x [T, D]; W_q, W_k, W_v [H·K, D], W_o [D, H·K]; q, d_o
// [T, H·K]; q', d_mixed, mixed, d_q' [T, H, D]; h [R, D]; all in bf16, sums in f32 in the tensor core. K of project up to 64.
//
// Project: a cluster of four blocks has a head and 64 rows. Each brings its quarter of D of both operands of the first product, and of
// the second weight, by tensor copies at once, and computes that part of the head's 64 columns; each then adds up the parts of 16 rows
// in order, rounds them, stores them, and gives them to all four, who multiply them with their quarters of the second weight.
// Scores: a block has 64 keys of an example and 64 of its rows, t·H, and asks for all of D that there are stages for.
// Mix: a block has 64 columns and 64 rows of an example, and makes the weights of 64 keys while copies bring their rows of h.
//
// Grids: project x the blocks of a cluster, y over rows, z heads · scores x tiles of 64 encoder rows, y rows / 64 · mix x D / 64, y rows
// / 64, z examples. Counts come from the descriptor; surplus blocks exit.
// Bytes: project, x and both weights once for every head or row of tiles; scores, h once for every 64 rows of its example; mix the same;
// what is written once. Boxes reach into the next head's columns or the next example's rows: what comes of those is not stored, or meets
// zeros.
// Backward keeps q', the scores and their tiles' sums, as it does of kernels/cross_attention.cu.
// On sm_90a, with D of 768: registers a thread, bytes of shared memory a block, blocks a multiprocessor at once:
//   cross_project_hopper 62 81936 2, cross_project_backward_hopper 59 81936 2, cross_scores_hopper 58 197216 1,
//   cross_scores_backward_hopper 58 197216 1, cross_mix_hopper 69 49440 4, cross_backward_hopper 58 49440 4
#include "cross_attention.cuh"
#include "thin_hopper.cuh"

using namespace promptmix;

struct CrossProjectHopperArguments {
    TensorMap a;             // [T, D]
    TensorMap weight;        // [H·K, D], or W_o [D, H·K]
    TensorMap next;          // [H·K, D]
    Descriptor batch;
    const float* partials;   // of the norm of x
    bf16* middle;            // [T, H·K]: q, or d_o
    bf16* to;                // [T, H, D]: q', or d_mixed
    int rows;                // that the matrices of rows have room for
    int heads;
    int width;               // K
    int depth;               // D
    float epsilon;
    int padding;
};

constexpr int CLUSTER = 4;
static_assert(CLUSTER == MIN_CLUSTER, "as many rows a block as at once");
constexpr int MAX_STRETCHES = 8;   // of D, of a block
// Of dynamic shared memory: the first product's operands, where its sums are after that; the second's weight; its rows; barriers.
constexpr int BYTES_BARRIERS = 16;

// Rounds a tile and stores its columns from `column` on, of `width`, of the `rows` rows that there are from `to` on.
__device__ __forceinline__ void store_rounded(bf16* to, int64_t stride, int rows, int column, int width, const float (&sums)[COLUMNS / 2]) {
    const int lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16 + lane / 4;
    bf16* const own = to + row * stride + column + lane % 4 * 2;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        if (row + half * 8 >= rows) continue;
#pragma unroll
        for (int j = 0; j < COLUMNS / 8; ++j) {
            if (column + j * 8 >= width) break;
            *reinterpret_cast<uint32_t*>(own + half * 8 * stride + j * 8) = pack_bf16(sums[j * 4 + half * 2], sums[j * 4 + half * 2 + 1]);
        }
    }
}

template <bool Across> __device__ __forceinline__ void project(const CrossProjectHopperArguments& arguments) {
    extern __shared__ __align__(1024) unsigned char shared[];
    const Batch batch{arguments.batch};
    const int thread = threadIdx.x, part = blockIdx.x, first_row = blockIdx.y * ROWS, head = blockIdx.z;
    const int depth = arguments.depth, width = arguments.width, stretches = (depth + DEPTH - 1) / DEPTH;
    const int first = stretches * part / CLUSTER, count = stretches * (part + 1) / CLUSTER - first;
    const int most = (stretches + CLUSTER - 1) / CLUSTER;  // of any block, so that the same lies at the same place in all
    const uint32_t stages = shared_address(shared), next = stages + max(most * BYTES_STAGE, (BYTES_SUMS + 1023) / 1024 * 1024);
    const uint32_t middle = next + most * BYTES_OPERAND, barrier = middle + BYTES_OPERAND;
    if (thread == 0) {
        start_barrier(barrier, 1);
        start_barrier(barrier + 8, 1);
        fence_barriers();
    }
    wait_for_earlier_launches();
    if (thread == 0) {
        expect_bytes(barrier, count * BYTES_STAGE);
        expect_bytes(barrier + 8, count * BYTES_OPERAND);
#pragma unroll 1
        for (int i = 0; i < count; ++i) {
            const int column = (first + i) * DEPTH;
            const uint32_t to = stages + i * BYTES_STAGE;
            copy_box(to, arguments.a, barrier, column, first_row);
            copy_box(to + BYTES_OPERAND, arguments.weight, barrier, Across ? head * width : column, Across ? column : head * width);
            copy_box(next + i * BYTES_OPERAND, arguments.next, barrier + 8, column, head * width);
        }
    }
    const int rows = batch.rows(DECODER);
    // The row that this thread finishes eight columns of. Its partial sums may be read before it is known whether there is such a row.
    const int row = part * (ROWS / CLUSTER) + thread / LANES, chunk = thread % LANES;
    float r = 1.0f;
    if (!Across) {
        const int parts = (depth + NORM_COLUMNS - 1) / NORM_COLUMNS;
        const int64_t of_row = min(first_row + row, arguments.rows - 1);
        r = rsqrtf(sum_of_row(arguments.partials + of_row * parts, parts) / static_cast<float>(depth) + arguments.epsilon);
    }
    __syncthreads();
    wait_for_phase(barrier, 0);
    if (first_row >= rows) {
        wait_for_phase(barrier + 8, 0);
        return;
    }
    float sums[COLUMNS / 2];
    fence_products();
#pragma unroll 1
    for (int i = 0; i < count; ++i) {
        multiply_stretch<Across>(sums, stages + i * BYTES_STAGE, stages + i * BYTES_STAGE + BYTES_OPERAND, i > 0);
    }
    commit_products();
    wait_for_products<0>();
    // As in `multiply_stretches`.
    __syncthreads();
    store_sums(reinterpret_cast<float*>(shared), sums, rows - first_row);
    wait_for_cluster();
    Columns<PACKED_COLUMNS> c = sum_of_parts(stages, row, CLUSTER);
#pragma unroll
    for (int i = 0; i < PACKED_COLUMNS; ++i) c.value[i] = chunk * PACKED_COLUMNS < width ? c.value[i] * r : 0.0f;
    const uint4 packed = make_uint4(pack_bf16(c.value[0], c.value[1]), pack_bf16(c.value[2], c.value[3]), pack_bf16(c.value[4], c.value[5]),
                                    pack_bf16(c.value[6], c.value[7]));
    if (first_row + row < rows && chunk * PACKED_COLUMNS < width) {
        const int64_t at = static_cast<int64_t>(first_row + row) * arguments.heads * width + head * width + chunk * PACKED_COLUMNS;
        *reinterpret_cast<uint4*>(arguments.middle + at) = packed;
    }
    const uint32_t place = middle + operand_place(row, chunk);
#pragma unroll
    for (int block = 0; block < CLUSTER; ++block) store_to_block(place, block, packed);
    // By who wrote, and by who is about to read what others wrote here.
    fence_writes();
    __syncwarp();
    wait_for_cluster();
    fence_writes();
    wait_for_phase(barrier + 8, 0);
    const int64_t stride = static_cast<int64_t>(arguments.heads) * depth;
    bf16* const to = arguments.to + first_row * stride + static_cast<int64_t>(head) * depth;
#pragma unroll 1
    for (int i = 0; i < count; ++i) {
        fence_products();
        multiply_stretch<true>(sums, middle, next + i * BYTES_OPERAND, false);
        commit_products();
        wait_for_products<0>();
        store_rounded(to, stride, rows - first_row, (first + i) * DEPTH, depth, sums);
    }
}

extern "C" __global__ void __launch_bounds__(128) __cluster_dims__(CLUSTER, 1, 1)
    cross_project_hopper(const __grid_constant__ CrossProjectHopperArguments arguments) {
    project<false>(arguments);
}
extern "C" __global__ void __launch_bounds__(128) __cluster_dims__(CLUSTER, 1, 1)
    cross_project_backward_hopper(const __grid_constant__ CrossProjectHopperArguments arguments) {
    project<true>(arguments);
}

struct CrossScoresHopperArguments {
    TensorMap left;          // q' or d_mixed [T·H, D]
    TensorMap h;             // [R, D]
    CrossArguments of;
    int stages;              // of D, up to MAX_STAGES
    int padding;
};

constexpr int MAX_STAGES = 12;
static_assert(STRIDE == PAIR_STRIDE && ROWS == PAIR_TILE && LANES == 8, "tiles that both kinds of kernel read");

// Behind the stages of dynamic shared memory: a barrier each, then the log-sum-exp and delta of the rows.
template <bool Backward> __device__ __forceinline__ void scores(const CrossScoresHopperArguments& arguments) {
    extern __shared__ __align__(1024) unsigned char shared[];
    const CrossArguments& of = arguments.of;
    wait_for_earlier_launches();
    const Batch batch{of.batch};
    const TileEntry entry = batch.tile(ENCODER, ALL, blockIdx.x);
    if (entry.example < 0) return;
    const Pairs pairs(of, entry);
    const int first_row = blockIdx.y * PAIR_TILE, stages = arguments.stages;
    if (first_row >= pairs.rows) return;
    const int behind = max(stages * BYTES_STAGE, BYTES_SUMS);
    const uint32_t base = shared_address(shared), full = base + behind;
    float* const log_sum_exp = reinterpret_cast<float*>(shared + behind + MAX_STAGES * 8);
    float* const delta = log_sum_exp + PAIR_TILE;
    const int count = (of.depth + DEPTH - 1) / DEPTH, row = static_cast<int>(pairs.row) + first_row;
    const int key = static_cast<int>(pairs.key) + entry.first;
    const auto bring = [&](int stage, int stretch) {
        const uint32_t to = base + stage * BYTES_STAGE, barrier = full + stage * 8;
        expect_bytes(barrier, BYTES_STAGE);
        copy_box(to, arguments.left, barrier, stretch * DEPTH, row);
        copy_box(to + BYTES_OPERAND, arguments.h, barrier, stretch * DEPTH, key);
    };
    if (threadIdx.x == 0) {
#pragma unroll 1
        for (int stage = 0; stage < stages; ++stage) start_barrier(full + stage * 8, 1);
        fence_barriers();
#pragma unroll 1
        for (int stage = 0; stage < min(count, stages); ++stage) bring(stage, stage);
    }
    if (Backward) find_delta(of, pairs, first_row, log_sum_exp, delta);
    __syncthreads();
    float sums[COLUMNS / 2];
    // Behind the batch's last row lies what nobody wrote.
    const int written = batch.rows(ENCODER) - key;
    multiply_stretches<false>(sums, base, full, stages, count, bring, [&](int stage) {
        if (written < PAIR_TILE) clear_rows(shared + stage * BYTES_STAGE + BYTES_OPERAND, written);
    });
    float* const tile = reinterpret_cast<float*>(shared);
    store_sums(tile, sums, pairs.rows - first_row);
    __syncthreads();
    if (Backward) {
        store_gradients(of, batch, pairs, entry, tile, log_sum_exp, delta, first_row);
    } else {
        store_scores(of, pairs, entry, tile, first_row);
    }
}

extern "C" __global__ void __launch_bounds__(128) cross_scores_hopper(const __grid_constant__ CrossScoresHopperArguments arguments) {
    scores<false>(arguments);
}
extern "C" __global__ void __launch_bounds__(128) cross_scores_backward_hopper(const __grid_constant__ CrossScoresHopperArguments arguments) {
    scores<true>(arguments);
}

struct CrossMixHopperArguments {
    TensorMap h;             // [R, D]
    CrossArguments of;
    int padding[2];
};

constexpr int MIX_STAGES = 4;  // of 64 keys by 64 columns of h
constexpr int WEIGHTS_FROM = MIX_STAGES * BYTES_OPERAND;  // two tiles of 64 rows by 64 keys
constexpr int MIX_BARRIERS_FROM = WEIGHTS_FROM + 2 * BYTES_OPERAND;
constexpr int SUMS_FROM = MIX_BARRIERS_FROM + MIX_STAGES * 8;
constexpr int MIX_SHARED = SUMS_FROM + PAIR_TILE * 4;

template <bool Backward> __device__ __forceinline__ void mix(const CrossMixHopperArguments& arguments) {
    extern __shared__ __align__(1024) unsigned char shared[];
    const CrossArguments& of = arguments.of;
    wait_for_earlier_launches();
    const Batch batch{of.batch};
    const Pairs pairs(of, batch, blockIdx.z);
    const int first_row = blockIdx.y * PAIR_TILE, rows = pairs.rows - first_row, first_column = blockIdx.x * COLUMNS;
    if (rows <= 0) return;
    const uint32_t base = shared_address(shared), full = base + MIX_BARRIERS_FROM;
    float* const log_sum_exp = reinterpret_cast<float*>(shared + SUMS_FROM);
    const int tiles = (pairs.keys + PAIR_TILE - 1) / PAIR_TILE;
    const auto bring = [&](int tile) {
        const int stage = tile % MIX_STAGES;
        expect_bytes(full + stage * 8, BYTES_OPERAND);
        copy_box(base + stage * BYTES_OPERAND, arguments.h, full + stage * 8, first_column, static_cast<int>(pairs.key) + tile * PAIR_TILE);
    };
    if (threadIdx.x == 0) {
#pragma unroll 1
        for (int stage = 0; stage < MIX_STAGES; ++stage) start_barrier(full + stage * 8, 1);
        fence_barriers();
#pragma unroll 1
        for (int tile = 0; tile < min(tiles, MIX_STAGES); ++tile) bring(tile);
    }
    if (!Backward && static_cast<int>(threadIdx.x) < min(rows, PAIR_TILE)) {
        log_sum_exp[threadIdx.x] = pairs.log_sum_exp(of, first_row + threadIdx.x);
    }
    __syncthreads();
    const int chunk = threadIdx.x % LANES;
    float sums[COLUMNS / 2];
#pragma unroll 1
    for (int tile = 0; tile < tiles; ++tile) {
        const int stage = tile % MIX_STAGES, key = tile * PAIR_TILE + chunk * 8, left = pairs.keys - tile * PAIR_TILE;
        const int weights = WEIGHTS_FROM + tile % 2 * BYTES_OPERAND;
        // All rows, as those behind the last are in the products too.
#pragma unroll 1
        for (int row = threadIdx.x / LANES; row < ROWS; row += THREADS / LANES) {
            Columns<8> c = {};
            if (row < rows && key < pairs.stride) {
                const int64_t at = pairs.start + static_cast<int64_t>(first_row + row) * pairs.stride + key;
                if (Backward) {
                    c = load_columns<8>(static_cast<const bf16*>(of.ds) + at);
                } else {
                    c = load_columns<8>(of.scores + at);
                    const Columns<8> factor = factors(of, batch, blockIdx.z, first_row + row, key);
#pragma unroll
                    for (int i = 0; i < 8; ++i) c.value[i] = __expf(c.value[i] - log_sum_exp[row]) * factor.value[i];
                }
            }
            store_columns(reinterpret_cast<bf16*>(shared + weights + operand_place(row, chunk)), c);
        }
        wait_for_phase(full + stage * 8, tile / MIX_STAGES & 1);
        // Behind an example's last row lie the next one's, or what nobody wrote, of which even no part is too much.
        clear_rows(shared + stage * BYTES_OPERAND, left);
        // The products before this barrier are done.
        if (threadIdx.x == 0 && tile > 0 && tile - 1 + MIX_STAGES < tiles) bring(tile - 1 + MIX_STAGES);
        __syncwarp();
        fence_products();
        multiply_stretch<true>(sums, base + weights, base + stage * BYTES_OPERAND, tile > 0);
        commit_products();
        wait_for_products<0>();
    }
    void* const to = Backward ? of.d_absorbed_q : of.to;
    store_rounded(static_cast<bf16*>(to) + (pairs.row + first_row) * of.depth, of.depth, rows, first_column, of.depth, sums);
}

extern "C" __global__ void __launch_bounds__(128) cross_mix_hopper(const __grid_constant__ CrossMixHopperArguments arguments) {
    mix<false>(arguments);
}
extern "C" __global__ void __launch_bounds__(128) cross_backward_hopper(const __grid_constant__ CrossMixHopperArguments arguments) {
    mix<true>(arguments);
}
