// The products of gemm.cu for compute capability 9.0, by tensor copies and products of warpgroups:
//
//   forward    C = A W^T    A [m, k], W [n, k]: the weight's rows lie along k
//   backward   C = A W      A [m, k], W [k, n]: the same stored weight, read the other way
//
// with gemm.cu's epilogues, dropout included. Sums in f32 are in another order than there, within the tensor core.
//
// A block has three warpgroups. The last brings k-blocks of 64, 128 rows of A and 192 or 128 columns of W, by tensor copies with
// 128-byte swizzle through a ring of stages; the others multiply 64 rows each, those of one k-block while the next is issued, and
// say when a stage is free. Where W [k, n] is read as it lies, a k-block of it is three boxes of 64 columns, whose columns are
// neighbours: the products take it across k, and no transposed copy is made.
// A cluster is two blocks, with two tiles of the same columns below each other. Each brings half of W to both, so that less has
// to come from the cache than the products eat; a stage is free when the products of both blocks are done with it.
// The sums then go through a tile of f32 of their own to the epilogue, while the copies of the next tile go on.
//
// Grid: at most a block a multiprocessor. Each cluster takes the pairs of tiles of 128x192 or 128x128 that are the clusters' number apart;
// all columns of a pair of rows of tiles follow one another, so that A comes from memory once and W stays in the cache. The true
// number of rows is the batch's. Where rows of tiles are odd, the last has an empty one below it. Rows after it and columns after n are multiplied by whatever is there and not stored: a row of A meets its own row
// of C alone. Beyond the matrices copies bring zeros.
// Bytes: A once for every 192 or 128 columns, W once for every 256 rows, C once, and what the epilogue reads and writes.
// Backward keeps nothing but what the epilogues leave.
// On sm_90a: registers a thread, bytes of shared memory a block, blocks a multiprocessor at once:
//   gemm_forward_hopper 168 227888 1, gemm_backward_hopper 168 227888 1,
//   gemm_forward_hopper_128 168 203328 1, gemm_backward_hopper_128 168 203328 1
// Of the registers copies give theirs to the products: 24 and 240.
#include "gemm_hopper.cuh"

using namespace promptmix;

constexpr int ROWS = 128;   // of a tile
constexpr int COLUMNS = 192;
constexpr int STAGES = 3;
constexpr int NARROW_COLUMNS = 128;  // where tiles of 192 would leave multiprocessors without one
constexpr int NARROW_STAGES = 4;
constexpr int DEPTH = 64;   // of a stage, in k
constexpr int GROUP = 128;  // threads of a warpgroup
constexpr int GROUP_ROWS = 64;
constexpr int CLUSTER = 2;  // blocks
constexpr int BOTH = (1 << CLUSTER) - 1;
constexpr int BYTES_A = ROWS * DEPTH * 2;
constexpr int BYTES_ROW_INFO = 20;
constexpr int PADDING = 8;  // columns after each row of the tile that the epilogue reads
// Of dynamic shared memory: the stages, the tile, what is known of its rows, and a full and an empty barrier a stage.
constexpr int SHARED = STAGES * (BYTES_A + COLUMNS * DEPTH * 2 + 16) + ROWS * ((COLUMNS + PADDING) * 4 + BYTES_ROW_INFO);
constexpr int NARROW_SHARED =
    NARROW_STAGES * (BYTES_A + NARROW_COLUMNS * DEPTH * 2 + 16) + ROWS * ((NARROW_COLUMNS + PADDING) * 4 + BYTES_ROW_INFO);
static_assert(SHARED <= MAX_SHARED && NARROW_SHARED <= MAX_SHARED, "what a block may have");
static_assert(sizeof(RowInfo) == BYTES_ROW_INFO, "as the place of the barriers has it");

// The stage that comes next, and the parity of the phase that a consumer waits for there.
template <int Stages> struct Turn {
    int stage = 0;
    uint32_t parity = 0;

    __device__ __forceinline__ void next() {
        if (++stage < Stages) return;
        stage = 0;
        parity ^= 1;
    }
};

