// The products of gemm.cu with few rows, as decoders have them, for compute capability 9.0: a cluster a tile, each block of it a part
// of k.
//
//   forward    C = A W^T    A [m, k], W [n, k]: the weight's rows lie along k
//   backward   C = A W      A [m, k], W [k, n]: the same stored weight, read the other way
//
// with gemm.cu's epilogues, dropout included, a kernel each: such products run each piece of their code once, straight from memory.
//
// A block is one warpgroup. Its first thread asks for all stretches of 64 in k that there is room for, 64 rows of A and 64 columns
// of W each, by tensor copies with 128-byte swizzle; while they come, threads read what the epilogue asks for. The sums of a part
// lie in its block's shared memory. When all have come, each block takes its share of the tile's rows, adds the parts up in
// order, which is the same whatever came first, and runs the epilogue on them.
//
// Grid: x over columns, y over rows, z over parts of k, 4 or 8, which are a cluster. The true number of rows is the batch's; surplus
// blocks exit. Rows behind it are multiplied by whatever is there and not stored: a row of A meets its own row of C alone.
// Bytes: A once for every 64 columns, W once for every 64 rows, C once, and what the epilogue reads and writes; parts of C between
// the multiprocessors alone.
// Backward keeps nothing but what the epilogues leave.
// On sm_90a: registers a thread, bytes of shared memory a block, blocks a multiprocessor at once:
//   gemm_forward_thin_project 0 0 0
#include "gemm_hopper.cuh"

using namespace promptmix;

constexpr int ROWS = 64;    // of a tile
constexpr int COLUMNS = 64;
constexpr int DEPTH = 64;   // of a stage, in k
constexpr int STAGES = 6;
constexpr int THREADS = 128;
constexpr int BYTES_OPERAND = ROWS * DEPTH * 2;
constexpr int BYTES_STAGE = 2 * BYTES_OPERAND;
constexpr int STRIDE = COLUMNS + 8;  // of a part's sums, which lie where the stages were
constexpr int BARRIERS_FROM = STAGES * BYTES_STAGE;
constexpr int SHARED = BARRIERS_FROM + STAGES * 8;
constexpr int LANES = COLUMNS / PACKED_COLUMNS;       // of a row
constexpr int MIN_CLUSTER = ROWS / (THREADS / LANES); // so that no block has more rows than at once
constexpr int MAX_CLUSTER = 8;
static_assert(ROWS * STRIDE * 4 <= BARRIERS_FROM, "sums where the stages were");

// The sum of `count` numbers by the lanes of a row, who all get it.
__device__ __forceinline__ float sum_of_row(const float* from, int count) {
    const int lane = threadIdx.x % LANES;
    float sum = lane < count ? from[lane] : 0.0f;
    const float other = lane + LANES < count ? from[lane + LANES] : 0.0f;
    sum += other;
#pragma unroll 1
    for (int i = lane + 2 * LANES; i < count; i += LANES) sum += from[i];
#pragma unroll
    for (int step = LANES / 2; step > 0; step >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, step);
    return sum;
}

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
    const int thread = threadIdx.x, lane = thread % 32, parts = gridDim.z, part = blockIdx.z;
    const int first_row = blockIdx.y * ROWS, first_column = blockIdx.x * COLUMNS;
    const int stretches = (of.k + DEPTH - 1) / DEPTH;
    const int first = stretches * part / parts, count = stretches * (part + 1) / parts - first;
    const auto bring = [&](int stage, int stretch) {
        const uint32_t to = base + stage * BYTES_STAGE, barrier = full + stage * 8;
        const int depth = (first + stretch) * DEPTH;
        expect_bytes(barrier, BYTES_STAGE);
        copy_box(to, arguments.a, barrier, depth, first_row);
        copy_box(to + BYTES_OPERAND, arguments.weight, barrier, Backward ? first_column : depth, Backward ? depth : first_column);
    };
    if (thread == 0) {
#pragma unroll 1
        for (int stage = 0; stage < STAGES; ++stage) start_barrier(full + stage * 8, 1);
        fence_barriers();
#pragma unroll 1
        for (int stage = 0; stage < min(count, STAGES); ++stage) bring(stage, stage);
    }
    // The rows that this block finishes, eight lanes each. What is read here need not wait for the batch's number of rows: behind it
    // there is room for more, of which nothing is stored.
    const int rows = batch.rows(of.side, of.scope);
    const int own_rows = ROWS / parts, own_row = thread / LANES, tile_row = part * own_rows + own_row;
    const int a_row = first_row + tile_row, column = first_column + thread % LANES * PACKED_COLUMNS;
    const bool there = own_row < own_rows && a_row < arguments.rows;
    const RowInfo info = describe_row<Only>(of, batch, a_row, there);
    const Before before = load_before<Only>(of, info.row, column, there && column < of.n);
    __syncthreads();
    if (first_row >= rows) {
        // Copies that were asked for still come.
        for (int stage = 0; stage < min(count, STAGES); ++stage) wait_for_phase(full + stage * 8, 0);
        return;
    }
    float sums[COLUMNS / 2];
    int stage = 0;
    uint32_t parity = 0;
#pragma unroll 1
    for (int stretch = 0; stretch < count; ++stretch) {
        const uint32_t left = base + stage * BYTES_STAGE, right = left + BYTES_OPERAND;
        wait_for_phase(full + stage * 8, parity);
        fence_products();
#pragma unroll
        for (int step = 0; step < DEPTH / 16; ++step) {
            // 16 of k are 32 bytes within a row's 128, or 16 rows of 128.
            const uint64_t b = Backward ? describe_operand(right + step * 2048, BYTES_OPERAND, 1024)
                                        : describe_operand(right + step * 32, 16, 1024);
            multiply_add_64<Backward>(sums, describe_operand(left + step * 32, 16, 1024), b, stretch + step);
        }
        commit_products();
        if (stretch + STAGES < count) {
            wait_for_products<0>();
            __syncthreads();
            if (thread == 0) bring(stage, stretch + STAGES);
        }
        if (++stage == STAGES) {
            stage = 0;
            parity ^= 1;
        }
    }
    wait_for_products<0>();
    // Other warps' products read the same columns.
    __syncthreads();
    float* const to = reinterpret_cast<float*>(shared) + (thread / 32 * 16 + lane / 4) * STRIDE + lane % 4 * 2;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int i = 0; i < COLUMNS / 8; ++i) {
            store_pair(to + half * 8 * STRIDE + i * 8, sums[i * 4 + half * 2], sums[i * 4 + half * 2 + 1]);
        }
    }
    wait_for_cluster();
    const bool inside = there && a_row < rows && column < of.n;
    Columns<PACKED_COLUMNS> c = {};
    if (inside) {
        const uint32_t from = base + (tile_row * STRIDE + thread % LANES * PACKED_COLUMNS) * 4;
#pragma unroll MIN_CLUSTER
        for (int block = 0; block < parts; ++block) {
            const float4 low = load_from_block(from, block), high = load_from_block(from + 16, block);
            c.value[0] += low.x;
            c.value[1] += low.y;
            c.value[2] += low.z;
            c.value[3] += low.w;
            c.value[4] += high.x;
            c.value[5] += high.y;
            c.value[6] += high.z;
            c.value[7] += high.w;
        }
    }
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
