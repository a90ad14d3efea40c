// The two products before absorbed cross attention and before its backward, of heads up to 64 wide, for compute capability 9.0:
//
//   q_h = r·x W_q,h^T, q'_h = q_h W_k,h        or        d_o_h = d_x W_o,h, d_mixed_h = d_o_h W_v,h
//
// r = 1 / rms of the row from its partial sums of squares. Shapes: x, d_x [T, D]; W_q, W_k, W_v [H·K, D], W_o [D, H·K]; q, d_o
// [T, H·K]; q', d_mixed [T, H, D]; all in bf16, sums in f32 in the tensor core.
//
// A cluster of four blocks has a head and 64 rows. Each brings its quarter of D of both operands of the first product, and of the second
// weight, by tensor copies at once, and computes that part of the head's 64 columns; each then adds up the parts of 16 rows in order,
// rounds them, stores them, and gives them to all four, who multiply them with their quarters of the second weight.
//
// Grid: x the blocks of a cluster, y over rows, z heads. The true number of rows is the batch's; surplus blocks exit.
// Bytes: x and both weights once for every head or row of tiles; what is written once. Columns of the box behind a head's width are of
// the next head, and count as zeros.
// Backward keeps nothing but what is stored.
// On sm_90a: registers a thread, bytes of shared memory a block, blocks a multiprocessor at once:
//   cross_project_hopper 0 0 0, cross_project_backward_hopper 0 0 0
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
constexpr int BYTES_STAGE = 2 * BYTES_OPERAND;
constexpr int BYTES_BARRIERS = 16;

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
    // Other warps' products read the same columns.
    __syncthreads();
    store_sums(reinterpret_cast<float*>(shared), sums);
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
    // As a tensor copy with 128-byte swizzle would have it.
    const uint32_t place = middle + row * (DEPTH * 2) + ((chunk ^ (row & 7)) << 4);
#pragma unroll
    for (int block = 0; block < CLUSTER; ++block) store_to_block(place, block, packed);
    fence_writes();
    wait_for_cluster();
    wait_for_phase(barrier + 8, 0);
    const int lane = thread % 32, own_row = first_row + thread / 32 * 16 + lane / 4;
    const int64_t stride = static_cast<int64_t>(arguments.heads) * depth;
    bf16* const to = arguments.to + own_row * stride + static_cast<int64_t>(head) * depth + lane % 4 * 2;
#pragma unroll 1
    for (int i = 0; i < count; ++i) {
        fence_products();
        multiply_stretch<true>(sums, middle, next + i * BYTES_OPERAND, false);
        commit_products();
        wait_for_products<0>();
        const int column = (first + i) * DEPTH;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            if (own_row + half * 8 >= rows) continue;
#pragma unroll
            for (int j = 0; j < COLUMNS / 8; ++j) {
                if (column + j * 8 >= depth) break;
                *reinterpret_cast<uint32_t*>(to + half * 8 * stride + column + j * 8) =
                    pack_bf16(sums[j * 4 + half * 2], sums[j * 4 + half * 2 + 1]);
            }
        }
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
