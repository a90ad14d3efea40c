// Self attention of short examples, as kernels/short_attention.cu has it, with the product beside it, for compute capability 9.0: a
// cluster a head.
//
//   forward    q_h, k_h, v_h = r·x W_h^T, and from them o and log_sum_exp
//   backward   d_o_h = d_x W_o,h, and from it d_q, d_k, d_v and inner
//
// r = 1 / rms of the row from its partial sums of squares. Shapes: x, d_x [T, D]; W [3·H·K, D], W_o [D, H·K]; qkv, d_qkv [T, 3·H·K];
// o [T, H·K]; all in bf16, sums in f32 in the tensor core. K is 64, an example has at most 16 rows, and there is room for at most 64, so
// that one tile has all examples.
//
// Each block of a cluster multiplies its part of D by a warpgroup, as gemm_thin_hopper.cu does, and keeps the sums. The examples are
// shared out among the warps of all its blocks. While the product's operands come, a warp asks for what else its example takes. Then it
// adds up the parts of the example's own rows, in order, straight from the blocks' shared memory, rounds them, and goes on with them as
// they lie in its own: a head's d_o is nowhere in memory.
//
// Grid: x the blocks of a cluster, 4 or 8, y heads. The true number of rows is the batch's.
// Bytes: x or d_x once for every head, the weight once; forward writes qkv, o and log_sum_exp, backward reads qkv and log_sum_exp and
// writes d_qkv and inner, each once; parts of the product between the multiprocessors alone.
// Backward keeps qkv and log_sum_exp.
// On sm_90a, with D of 768 in 8 parts: registers a thread, bytes of shared memory a block, blocks a multiprocessor at once:
//   self_attention_forward_hopper 132 90504 2, self_attention_forward_dropped_hopper 133 90504 2,
//   self_attention_backward_hopper 97 71824 3, self_attention_backward_dropped_hopper 97 71824 3
#include "short_attention.cuh"
#include "thin_hopper.cuh"

using namespace promptmix;

struct SelfAttentionHopperArguments {
    TensorMap a;             // [T, D]: x or d_x
    TensorMap weight;        // [3·H·K, D] or [D, H·K]
    AttentionArguments of;   // forward without q, k and v, backward without d_o
    const float* partials;   // of the norm of x
    bf16* qkv;               // forward [T, 3·H·K]
    int depth;               // D
    int stages;              // of D that a block has room for at once; forward, that it has
    float epsilon;
    int padding[13];
};

constexpr int WARPS = THREADS / 32;
constexpr int PARTS = 3;  // of qkv
static_assert(ROWS == WARPS * MAX_ROWS && COLUMNS == 64, "a warp's rows of a tile, and a head's columns");
// Of x and the three parts' weights.
constexpr int BYTES_WIDE_STAGE = (1 + PARTS) * BYTES_OPERAND;
constexpr int MAX_WIDE_STAGES = 4;
// Of dynamic shared memory the stages come first, where the sums are after that. After them, forward: tiles of q, k and v of the
// block's examples, masks, r of each row, and a barrier.
constexpr int FORWARD_MASKS_FROM = PARTS * BYTES_OPERAND;
constexpr int RECIPROCALS_FROM = FORWARD_MASKS_FROM + WARPS * MASK_BYTES;
constexpr int FORWARD_BARRIER_FROM = RECIPROCALS_FROM + ROWS * 4;
static_assert(MAX_WIDE_STAGES * BYTES_WIDE_STAGE + FORWARD_BARRIER_FROM + 8 <= 227 * 1024, "what a block may ask for");
// Backward: tiles of q, k, v and d_o, weights that are read turned, masks, and each stage's barrier.
constexpr int TURNED_FROM = (PARTS + 1) * BYTES_OPERAND;
constexpr int MASKS_FROM = TURNED_FROM + WARPS * 2 * TURNED_BYTES;
constexpr int STAGE_BARRIERS_FROM = MASKS_FROM + WARPS * MASK_BYTES;

// The k-blocks, of D, that a block of the cluster multiplies.
struct KBlocks {
    int first, count;

    __device__ __forceinline__ explicit KBlocks(int depth) {
        const int all = (depth + DEPTH - 1) / DEPTH, parts = gridDim.x, part = blockIdx.x;
        first = all * part / parts;
        count = all * (part + 1) / parts - first;
    }
};

