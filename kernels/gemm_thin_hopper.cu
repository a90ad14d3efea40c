// The products of gemm.cu with few rows, as decoders have them, for compute capability 9.0: a cluster a tile, each block of it a part
// of k.
//
//   forward    C = A W^T    A [m, k], W [n, k]: the weight's rows lie along k
//   backward   C = A W      A [m, k], W [k, n]: the same stored weight, read the other way
//
// with gemm.cu's epilogues, dropout included, a kernel each: such products run each piece of their code once, straight from memory.
// Of absorbed cross attention, A may have k columns a head, each for that head's columns of C.
//
// A block is one warpgroup. Its first thread asks for all k-blocks of 64 that there is room for, 64 rows of A and 64 columns
// of W each, by tensor copies with 128-byte swizzle; while they come, threads read what the epilogue asks for. The sums of a part
// lie in its block's shared memory. When all have come, each block takes its share of the tile's rows, adds the parts up in
// order, which is the same whatever came first, and runs the epilogue on them.
//
// Grid: x over columns, y over rows, z over parts of k, 4 or 8, which are a cluster. The true number of rows is the batch's; surplus
// blocks exit. Rows after it are multiplied by whatever is there and not stored: a row of A meets its own row of C alone.
// Bytes: A once for every 64 columns, W once for every 64 rows, C once, and what the epilogue reads and writes; parts of C between
// the multiprocessors alone.
// Backward keeps nothing but what the epilogues leave.
// On sm_90a: registers a thread, bytes of shared memory a block, blocks a multiprocessor at once:
//   gemm_forward_thin_project 58 98352 2, gemm_forward_thin_relu 64 98352 2, gemm_forward_thin_add 58 98352 2,
//   gemm_forward_thin_plain 58 98352 2, gemm_forward_thin_delta 62 98352 2, gemm_forward_thin_float 58 98352 2,
//   gemm_backward_thin_plain 58 98352 2, gemm_backward_thin_delta 62 98352 2, gemm_backward_thin_relu 58 98352 2,
//   gemm_backward_thin_norm 72 98352 2, gemm_backward_thin_accumulate 60 98352 2
#include "gemm_hopper.cuh"
#include "thin_hopper.cuh"

using namespace promptmix;

constexpr int STAGES = 6;
constexpr int BARRIERS_FROM = STAGES * BYTES_STAGE;
constexpr int SHARED = BARRIERS_FROM + STAGES * 8;
constexpr int MAX_CLUSTER = 8;
static_assert(BYTES_SUMS <= BARRIERS_FROM, "sums where the stages were");

// What the epilogue asks of row `a_row`, as `describe_rows` finds it; of a row that is not `there`, nothing.
template <int Only>
__device__ __forceinline__ RowInfo describe_row(const GemmArguments& of, const Batch& batch, int a_row, bool there) {
    RowInfo info = {};
    if (there) info.row = of.scope == PROMPT ? batch.row_of_prompt_row(a_row) : a_row;
    if (Only == PROJECT || Only == RELU || Only == NORM_BACKWARD) {
        const int width = Only == NORM_BACKWARD ? of.n : of.k, parts = (width + NORM_COLUMNS - 1) / NORM_COLUMNS;
        const float sum = sum_of_row(of.partials + static_cast<int64_t>(info.row) * parts, there ? parts : 0);
        info.r = rsqrtf(sum / static_cast<float>(width) + of.epsilon);
    }
    if ((Only == RELU || Only == ADD) && there) {
        const MaskRow mask = mask_of_row(of.mask, batch, of.side, info.row);
        info.seed = mask.seed;
        info.index = mask.index;
        info.mask_row = mask.row;
    } else if (Only == NORM_BACKWARD) {
        const float inner = sum_of_row(of.inner + static_cast<int64_t>(a_row) * of.inner_parts, there ? of.inner_parts : 0);
        info.along = info.r * info.r * inner / static_cast<float>(of.n);
    }
    return info;
}

