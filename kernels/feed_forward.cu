// What stands between the two products of a gated feed-forward, and the row passes around a sublayer's backward.
//
//   gate           a = act(z0)·z1·mask                     z = [z0, z1] pre-activations, act gelu (tanh form) or silu
//   gate backward  dz0 = d_a·mask·z1·act'(z0), dz1 = d_a·mask·act(z0); inner = <dz, z>
//   row inner      inner = <d_x, x_next - x>: with ReLU, which is positively homogeneous, that is <dz, z>
//   mask copy      the operand copy of d_x times the output mask of the sublayer below
//   row squares    inner[row, i] = sum of x[row, 64 i .. 64 i + 63]^2, and x in bf16: what a norm's first product reads
//
// Shapes: z, dz [rows, 2 F] in the operand format, a, d_a [rows, F], inner [rows, 1] f32; x, x_next, d_x [rows, D] f32.
// Grid: a warp a row, four rows a block; rows beyond the batch's exit.
// Bytes a row, in bf16: gate reads 4 F, writes 2 F; its backward reads 6 F, writes 4 F; row inner reads 12 D; mask copy
// reads 4 D, writes 2 D. Backward keeps z.
// On sm_80: registers a thread, bytes of shared memory a block, blocks a multiprocessor at once:
//   gate_bf16 40 0 12, gate_backward_bf16 62 0 8, row_inner 38 0 12, mask_copy_bf16 38 0 12, row_squares 24 0 16, gate_f32 52 0 9,
//   gate_backward_f32 62 0 8, mask_copy_f32 40 0 12
#include "dependent.cuh"
#include "rows.cuh"

using namespace promptmix;

struct GateArguments {
    Descriptor batch;
    void* z;
    void* a;       // a, or d_a
    void* dz;
    float* inner;
    Mask mask;
    int side;
    int width;     // F
    int silu;
    int padding;
};

struct Activated {
    float value, slope;
};

__device__ __forceinline__ Activated activate(float z, bool silu) {
    if (silu) {
        const float s = 1.0f / (1.0f + expf(-z));
        return {z * s, s * (1.0f + z * (1.0f - s))};
    }
    // 0.5 z (1 + tanh(sqrt(2 / pi) (z + 0.044715 z^3)))
    constexpr float ROOT = 0.7978845608028654f, CUBE = 0.044715f;
    const float t = tanhf(ROOT * (z + CUBE * z * z * z));
    return {0.5f * z * (1.0f + t), 0.5f * (1.0f + t) + 0.5f * z * (1.0f - t * t) * ROOT * (1.0f + 3.0f * CUBE * z * z)};
}

template <typename T> __device__ __forceinline__ void gate(const GateArguments& arguments) {
    const Batch batch{arguments.batch};
    const int row = blockIdx.x * ROW_WARPS + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= batch.rows(arguments.side)) return;
    const int width = arguments.width;
    const MaskRow mask = mask_of_row(arguments.mask, batch, arguments.side, row);
    const T* const z = static_cast<const T*>(arguments.z) + static_cast<int64_t>(row) * 2 * width;
    T* const a = static_cast<T*>(arguments.a) + static_cast<int64_t>(row) * width;
    for (int column = lane * PACKED_COLUMNS; column < width; column += 32 * PACKED_COLUMNS) {
        Columns<PACKED_COLUMNS> c = load_columns<PACKED_COLUMNS>(z + column);
        const Columns<PACKED_COLUMNS> other = load_columns<PACKED_COLUMNS>(z + width + column);
#pragma unroll
        for (int i = 0; i < PACKED_COLUMNS; ++i) c.value[i] = activate(c.value[i], arguments.silu).value * other.value[i];
        drop(c, mask, column);
        store_columns(a + column, c);
    }
}

template <typename T> __device__ __forceinline__ void gate_backward(const GateArguments& arguments) {
    const Batch batch{arguments.batch};
    const int row = blockIdx.x * ROW_WARPS + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= batch.rows(arguments.side)) return;
    const int width = arguments.width;
    const MaskRow mask = mask_of_row(arguments.mask, batch, arguments.side, row);
    const T* const z = static_cast<const T*>(arguments.z) + static_cast<int64_t>(row) * 2 * width;
    const T* const d_a = static_cast<const T*>(arguments.a) + static_cast<int64_t>(row) * width;
    T* const dz = static_cast<T*>(arguments.dz) + static_cast<int64_t>(row) * 2 * width;
    float inner = 0.0f;
    for (int column = lane * PACKED_COLUMNS; column < width; column += 32 * PACKED_COLUMNS) {
        const Columns<PACKED_COLUMNS> z0 = load_columns<PACKED_COLUMNS>(z + column), z1 = load_columns<PACKED_COLUMNS>(z + width + column);
        Columns<PACKED_COLUMNS> d = load_columns<PACKED_COLUMNS>(d_a + column), dz0, dz1;
        drop(d, mask, column);
#pragma unroll
        for (int i = 0; i < PACKED_COLUMNS; ++i) {
            const Activated activated = activate(z0.value[i], arguments.silu);
            dz0.value[i] = d.value[i] * z1.value[i] * activated.slope;
            dz1.value[i] = d.value[i] * activated.value;
            inner = fmaf(dz0.value[i], z0.value[i], inner);
            inner = fmaf(dz1.value[i], z1.value[i], inner);
        }
        store_columns(dz + column, dz0);
        store_columns(dz + width + column, dz1);
    }
    inner = warp_sum(inner);
    if (lane == 0) arguments.inner[row] = inner;
}