// Where a warp's row lies in a tile: few rows one after the other, others as the tensor cores' operands do.
__device__ __forceinline__ uint32_t place_of_row(const Short& of, int row, int chunk) {
    return of.rows > FEW_ROWS ? swizzled<COLUMNS>(of.warp_row + row, chunk) : (of.warp_row + row) * COLUMNS * 2 + chunk * 16;
}
// Rows of a tile that are looked at, four at once: those after an example's last are zeros.
__device__ __forceinline__ int rows_to_fill(const Short& of) { return of.rows > FEW_ROWS ? MAX_ROWS : FEW_ROWS; }
__device__ __forceinline__ FewRows<COLUMNS> few_rows(const unsigned char* tile, const Short& of) {
    return FewRows<COLUMNS>(reinterpret_cast<const bf16*>(tile) + of.warp_row * COLUMNS, COLUMNS, COLUMNS);
}
__device__ __forceinline__ FewInput<COLUMNS> few_input(const unsigned char* tiles, const Short& of) {
    return {few_rows(tiles, of), few_rows(tiles + BYTES_OPERAND, of), few_rows(tiles + 2 * BYTES_OPERAND, of)};
}

// Keeps the compiler from computing addresses in the tensor cores' tiles where no example needs them.
__device__ __forceinline__ int unknown_zero() {
    int zero = 0;
    asm volatile("" : "+r"(zero));
    return zero;
}

// Goes through the examples of a warp: calls `prepare` for each before `sum`, which reads other blocks' shared memory, and then `attend`.
// `product` comes between the first example's `prepare` and `sum`, and is for all threads. Ends when no block reads another's any more.
template <typename Prepare, typename Product, typename Sum, typename Attend>
__device__ __forceinline__ void go_through_examples(const AttentionArguments& arguments, const Batch& batch, const Prepare& prepare,
                                                    const Product& product, const Sum& sum, const Attend& attend) {
    const int warp = threadIdx.x / 32, step = gridDim.x * WARPS, head = blockIdx.y, examples = batch.examples();
    // Neighbours go to different blocks: each has as few busy warps as can be.
    int example = blockIdx.x + gridDim.x * warp;
    Short of(arguments, batch, example, head, warp * MAX_ROWS);
    if (of.any) prepare(of);
    product();
#pragma unroll 1
    while (true) {
        if (of.any) sum(of);
        __syncwarp();
        example += step;
        if (example >= examples) arrive_at_cluster();
        if (of.any) attend(of);
        if (example >= examples) break;
        // What lies in the warp's rows was read.
        __syncwarp();
        of = Short(arguments, batch, example, head, warp * MAX_ROWS);
        if (of.any) prepare(of);
    }
    __syncwarp();
    wait_for_arrivals();
}

