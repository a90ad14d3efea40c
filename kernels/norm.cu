// The final norm of a stack, and its backward.
//
//   h = mask(x · r) · norm_weight · scale,  r = 1 / rms(x)
//   g = mask(d_h) · norm_weight · scale;    d_x = r·g - r^3·(<g, x> / D)·x
//
// Where x was made of `below` by a ReLU feed-forward, whose backward comes next, also inner = <d_x, x - below> of each row.
// The encoder's norm weight is folded into cross attention (norm_weight is null, scale 1); the decoder's multiplies its few label rows,
// with D^-0.5 where embeddings are tied.
// Shapes: x [rows, D] f32, below [rows, D] f32 or bf16, partials [rows, ceil(D / 64)], norm_weight [D] f32, h [rows, D] in the operand
// format, d_h [rows, D] f32, d_x [rows, D] f32 and its bf16 copy.
// Grid: forward a warp a row; backward a block of 128 threads a row, which holds the row in registers (D up to 4,096).
// Bytes: forward reads 4 D, writes 2 D a row; backward reads 8 D (10 with `below` in bf16), writes 6 D. Backward keeps x and the partials.
// On sm_80: registers a thread, bytes of shared memory a block, blocks a multiprocessor at once:
//   final_norm_bf16 44 0 10, final_norm_f32 44 0 10, final_norm_backward 90 16 5
#include "dependent.cuh"
#include "rows.cuh"

using namespace promptmix;

struct FinalNormArguments {
    Descriptor batch;
    const float* x;
    const float* partials;
    const float* norm_weight;
    void* h;
    Mask mask;
    int side;
    int width;
    float epsilon;
    float scale;
};

template <typename T> __device__ __forceinline__ void final_norm(const FinalNormArguments& arguments) {
    const Batch batch{arguments.batch};
    const int row = blockIdx.x * ROW_WARPS + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= batch.rows(arguments.side)) return;
    const int width = arguments.width;
    const MaskRow mask = mask_of_row(arguments.mask, batch, arguments.side, row);
    const Norm norm{arguments.partials, width, arguments.epsilon};
    const float factor = norm.reciprocal_rms(row) * arguments.scale;
    const int64_t start = static_cast<int64_t>(row) * width;
    for (int column = lane * FLOAT_COLUMNS; column < width; column += 32 * FLOAT_COLUMNS) {
        Columns<FLOAT_COLUMNS> c = load_columns<FLOAT_COLUMNS>(arguments.x + start + column);
        drop(c, mask, column);
#pragma unroll
        for (int i = 0; i < FLOAT_COLUMNS; ++i) c.value[i] *= factor;
        if (arguments.norm_weight != nullptr) {
            const Columns<FLOAT_COLUMNS> norm_weight = load_columns<FLOAT_COLUMNS>(arguments.norm_weight + column);
#pragma unroll
            for (int i = 0; i < FLOAT_COLUMNS; ++i) c.value[i] *= norm_weight.value[i];
        }
        store_columns(static_cast<T*>(arguments.h) + start + column, c);
    }
}

extern "C" __global__ void __launch_bounds__(128) final_norm_bf16(FinalNormArguments arguments) {
    wait_for_earlier_launches();
    final_norm<bf16>(arguments);
}
extern "C" __global__ void __launch_bounds__(128) final_norm_f32(FinalNormArguments arguments) {
    wait_for_earlier_launches();
    final_norm<float>(arguments);
}

struct FinalNormBackwardArguments {
    Descriptor batch;
    const float* x;
    const float* partials;
    const float* norm_weight;
    const float* d_h;
    float* d_x;
    bf16* copy;
    const float* below;      // [rows, D]
    const bf16* below_copy;  // in place of it, or null
    float* inner;            // [rows], or null where there is no `below`
    Mask mask;
    int side;
    int width;
    float epsilon;
    float scale;
};

constexpr int CHUNKS = 8;  // of 512 columns each, one for every thread's four

extern "C" __global__ void __launch_bounds__(128) final_norm_backward(FinalNormBackwardArguments arguments) {
    wait_for_earlier_launches();
    __shared__ float sums[4];
    const Batch batch{arguments.batch};
    const int row = blockIdx.x;
    if (row >= batch.rows(arguments.side)) return;
    const int width = arguments.width;
    const MaskRow mask = mask_of_row(arguments.mask, batch, arguments.side, row);
    const Norm norm{arguments.partials, width, arguments.epsilon};
    const float r = norm.reciprocal_rms(row);
    const int64_t start = static_cast<int64_t>(row) * width;
    Columns<FLOAT_COLUMNS> g[CHUNKS], x[CHUNKS];
    float sum = 0.0f;
#pragma unroll
    for (int chunk = 0; chunk < CHUNKS; ++chunk) {
        const int column = (chunk * 128 + threadIdx.x) * FLOAT_COLUMNS;
        if (column >= width) break;
        g[chunk] = load_columns<FLOAT_COLUMNS>(arguments.d_h + start + column);
        x[chunk] = load_columns<FLOAT_COLUMNS>(arguments.x + start + column);
        drop(g[chunk], mask, column);
#pragma unroll
        for (int i = 0; i < FLOAT_COLUMNS; ++i) g[chunk].value[i] *= arguments.scale;
        if (arguments.norm_weight != nullptr) {
            const Columns<FLOAT_COLUMNS> norm_weight = load_columns<FLOAT_COLUMNS>(arguments.norm_weight + column);
#pragma unroll
            for (int i = 0; i < FLOAT_COLUMNS; ++i) g[chunk].value[i] *= norm_weight.value[i];
        }
#pragma unroll
        for (int i = 0; i < FLOAT_COLUMNS; ++i) sum = fmaf(g[chunk].value[i], x[chunk].value[i], sum);
    }
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
    __syncthreads();
    const float along = r * r * r * (sums[0] + sums[1] + sums[2] + sums[3]) / static_cast<float>(width);
    float inner = 0.0f;
#pragma unroll
    for (int chunk = 0; chunk < CHUNKS; ++chunk) {
        const int column = (chunk * 128 + threadIdx.x) * FLOAT_COLUMNS;
        if (column >= width) break;
        Columns<FLOAT_COLUMNS> d;
#pragma unroll
        for (int i = 0; i < FLOAT_COLUMNS; ++i) d.value[i] = r * g[chunk].value[i] - along * x[chunk].value[i];
        store_columns(arguments.d_x + start + column, d);
        if (arguments.copy != nullptr) store_columns(arguments.copy + start + column, d);
        if (arguments.inner != nullptr) {
            const Columns<FLOAT_COLUMNS> below = arguments.below_copy != nullptr
                                                     ? load_columns<FLOAT_COLUMNS>(arguments.below_copy + start + column)
                                                     : load_columns<FLOAT_COLUMNS>(arguments.below + start + column);
#pragma unroll
            for (int i = 0; i < FLOAT_COLUMNS; ++i) inner = fmaf(d.value[i], x[chunk].value[i] - below.value[i], inner);
        }
    }
    if (arguments.inner == nullptr) return;
    inner = warp_sum(inner);
    __syncthreads();
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = inner;
    __syncthreads();
    if (threadIdx.x == 0) arguments.inner[row] = sums[0] + sums[1] + sums[2] + sums[3];
}