extern "C" __global__ void __launch_bounds__(128) gate_bf16(GateArguments arguments) {
    wait_for_earlier_launches();
    gate<bf16>(arguments);
}
extern "C" __global__ void __launch_bounds__(128) gate_f32(GateArguments arguments) {
    wait_for_earlier_launches();
    gate<float>(arguments);
}
extern "C" __global__ void __launch_bounds__(128) gate_backward_bf16(GateArguments arguments) {
    wait_for_earlier_launches();
    gate_backward<bf16>(arguments);
}
extern "C" __global__ void __launch_bounds__(128) gate_backward_f32(GateArguments arguments) {
    wait_for_earlier_launches();
    gate_backward<float>(arguments);
}

struct RowArguments {
    Descriptor batch;
    const float* d_x;
    const float* x;
    const float* x_next;
    float* inner;
    void* copy;
    Mask mask;
    int side;
    int width;
};

extern "C" __global__ void __launch_bounds__(128) row_inner(RowArguments arguments) {
    wait_for_earlier_launches();
    const Batch batch{arguments.batch};
    const int row = blockIdx.x * ROW_WARPS + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= batch.rows(arguments.side)) return;
    const int64_t start = static_cast<int64_t>(row) * arguments.width;
    float inner = 0.0f;
    for (int column = lane * FLOAT_COLUMNS; column < arguments.width; column += 32 * FLOAT_COLUMNS) {
        const Columns<FLOAT_COLUMNS> d_x = load_columns<FLOAT_COLUMNS>(arguments.d_x + start + column), x = load_columns<FLOAT_COLUMNS>(arguments.x + start + column);
        const Columns<FLOAT_COLUMNS> next = load_columns<FLOAT_COLUMNS>(arguments.x_next + start + column);
#pragma unroll
        for (int i = 0; i < FLOAT_COLUMNS; ++i) inner = fmaf(d_x.value[i], next.value[i] - x.value[i], inner);
    }
    inner = warp_sum(inner);
    if (lane == 0) arguments.inner[row] = inner;
}

extern "C" __global__ void __launch_bounds__(128) row_squares(RowArguments arguments) {
    wait_for_earlier_launches();
    const Batch batch{arguments.batch};
    const int row = blockIdx.x * ROW_WARPS + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= batch.rows(arguments.side)) return;
    const int width = arguments.width;
    const int64_t first = static_cast<int64_t>(row) * width;
    for (int start = 0; start < width; start += 32 * FLOAT_COLUMNS) {
        const int column = start + lane * FLOAT_COLUMNS;
        Columns<FLOAT_COLUMNS> c = {};
        if (column < width) {
            c = load_columns<FLOAT_COLUMNS>(arguments.x + first + column);
            if (arguments.copy != nullptr) store_columns(static_cast<bf16*>(arguments.copy) + first + column, c);
        }
        write_partials(arguments.inner, row, width, column, c);
    }
}

template <typename T> __device__ __forceinline__ void mask_copy(const RowArguments& arguments) {
    const Batch batch{arguments.batch};
    const int row = blockIdx.x * ROW_WARPS + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= batch.rows(arguments.side)) return;
    const int64_t start = static_cast<int64_t>(row) * arguments.width;
    const MaskRow mask = mask_of_row(arguments.mask, batch, arguments.side, row);
    for (int column = lane * FLOAT_COLUMNS; column < arguments.width; column += 32 * FLOAT_COLUMNS) {
        Columns<FLOAT_COLUMNS> c = load_columns<FLOAT_COLUMNS>(arguments.d_x + start + column);
        drop(c, mask, column);
        store_columns(static_cast<T*>(arguments.copy) + start + column, c);
    }
}

extern "C" __global__ void __launch_bounds__(128) mask_copy_bf16(RowArguments arguments) {
    wait_for_earlier_launches();
    mask_copy<bf16>(arguments);
}
extern "C" __global__ void __launch_bounds__(128) mask_copy_f32(RowArguments arguments) {
    wait_for_earlier_launches();
    mask_copy<float>(arguments);
}