template <int Columns, bool Backward>
__device__ __forceinline__ void multiply(float (&sums)[Columns / 2], uint64_t a, uint64_t b, uint32_t adds) {
    if constexpr (Columns == COLUMNS) {
        multiply_192<Backward>(sums, a, b, adds);
    } else {
        multiply_128<Backward>(sums, a, b, adds);
    }
}

template <int Columns, int Stages, bool Backward> __device__ __forceinline__ void gemm_hopper(const GemmHopperArguments& arguments) {
    constexpr int Stride = Columns + PADDING, BytesStage = BYTES_A + Columns * DEPTH * 2;
    constexpr int Tile = Stages * BytesStage, Info = Tile + ROWS * Stride * 4, Barriers = Info + ROWS * BYTES_ROW_INFO;
    extern __shared__ __align__(1024) unsigned char shared[];
    const uint32_t base = shared_address(shared), full = base + Barriers, empty = full + Stages * 8;
    const GemmArguments& of = arguments.of;
    const Batch batch{of.batch};
    const int block = blockIdx.x % CLUSTER;  // of the cluster
    const int k_blocks = (of.k + DEPTH - 1) / DEPTH;
    const int group = __shfl_sync(0xffffffffu, threadIdx.x / GROUP, 0), thread = threadIdx.x % GROUP;
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < Stages; ++stage) {
            start_barrier(full + stage * 8, 1);
            start_barrier(empty + stage * 8, CLUSTER * ROWS / GROUP_ROWS);
        }
        fence_barriers();
    }
    wait_for_cluster();
    wait_for_earlier_launches();
    const int rows = batch.rows(of.side, of.scope);
    const int across = (of.n + Columns - 1) / Columns, pairs = (rows + CLUSTER * ROWS - 1) / (CLUSTER * ROWS) * across;
    Turn<Stages> turn;
    if (group == 2) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
        if (thread == 0) {
            for (int pair = blockIdx.x / CLUSTER; pair < pairs; pair += gridDim.x / CLUSTER) {
                const int row = (pair / across * CLUSTER + block) * ROWS, column = pair % across * Columns;
                for (int depth = 0; depth < of.k; depth += DEPTH) {
                    const uint32_t to = base + turn.stage * BytesStage, barrier = full + turn.stage * 8;
                    wait_for_phase(empty + turn.stage * 8, turn.parity ^ 1);
                    expect_bytes(barrier, BytesStage);
                    copy_box(to, arguments.a, barrier, depth, row);
                    if (Backward) {
                        // Half of k. Boxes after n bring zeros.
                        const int half = block * (DEPTH / CLUSTER);
#pragma unroll 1
                        for (int i = 0; i < Columns / 64; ++i) {
                            copy_box_to_all(to + BYTES_A + (i * DEPTH + half) * 64 * 2, arguments.weight, barrier, column + i * 64,
                                            depth + half, BOTH);
                        }
                    } else {
                        const int half = block * (Columns / CLUSTER);
                        copy_box_to_all(to + BYTES_A + half * DEPTH * 2, arguments.weight, barrier, depth, column + half, BOTH);
                    }
                    turn.next();
                }
            }
        }
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
        RowInfo* const info = reinterpret_cast<RowInfo*>(shared + Info) + group * GROUP_ROWS;
        float* const sums_of_tile = reinterpret_cast<float*>(shared + Tile) + group * GROUP_ROWS * Stride;
        float sums[Columns / 2];
        for (int pair = blockIdx.x / CLUSTER; pair < pairs; pair += gridDim.x / CLUSTER) {
            const int first_row = (pair / across * CLUSTER + block) * ROWS + group * GROUP_ROWS;
            const int first_column = pair % across * Columns;
            describe_rows<ANY, GROUP_ROWS, GROUP>(of, batch, info, first_row, rows, thread);
            uint32_t before = empty;  // of the stage whose products were issued before
            for (int k_block = 0; k_block < k_blocks; ++k_block) {
                const uint32_t left = base + turn.stage * BytesStage + group * GROUP_ROWS * DEPTH * 2;
                const uint32_t right = base + turn.stage * BytesStage + BYTES_A;
                wait_for_phase(full + turn.stage * 8, turn.parity);
                const uint64_t a = describe_operand(left, 16, 1024);
                const uint64_t b = describe_operand(right, Backward ? 64 * DEPTH * 2 : 16, 1024);
                fence_products();
#pragma unroll
                for (int step = 0; step < DEPTH / 16; ++step) {
                    // 16 of k are 32 bytes within a row's 128, or 16 rows of 128.
                    const uint64_t b_of_step = operand_after(b, step * (Backward ? 2048 : 32));
                    multiply<Columns, Backward>(sums, operand_after(a, step * 32), b_of_step, k_block + step);
                }
                commit_products();
                wait_for_products<1>();
                if (k_block > 0 && thread < CLUSTER) arrive_at(before, thread);
                before = empty + turn.stage * 8;
                turn.next();
            }
            wait_for_products<0>();
            if (thread < CLUSTER) arrive_at(before, thread);
            const int own_row = thread / 32 * 16 + thread % 32 / 4;
            float* const to = sums_of_tile + own_row * Stride + thread % 4 * 2;
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                // What lies in A after the batch's rows nobody wrote.
                if (first_row + own_row + half * 8 < rows) {
#pragma unroll
                    for (int i = 0; i < Columns / 8; ++i) {
                        store_pair(to + half * 8 * Stride + i * 8, sums[i * 4 + half * 2], sums[i * 4 + half * 2 + 1]);
                    }
                } else {
#pragma unroll
                    for (int i = 0; i < Columns / 8; ++i) store_pair(to + half * 8 * Stride + i * 8, 0.0f, 0.0f);
                }
            }
            wait_together(1 + group, GROUP);
            // As many columns at a time as one partial sum of a norm has, so that each of their rows is whole sectors.