template <bool Backward, int Only> __device__ __forceinline__ void thin(const GemmHopperArguments& arguments) {
    extern __shared__ __align__(1024) unsigned char shared[];
    const uint32_t base = shared_address(shared), full = base + BARRIERS_FROM;
    const GemmArguments& of = arguments.of;
    const Batch batch{of.batch};
    const int thread = threadIdx.x, parts = gridDim.z, part = blockIdx.z;
    const int first_row = blockIdx.y * ROWS, first_column = blockIdx.x * COLUMNS;
    const int k_blocks = (of.k + DEPTH - 1) / DEPTH;
    const int first = k_blocks * part / parts, count = k_blocks * (part + 1) / parts - first;
    // Where rows of A are of several heads, each with columns of its own of the result.
    const int of_head = arguments.head_columns > 0 ? first_column / arguments.head_columns * of.k : 0;
    const auto bring = [&](int stage, int k_block) {
        const uint32_t to = base + stage * BYTES_STAGE, barrier = full + stage * 8;
        const int depth = (first + k_block) * DEPTH;
        expect_bytes(barrier, BYTES_STAGE);
        copy_box(to, arguments.a, barrier, depth + of_head, first_row);
        copy_box(to + BYTES_OPERAND, arguments.weight, barrier, Backward ? first_column : depth, Backward ? depth : first_column);
    };
    if (thread == 0) {
#pragma unroll 1
        for (int stage = 0; stage < STAGES; ++stage) start_barrier(full + stage * 8, 1);
        fence_barriers();
    }
    wait_for_earlier_launches();
    if (thread == 0) {
#pragma unroll 1
        for (int stage = 0; stage < min(count, STAGES); ++stage) bring(stage, stage);
    }
    // The rows that this block finishes, eight lanes each. Nobody wrote those after the batch's number of rows.
    const int rows = batch.rows(of.side, of.scope);
    const int own_rows = ROWS / parts, own_row = thread / LANES, tile_row = part * own_rows + own_row;
    const int a_row = first_row + tile_row, column = first_column + thread % LANES * PACKED_COLUMNS;
    const bool there = own_row < own_rows && a_row < rows;
    const RowInfo info = describe_row<Only>(of, batch, a_row, there);
    const Before before = load_before<Only>(of, info.row, column, there && column < of.n);
    __syncthreads();
    if (first_row >= rows) {
        // Copies that were asked for still come.
        for (int stage = 0; stage < min(count, STAGES); ++stage) wait_for_phase(full + stage * 8, 0);
        return;
    }
    float sums[COLUMNS / 2];
    multiply_k_blocks<Backward>(sums, base, full, STAGES, count, bring, [](int) {});
    store_sums(reinterpret_cast<float*>(shared), sums, rows - first_row);
    wait_for_cluster();
    const bool inside = there && column < of.n;
    const Columns<PACKED_COLUMNS> c = inside ? sum_of_parts(base, tile_row, parts) : Columns<PACKED_COLUMNS>{};
    __syncwarp();
    arrive_at_cluster();
    finish<bf16, Only>(of, info, before, column, c, inside);
    // A block's shared memory must last until the others have read it.
    __syncwarp();
    wait_for_arrivals();
}

extern "C" __global__ void __launch_bounds__(128) gemm_forward_thin_project(const __grid_constant__ GemmHopperArguments arguments) {
    thin<false, PROJECT>(arguments);
}
extern "C" __global__ void __launch_bounds__(128) gemm_forward_thin_relu(const __grid_constant__ GemmHopperArguments arguments) {
    thin<false, RELU>(arguments);
}
extern "C" __global__ void __launch_bounds__(128) gemm_forward_thin_add(const __grid_constant__ GemmHopperArguments arguments) {
    thin<false, ADD>(arguments);
}
extern "C" __global__ void __launch_bounds__(128) gemm_forward_thin_plain(const __grid_constant__ GemmHopperArguments arguments) {
    thin<false, PLAIN>(arguments);
}
extern "C" __global__ void __launch_bounds__(128) gemm_forward_thin_delta(const __grid_constant__ GemmHopperArguments arguments) {
    thin<false, DELTA>(arguments);
}
extern "C" __global__ void __launch_bounds__(128) gemm_forward_thin_float(const __grid_constant__ GemmHopperArguments arguments) {
    thin<false, FLOAT>(arguments);
}
extern "C" __global__ void __launch_bounds__(128) gemm_backward_thin_plain(const __grid_constant__ GemmHopperArguments arguments) {
    thin<true, PLAIN>(arguments);
}
extern "C" __global__ void __launch_bounds__(128) gemm_backward_thin_delta(const __grid_constant__ GemmHopperArguments arguments) {
    thin<true, DELTA>(arguments);
}
extern "C" __global__ void __launch_bounds__(128) gemm_backward_thin_relu(const __grid_constant__ GemmHopperArguments arguments) {
    thin<true, RELU_BACKWARD>(arguments);
}
extern "C" __global__ void __launch_bounds__(128) gemm_backward_thin_norm(const __grid_constant__ GemmHopperArguments arguments) {
    thin<true, NORM_BACKWARD>(arguments);
}
extern "C" __global__ void __launch_bounds__(128) gemm_backward_thin_accumulate(const __grid_constant__ GemmHopperArguments arguments) {
    thin<true, ACCUMULATE>(arguments);
}
