// Absorbed cross attention, as kernels/cross_attention.cu has it, for compute capability 9.0: by tensor copies and products of a
// warpgroup.
//
//   project    q_h = r·x W_q,h^T, q'_h = q_h W_k,h        or        d_o_h = d_x W_o,h, d_mixed_h = d_o_h W_v,h
//   attention  s_ihj = q'_ih · h_j, mixed_ih = sum_j softmax_j(s_ihj) mask_ihj h_j
//   backward   ds and p·mask from d_mixed_ih · h_j, d_q'_ih = sum_j ds_ihj h_j
//
// r = 1 / rms of the row from its partial sums of squares. Shapes: x, d_x [T, D]; W_q, W_k, W_v [H·K, D], W_o [D, H·K]; q, d_o
// [T, H·K]; q', d_mixed, mixed, d_q' [T, H, D]; h [R, D]; all in bf16, sums in f32 in the tensor core. K of project up to 64.
//
// Project: a cluster of four blocks has a head and 64 rows. Each brings its quarter of D of both operands of the first product, and of
// the second weight, by tensor copies at once, and computes that part of the head's 64 columns; each then adds up the parts of 16 rows
// in order, rounds them, stores them, and gives them to all four, who multiply them with their quarters of the second weight.
// Attention: a cluster of four or eight blocks has an example and 64 of its rows, t·H, and a block has up to four slices of 64 of D.
// It brings those columns of the rows and of tiles of 64 keys, as many as there is room for, and multiplies them to its parts of the
// scores. Of one or two tiles at once each block adds up the parts of 16 or 8 rows in order, and stores the scores. When it knows its
// rows' sums of exponentials it gives their weights to all, who multiply them with the tiles of h that they still have; where an example
// has more tiles than there is room for, they come again, and weights are made again, for each slice. Backward does the same with
// d_mixed for q' and ds for the weights.
//
// Grids: project x the blocks of a cluster, y over rows, z heads · attention x the blocks of a cluster, y rows / 64, z examples. Counts
// come from the descriptor; surplus clusters exit.
// Bytes: project, x and both weights once for every head or row of tiles; attention, h once for every 64 rows of its example, and scores
// once, backward scores, ds and p once; what is written once. Boxes reach into the next head's columns or the next example's rows: what
// comes of those is not stored, or meets zeros.
// Backward keeps q', the scores and their tiles' sums, as it does of kernels/cross_attention.cu.
// On sm_90a, with D of 768, and 48 rows of an example over 128 keys on average: registers a thread, bytes of shared memory a block, blocks a multiprocessor at once:
//   cross_project_hopper 61 81936 2, cross_project_backward_hopper 59 81936 2,
//   cross_attention_hopper 72 112208 2, cross_attention_backward_hopper 94 112208 2
#include <cfloat>
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
    int heads;
    int width;               // K
    int depth;               // D
    float epsilon;
    int padding[2];
};

constexpr int CLUSTER = 4;
static_assert(CLUSTER == MIN_CLUSTER, "as many rows a block as at once");
constexpr int MAX_SLICES = 8;      // of D, of a block
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
    const int depth = arguments.depth, width = arguments.width, slices = (depth + DEPTH - 1) / DEPTH;
    const int first = slices * part / CLUSTER, count = slices * (part + 1) / CLUSTER - first;
    const int most = (slices + CLUSTER - 1) / CLUSTER;  // of any block, so that the same lies at the same place in all
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
    // The row that this thread finishes eight columns of. Nobody wrote partial sums of rows after the batch's.
    const int row = part * (ROWS / CLUSTER) + thread / LANES, chunk = thread % LANES;
    float r = 1.0f;
    if (!Across) {
        const int parts = (depth + NORM_COLUMNS - 1) / NORM_COLUMNS;
        const float* const of_row = arguments.partials + static_cast<int64_t>(first_row + row) * parts;
        r = rsqrtf(sum_of_row(of_row, first_row + row < rows ? parts : 0) / static_cast<float>(depth) + arguments.epsilon);
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
        multiply_k_block<Across>(sums, stages + i * BYTES_STAGE, stages + i * BYTES_STAGE + BYTES_OPERAND, i > 0);
    }
    commit_products();
    wait_for_products<0>();
    // As in `multiply_k_blocks`.
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
        multiply_k_block<true>(sums, middle, next + i * BYTES_OPERAND, false);
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