template <bool Dropped> __device__ __forceinline__ void forward(const SelfAttentionHopperArguments& arguments) {
    extern __shared__ __align__(1024) unsigned char shared[];
    const AttentionArguments& attention = arguments.of;
    const Batch batch{attention.batch};
    const uint32_t thread = threadIdx.x, warp = thread / 32, chunk = thread % LANES;
    const int parts = gridDim.x, head = blockIdx.y, heads = attention.heads, depth = arguments.depth;
    const KBlocks k_blocks(depth);
    const int after = max(arguments.stages * BYTES_WIDE_STAGE, PARTS * BYTES_SUMS);
    unsigned char* const tiles = shared + after;
    uint8_t* const bits = tiles + FORWARD_MASKS_FROM + warp * MASK_BYTES;
    float* const reciprocals = reinterpret_cast<float*>(tiles + RECIPROCALS_FROM) + warp * MAX_ROWS;
    const uint32_t base = shared_address(shared), barrier = base + after + FORWARD_BARRIER_FROM;
    if (thread == 0) {
        start_barrier(barrier, 1);
        fence_barriers();
    }
    wait_for_earlier_launches();
    if (thread == 0) {
        expect_bytes(barrier, k_blocks.count * BYTES_WIDE_STAGE);
#pragma unroll 1
        for (int i = 0; i < k_blocks.count; ++i) {
            const int column = (k_blocks.first + i) * DEPTH;
            uint32_t to = base + i * BYTES_WIDE_STAGE;
            copy_box(to, arguments.a, barrier, column, 0);
#pragma unroll 1
            for (int row = head * COLUMNS; row < PARTS * heads * COLUMNS; row += heads * COLUMNS) {
                to += BYTES_OPERAND;
                copy_box(to, arguments.weight, barrier, column, row);
            }
        }
    }
    __syncwarp();
    FewBefore few = {};
    ShortBefore before = {};
    const auto prepare = [&](const Short& of) {
        if (of.rows <= FEW_ROWS) {
            few = load_few_before<Dropped, false>(attention, batch, of);
        } else {
            before = load_short_before<Dropped, false>(attention, batch, of, bits);
        }
        const int count = (depth + NORM_COLUMNS - 1) / NORM_COLUMNS;
        // All lanes of a row, and all rows at once, for the sum is of them together.
#pragma unroll 1
        for (int row = thread % 32 / LANES; row < rows_to_fill(of); row += 32 / LANES) {
            const float* const from = arguments.partials + (of.row + min(row, of.rows - 1)) * count;
            const float r = rsqrtf(sum_of_row(from, count) / static_cast<float>(depth) + arguments.epsilon);
            if (chunk == 0) reciprocals[row] = r;
        }
        __syncwarp();
    };
    const auto product = [&] {
        __syncthreads();
        wait_for_phase(barrier, 0);
        float sums[PARTS * COLUMNS / 2];
        fence_products();
#pragma unroll 1
        for (int i = 0; i < k_blocks.count; ++i) {
            const uint32_t left = base + i * BYTES_WIDE_STAGE;
            const uint64_t a = describe_operand(left, 16, 1024), b = describe_operand(left + BYTES_OPERAND, 16, 1024);
#pragma unroll
            for (int step = 0; step < DEPTH / 16; ++step) {
                multiply_192<false>(sums, operand_after(a, step * 32), operand_after(b, step * 32), i + step > 0);
            }
        }
        commit_products();
        wait_for_products<0>();
        // As in `multiply_k_blocks`.
        __syncthreads();
#pragma unroll
        for (int part = 0; part < PARTS; ++part) {
            float of_part[COLUMNS / 2];
#pragma unroll
            for (int i = 0; i < COLUMNS / 2; ++i) of_part[i] = sums[part * COLUMNS / 2 + i];
            store_sums<false>(reinterpret_cast<float*>(shared + part * BYTES_SUMS), of_part, ROWS);
        }
        wait_for_cluster();
    };
    const auto sum = [&](const Short& of) {
#pragma unroll 1
        for (int row = thread % 32 / LANES; row < rows_to_fill(of); row += 32 / LANES) {
            const bool any = row < of.rows;
            const float r = reciprocals[row];
            const uint32_t place = place_of_row(of, row, chunk);
            bf16* const to = arguments.qkv + (of.row + row) * PARTS * heads * COLUMNS + head * COLUMNS + chunk * PACKED_COLUMNS;
#pragma unroll 1
            for (int part = 0; part < PARTS; ++part) {
                Columns<PACKED_COLUMNS> c = {};
                if (any) c = sum_of_parts(base + part * BYTES_SUMS, static_cast<int>(of.row) + row, parts);
#pragma unroll
                for (int i = 0; i < PACKED_COLUMNS; ++i) c.value[i] *= r;
                store_columns(reinterpret_cast<bf16*>(tiles + part * BYTES_OPERAND + place), c);
                if (any) store_columns(to + part * heads * COLUMNS, c);
            }
        }
    };
    const auto attend = [&](const Short& of) {
        if (of.rows <= FEW_ROWS) {
            const auto bias_of = [&](int key) { return __shfl_sync(0xffffffffu, few.bias, thread % 32 / FEW_LANES * FEW_LANES + key); };
            attention_few<COLUMNS, Dropped>(attention, of, few_input(tiles, of), few, bias_of, COLUMNS);
        } else {
            attend_short<COLUMNS, Dropped>(attention, of, tiles + unknown_zero(), before, bits);
        }
    };
    go_through_examples(attention, batch, prepare, product, sum, attend);
}

extern "C" __global__ void __launch_bounds__(128) self_attention_forward_hopper(const __grid_constant__ SelfAttentionHopperArguments arguments) {
    forward<false>(arguments);
}
extern "C" __global__ void __launch_bounds__(128)
    self_attention_forward_dropped_hopper(const __grid_constant__ SelfAttentionHopperArguments arguments) {
    forward<true>(arguments);
}