#pragma unroll 1
            for (int i = 0; i < Columns; i += NORM_COLUMNS) {
                finish_tile<bf16, ANY, GROUP_ROWS, NORM_COLUMNS, Stride, GROUP, false, true>(of, info, sums_of_tile + i, first_row,
                                                                                           first_column + i, rows, thread);
            }
            // The tile and what is known of its rows are written again.
            wait_together(1 + group, GROUP);
        }
    }
    // A block's shared memory must last until the other has sent and said its last.
    __syncwarp();
    wait_for_cluster();
}

extern "C" __global__ void __launch_bounds__(384, 1) __cluster_dims__(CLUSTER, 1, 1)
    gemm_forward_hopper(const __grid_constant__ GemmHopperArguments arguments) {
    gemm_hopper<COLUMNS, STAGES, false>(arguments);
}
extern "C" __global__ void __launch_bounds__(384, 1) __cluster_dims__(CLUSTER, 1, 1)
    gemm_backward_hopper(const __grid_constant__ GemmHopperArguments arguments) {
    gemm_hopper<COLUMNS, STAGES, true>(arguments);
}
extern "C" __global__ void __launch_bounds__(384, 1) __cluster_dims__(CLUSTER, 1, 1)
    gemm_forward_hopper_128(const __grid_constant__ GemmHopperArguments arguments) {
    gemm_hopper<NARROW_COLUMNS, NARROW_STAGES, false>(arguments);
}
extern "C" __global__ void __launch_bounds__(384, 1) __cluster_dims__(CLUSTER, 1, 1)
    gemm_backward_hopper_128(const __grid_constant__ GemmHopperArguments arguments) {
    gemm_hopper<NARROW_COLUMNS, NARROW_STAGES, true>(arguments);
}