struct CrossAttentionHopperArguments {
    TensorMap left;          // q' or d_mixed [T·H, D]
    TensorMap h;             // [R, D]
    CrossArguments of;
    int stages;              // tiles of h, and of weights, that there is room for, up to MAX_TILES
    int count;               // slices of D of a block
    int room;                // rows of a tile of sums
    int at_once;             // tiles whose scores a cluster adds up between two of its barriers
    int padding[14];
};

constexpr int MAX_ATTENDED = 4;  // slices of D of a block
constexpr int MAX_TILES = 8;
static_assert(STRIDE == PAIR_STRIDE && ROWS == PAIR_TILE && LANES == 8, "tiles of pairs are those of the descriptor's map");
// Of dynamic shared memory: `stages` tiles of h, each of `count` slices of D; the left operand, and where that was then as many tiles
// of weights; a barrier for each tile of h and for the left operand; `at_once` tiles of sums.
constexpr int BYTES_ATTENTION_BARRIERS = (MAX_TILES + 2) / 2 * 16;
constexpr int BYTES_ROW_OF_SUMS = STRIDE * 4;

// The sum of exponentials of a row that forward left, as its log, by the eight lanes of the row.
__device__ __forceinline__ float log_sum_exp_of(const CrossArguments& of, const Pairs& pairs, int row, int tiles) {
    const int most_rows = of.longest * of.heads;
    // Of no tile, and no infinity, which would be subtracted from itself.
    float2 all = make_float2(-FLT_MAX, 0.0f);
#pragma unroll 1
    for (int tile = threadIdx.x % LANES; tile < tiles; tile += LANES) {
        all = joined(all, of.sums[pairs.slot + static_cast<int64_t>(tile) * most_rows + row]);
    }
#pragma unroll 1
    for (int step = LANES / 2; step > 0; step >>= 1) {
        all = joined(all, make_float2(__shfl_xor_sync(0xffffffffu, all.x, step), __shfl_xor_sync(0xffffffffu, all.y, step)));
    }
    return all.x + logf(all.y);
}