// Starts copying a warp's rows of q, k and v, which are parts of the rows of one matrix, to their tiles.
__device__ __forceinline__ void copy_input(uint32_t tiles, const AttentionArguments& arguments, const Short& of) {
    const int row = threadIdx.x % 32 / FEW_LANES, chunk = threadIdx.x % FEW_LANES;
    const int64_t stride = arguments.q_stride;
    const bf16* from = static_cast<const bf16*>(arguments.q);
#pragma unroll 1
    for (int part = 0; part < PARTS; ++part) {
        if (of.rows > FEW_ROWS) {
            copy_short<COLUMNS>(tiles, from, arguments.q_stride, of, COLUMNS);
        } else if (row < of.rows) {
            copy_async(tiles + place_of_row(of, row, chunk), from + (of.row + row) * stride + of.head * COLUMNS + chunk * 8, true);
        }
        tiles += BYTES_OPERAND;
        from += arguments.heads * COLUMNS;
    }
    commit_copies();
}

template <bool Dropped> __device__ __forceinline__ void backward(const SelfAttentionHopperArguments& arguments) {
    extern __shared__ __align__(1024) unsigned char shared[];
    const AttentionArguments& attention = arguments.of;
    const Batch batch{attention.batch};
    const uint32_t thread = threadIdx.x, warp = thread / 32, chunk = thread % LANES;
    const int parts = gridDim.x, head = blockIdx.y, stages = arguments.stages;
    const KBlocks k_blocks(arguments.depth);
    const int after = max(stages * BYTES_STAGE, (BYTES_SUMS + 1023) / 1024 * 1024);
    unsigned char* const tiles = shared + after;
    unsigned char* const d_o = tiles + PARTS * BYTES_OPERAND;
    uint8_t* const bits = tiles + MASKS_FROM + warp * MASK_BYTES;
    const uint32_t base = shared_address(shared), full = base + after + STAGE_BARRIERS_FROM;
    const auto bring = [&](int stage, int k_block) {
        const uint32_t to = base + stage * BYTES_STAGE, barrier = full + stage * 8;
        const int row = (k_blocks.first + k_block) * DEPTH;
        expect_bytes(barrier, BYTES_STAGE);
        copy_box(to, arguments.a, barrier, row, 0);
        copy_box(to + BYTES_OPERAND, arguments.weight, barrier, head * COLUMNS, row);
    };
    if (thread == 0) {
#pragma unroll 1
        for (int stage = 0; stage < stages; ++stage) start_barrier(full + stage * 8, 1);
        fence_barriers();
    }
    wait_for_earlier_launches();
    if (thread == 0) {
#pragma unroll 1
        for (int stage = 0; stage < min(k_blocks.count, stages); ++stage) bring(stage, stage);
    }
    __syncwarp();
    FewBefore few = {};
    ShortBefore before = {};
    const auto prepare = [&](const Short& of) {
        copy_input(shared_address(tiles), attention, of);
        if (of.rows <= FEW_ROWS) {
            few = load_few_before<Dropped, true>(attention, batch, of);
        } else {
            before = load_short_before<Dropped, true>(attention, batch, of, bits);
        }
    };
    const auto product = [&] {
        __syncthreads();
        float sums[COLUMNS / 2];
        multiply_k_blocks<true>(sums, base, full, stages, k_blocks.count, bring, [](int) {});
        store_sums<false>(reinterpret_cast<float*>(shared), sums, ROWS);
        wait_for_cluster();
    };
    const auto sum = [&](const Short& of) {
#pragma unroll 1
        for (int row = thread % 32 / LANES; row < rows_to_fill(of); row += 32 / LANES) {
            Columns<PACKED_COLUMNS> c = {};
            if (row < of.rows) c = sum_of_parts(base, static_cast<int>(of.row) + row, parts);
            store_columns(reinterpret_cast<bf16*>(d_o + place_of_row(of, row, chunk)), c);
        }
        wait_for_copies<0>();
    };
    const auto attend = [&](const Short& of) {
        if (of.rows <= FEW_ROWS) {
            attention_few_backward<COLUMNS, Dropped>(attention, of, few_input(tiles, of), few_rows(d_o, of), few, COLUMNS);
        } else {
            unsigned char* const own = tiles + unknown_zero();
            attend_short_backward<COLUMNS, Dropped>(attention, of, own, own + TURNED_FROM + warp * 2 * TURNED_BYTES, before, bits);
        }
    };
    go_through_examples(attention, batch, prepare, product, sum, attend);
}

extern "C" __global__ void __launch_bounds__(128) self_attention_backward_hopper(const __grid_constant__ SelfAttentionHopperArguments arguments) {
    backward<false>(arguments);
}
extern "C" __global__ void __launch_bounds__(128)
    self_attention_backward_dropped_hopper(const __grid_constant__ SelfAttentionHopperArguments arguments) {
    backward<true>(arguments);
}