template <bool Backward> __device__ __forceinline__ void attend(const CrossAttentionHopperArguments& arguments) {
    extern __shared__ __align__(1024) unsigned char shared[];
    const CrossArguments& of = arguments.of;
    const int thread = threadIdx.x, chunk = thread % LANES, part = blockIdx.x, parts = gridDim.x;
    const int stages = arguments.stages, slices = arguments.count, bytes_tile = slices * BYTES_OPERAND;
    const uint32_t base = shared_address(shared), left = base + stages * bytes_tile, full = left + max(slices, stages) * BYTES_OPERAND;
    const uint32_t tiles_of_sums = full + BYTES_ATTENTION_BARRIERS, bytes_sums = arguments.room * BYTES_ROW_OF_SUMS;
    if (thread == 0) {
#pragma unroll 1
        for (int i = 0; i <= stages; ++i) start_barrier(full + i * 8, 1);
        fence_barriers();
    }
    wait_for_earlier_launches();
    const Batch batch{of.batch};
    const Pairs pairs(of, batch, blockIdx.z);
    const int first_row = blockIdx.y * ROWS, rows = pairs.rows - first_row, first_column = part * slices * DEPTH;
    if (rows <= 0) return;
    const int tiles = (pairs.keys + PAIR_TILE - 1) / PAIR_TILE;
    // Where not all tiles of h have room at once, each slice of D comes a second time for the mixture.
    const bool again = tiles > stages;
    const int copies = again ? tiles * (1 + slices) : tiles;
    const auto bring = [&](int copy, int place) {
        int tile = copy, first = 0, end = slices;
        if (copy >= tiles) {
            first = copy / tiles - 1;
            end = first + 1;
            tile = copy % tiles;
        }
        const uint32_t to = base + place * bytes_tile, barrier = full + place * 8;
        const int key = static_cast<int>(pairs.key) + tile * PAIR_TILE;
        expect_bytes(barrier, (end - first) * BYTES_OPERAND);
#pragma unroll 1
        for (int i = first; i < end; ++i) copy_box(to + i * BYTES_OPERAND, arguments.h, barrier, first_column + i * DEPTH, key);
    };
    if (thread == 0) {
        const uint32_t barrier = full + stages * 8;
        expect_bytes(barrier, bytes_tile);
#pragma unroll 1
        for (int i = 0; i < slices; ++i) {
            copy_box(left + i * BYTES_OPERAND, arguments.left, barrier, first_column + i * DEPTH, static_cast<int>(pairs.row) + first_row);
        }
#pragma unroll 1
        for (int copy = 0; copy < min(copies, stages); ++copy) bring(copy, copy);
    }
    __syncwarp();
    // The row of which this thread finishes eight columns of each tile.
    const int own_rows = ROWS / parts, row = part * own_rows + thread / LANES;
    const bool owns = thread / LANES < own_rows, there = owns && row < rows;
    const int64_t pair = pairs.start + static_cast<int64_t>(first_row + row) * pairs.stride + chunk * 8;
    float log_sum_exp = 0.0f, delta = 0.0f;
    if (Backward) {
        log_sum_exp = log_sum_exp_of(of, pairs, first_row + (there ? row : 0), tiles);
        delta = delta_of(of, pairs.row + first_row + row, there);
    }
    __syncthreads();
    // Waits for a copy of a tile's slices, and says where it lies. After an example's last row lie the next one's, or what nobody
    // wrote, of which even no part is too much.
    const auto land = [&](int copy, int tile, int first, int end) {
        const int turn = again ? copy / stages : 0, place = copy - turn * stages;
        wait_for_phase(full + place * 8, turn & 1);
        const int keys = pairs.keys - tile * PAIR_TILE;
        if (keys < PAIR_TILE) {
#pragma unroll 1
            for (int i = first; i < end; ++i) clear_rows(shared + place * bytes_tile + i * BYTES_OPERAND, keys);
        }
        return place;
    };
    // Asks for the copy that takes the place of one whose products are done, in all warps by the barrier.
    const auto follow = [&](int copy, int place) {
        if (copy + stages >= copies) return;
        __syncthreads();
        if (thread == 0) bring(copy + stages, place);
        __syncwarp();
    };
    wait_for_phase(full + stages * 8, 0);
    float sums[COLUMNS / 2];
    float2 all = make_float2(-INFINITY, 0.0f);
#pragma unroll 1
    for (int first = 0; first < tiles; first += arguments.at_once) {
        const int end = min(first + arguments.at_once, tiles);
        // All have read the sums before.
        if (first > 0) wait_for_arrivals();
#pragma unroll 1
        for (int tile = first; tile < end; ++tile) {
            const int place = land(tile, tile, 0, slices);
            const uint32_t h = base + place * bytes_tile;
            fence_products();
#pragma unroll 1
            for (int i = 0; i < slices; ++i) {
                multiply_k_block<false>(sums, left + i * BYTES_OPERAND, h + i * BYTES_OPERAND, i > 0);
            }
            commit_products();
            wait_for_products<0>();
            store_sums<false>(reinterpret_cast<float*>(shared + (tiles_of_sums - base) + (tile - first) * bytes_sums), sums, rows);
            follow(tile, place);
        }
        __syncwarp();
        wait_for_cluster();
#pragma unroll 1
        for (int tile = first; tile < end; ++tile) {
            const int key = tile * PAIR_TILE + chunk * 8;
            const int64_t at = pair + tile * PAIR_TILE;
            const bool stored = there && key < pairs.stride;
            Columns<8> c = {}, p = {};
            if (Backward && stored) p = load_columns<8>(of.scores + at);
            if (there) c = sum_of_parts(tiles_of_sums + (tile - first) * bytes_sums, row, parts);
            __syncwarp();
            if (!Backward) {
                const float2 one = sum_of_scores(c, key, pairs.keys);
                all = joined(all, one);
                if (stored) store_columns(of.scores + at, c);
                if (there && chunk == 0) {
                    of.sums[pairs.slot + static_cast<int64_t>(tile) * of.longest * of.heads + first_row + row] = one;
                }
            } else if (stored) {
                const Columns<8> factor = factors(of, batch, blockIdx.z, first_row + row, key);
                find_gradients(c, p, factor, log_sum_exp, delta, key, pairs.keys);
                store_columns(static_cast<bf16*>(of.ds) + at, c);
                store_columns(static_cast<bf16*>(of.p) + at, p);
            }
        }
        __syncwarp();
        if (end < tiles) arrive_at_cluster();
    }
    if (Backward && of.d_absorbed_q == nullptr) {
        // A block's shared memory must last until the others have read it.
        wait_for_cluster();
        return;
    }
    if (!Backward) log_sum_exp = all.x + logf(all.y);
    // All products with the left operand are done, in all blocks.
    const uint32_t weights = left;
    bf16* const to = static_cast<bf16*>(Backward ? of.d_absorbed_q : of.to) + (pairs.row + first_row) * of.depth;
#pragma unroll 1
    for (int slice = 0; slice < slices; ++slice) {
#pragma unroll 1
        for (int first = 0; first < tiles; first += stages) {
            const int end = min(first + stages, tiles);
            if (slice == 0 || again) {
                // The products of the weights before are done.
                if (slice + first > 0) wait_for_cluster();
#pragma unroll 1
                for (int tile = first; tile < end; ++tile) {
                    const int key = tile * PAIR_TILE + chunk * 8;
                    Columns<8> c = {};
                    // What this thread stored itself.
                    if (there && key < pairs.stride) {
                        const int64_t at = pair + tile * PAIR_TILE;
                        if (Backward) {
                            c = load_columns<8>(static_cast<const bf16*>(of.ds) + at);
                        } else {
                            c = load_columns<8>(of.scores + at);
                            const Columns<8> factor = factors(of, batch, blockIdx.z, first_row + row, key);
#pragma unroll
                            for (int i = 0; i < 8; ++i) c.value[i] = __expf(c.value[i] - log_sum_exp) * factor.value[i];
                        }
                    }
                    const uint4 packed = make_uint4(pack_bf16(c.value[0], c.value[1]), pack_bf16(c.value[2], c.value[3]),
                                                    pack_bf16(c.value[4], c.value[5]), pack_bf16(c.value[6], c.value[7]));
                    const uint32_t place = weights + (tile - first) * BYTES_OPERAND + operand_place(row, chunk);
#pragma unroll 1
                    for (int block = 0; owns && block < parts; ++block) store_to_block(place, block, packed);
                    __syncwarp();
                }
                // By who wrote, and by who is about to read what others wrote here.
                fence_writes();
                __syncwarp();
                wait_for_cluster();
                fence_writes();
            }
#pragma unroll 1
            for (int tile = first; tile < end; ++tile) {
                const int copy = tiles * (1 + slice) + tile;
                const int place = again ? land(copy, tile, slice, slice + 1) : tile;
                fence_products();
                multiply_k_block<true>(sums, weights + (tile - first) * BYTES_OPERAND, base + place * bytes_tile + slice * BYTES_OPERAND,
                                       tile > 0);
                commit_products();
                wait_for_products<0>();
                if (again) follow(copy, place);
            }
        }
        __syncwarp();
        store_rounded(to, of.depth, rows, first_column + slice * COLUMNS, of.depth, sums);
    }
}

extern "C" __global__ void __launch_bounds__(128) cross_attention_hopper(const __grid_constant__ CrossAttentionHopperArguments arguments) {
    attend<false>(arguments);
}
extern "C" __global__ void __launch_bounds__(128) cross_attention_backward_hopper(const __grid_constant__ CrossAttentionHopperArguments arguments) {
    attend<true>(arguments);
}
