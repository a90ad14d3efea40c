// What the products' kernels share: their argument, what an epilogue asks of a row, and the epilogues themselves, over a tile of
// f32 in shared memory.
#pragma once
#include "rows.cuh"

namespace promptmix {

enum Epilogue : int { PROJECT, RELU, ADD, PLAIN, RELU_BACKWARD, NORM_BACKWARD, FLOAT, ACCUMULATE, DELTA };

// Where an epilogue does not need an operand, it is null.
struct GemmArguments {
    Descriptor batch;
    const void* a;
    const void* weight;
    void* out;               // operand format; of `float`, f32
    const float* x;          // [rows, n] residual rows
    float* x_next;           // [rows, n], or d_x
    bf16* copy;              // bf16 copy of x_next or d_x
    const float* partials;   // of the norm that is read
    float* partials_next;    // of x_next
    const float* inner;      // [m, inner_parts]
    const void* below;       // [rows, n] in f32, or in bf16 where norm backward reads x's copy; or null
    const bf16* y;           // [rows, n]: of delta; of norm backward x's copy, or null
    float* inner_next;       // [rows, ceil(n / 64)]: of `below`, or of y
    uint8_t* bits;           // [rows, n / 8]
    float* workspace;        // [tiles, parts, tile]
    int* counters;           // [tiles], zero before and after
    Mask mask;
    int side;
    int scope;
    int n;
    int k;
    int a_stride;
    int epilogue;
    int inner_parts;
    float epsilon;
};

// The epilogue of a launch; or of a kernel that has but one, whose code is then straight.
constexpr int ANY = -1;
template <int Only> __device__ __forceinline__ int epilogue_of(const GemmArguments& arguments) {
    return Only == ANY ? arguments.epilogue : Only;
}

// What an epilogue asks of a row: found for all rows of a tile at once, a thread a row, while the product's first operands
// are on their way, so that the epilogue itself waits for no chain of loads.
struct RowInfo {
    int row;             // among the packed rows
    float r;             // 1 / rms, where a norm is folded
    union {
        uint32_t seed;   // of its mask, where there is one
        float along;     // r^2 inner / D, of the norm's backward
    };
    uint32_t index;
    uint32_t mask_row;
};

template <int Only, int Rows, int Threads>
__device__ __forceinline__ void describe_rows(const GemmArguments& arguments, const Batch& batch, RowInfo* info, int first_row, int rows,
                                              uint32_t thread) {
    static_assert(Rows <= Threads, "a thread a row");
    const int a_row = first_row + thread, epilogue = epilogue_of<Only>(arguments);
    if (thread >= Rows) return;
    RowInfo own = {};
    if (a_row < rows) {
        own.row = arguments.scope == PROMPT ? batch.row_of_prompt_row(a_row) : a_row;
        if (epilogue == PROJECT || epilogue == RELU || epilogue == NORM_BACKWARD) {
            // Before a projection the norm's rows are as wide as the product is deep.
            const int width = epilogue == NORM_BACKWARD ? arguments.n : arguments.k;
            own.r = Norm{arguments.partials, width, arguments.epsilon}.reciprocal_rms(own.row);
        }
        if (epilogue == RELU || epilogue == ADD) {
            const MaskRow mask = mask_of_row(arguments.mask, batch, arguments.side, own.row);
            own.seed = mask.seed;
            own.index = mask.index;
            own.mask_row = mask.row;
        } else if (epilogue == NORM_BACKWARD) {
            float inner = 0.0f;
            for (int i = 0; i < arguments.inner_parts; ++i) {
                inner += arguments.inner[static_cast<int64_t>(a_row) * arguments.inner_parts + i];
            }
            own.along = own.r * own.r * inner / static_cast<float>(arguments.n);
        }
    }
    info[thread] = own;
}

// What an epilogue reads at eight columns of a row beside the product.
struct Before {
    Columns<PACKED_COLUMNS> x;     // the residual row
    Columns<PACKED_COLUMNS> next;  // what is added to
    Columns<PACKED_COLUMNS> below; // the residual row before that
    uint32_t bits;
};

// `Paired`: neighbouring lanes access f32 together, for products that move much of it; what was loaded is `settled` where it is used.
template <bool Paired> __device__ __forceinline__ Columns<PACKED_COLUMNS> load_floats(const float* from, bool inside) {
    if (Paired) return load_paired(from, inside);
    return inside ? load_columns<PACKED_COLUMNS>(from) : Columns<PACKED_COLUMNS>{};
}
template <bool Paired> __device__ __forceinline__ Columns<PACKED_COLUMNS> settled(Columns<PACKED_COLUMNS> c) {
    if (Paired) exchange(c);
    return c;
}
template <bool Paired> __device__ __forceinline__ void store_floats(float* to, const Columns<PACKED_COLUMNS>& c, bool inside) {
    if (Paired) {
        store_paired(to, c, inside);
    } else if (inside) {
        store_columns(to, c);
    }
}

template <int Only, bool Paired = false>
__device__ __forceinline__ Before load_before(const GemmArguments& arguments, int row, int column, bool inside) {
    Before before = {};
    if (!Paired && !inside) return before;
    const int64_t at = static_cast<int64_t>(row) * arguments.n + column;
    const int epilogue = epilogue_of<Only>(arguments);
    // What x and `below` bring to d_x lies along x, and its rounding is below that of d_x's own copy.
    const bool copied = epilogue == DELTA || (epilogue == NORM_BACKWARD && arguments.y != nullptr);
    if (copied) {
        if (inside) before.x = load_columns<PACKED_COLUMNS>(arguments.y + at);
    } else if (epilogue == ADD || epilogue == NORM_BACKWARD) {
        before.x = load_floats<Paired>(arguments.x + at, inside);
    }
    if (epilogue == ACCUMULATE || epilogue == NORM_BACKWARD) before.next = load_floats<Paired>(arguments.x_next + at, inside);
    if (epilogue == NORM_BACKWARD && arguments.below != nullptr) {
        if (copied) {
            if (inside) before.below = load_columns<PACKED_COLUMNS>(static_cast<const bf16*>(arguments.below) + at);
        } else {
            before.below = load_floats<Paired>(static_cast<const float*>(arguments.below) + at, inside);
        }
    }
    if (epilogue == RELU_BACKWARD && inside) before.bits = arguments.bits[at / 8];
    return before;
}

// Writes an inner product of 64 columns, the sum of what their lanes bring; called by all of them.
__device__ __forceinline__ void write_inner(const GemmArguments& arguments, int row, int column, float sum, bool inside) {
#pragma unroll
    for (int step = NORM_COLUMNS / PACKED_COLUMNS / 2; step > 0; step >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, step);
    const int count = (arguments.n + NORM_COLUMNS - 1) / NORM_COLUMNS;
    if (inside && column % NORM_COLUMNS == 0) arguments.inner_next[static_cast<int64_t>(row) * count + column / NORM_COLUMNS] = sum;
}

// Finishes eight columns of one row. All lanes of the eight that share 64 columns call it together, where it is `Paired` all of a warp.
template <typename T, int Only, bool Paired = false>
__device__ __forceinline__ void finish(const GemmArguments& arguments, const RowInfo& info, const Before& before, int column,
                                       Columns<PACKED_COLUMNS> c, bool inside) {
    const int n = arguments.n;
    const int64_t at = static_cast<int64_t>(info.row) * n + column;
    const MaskRow mask(arguments.mask, info.seed, info.index, info.mask_row);
    const int epilogue = epilogue_of<Only>(arguments);
    switch (epilogue) {
    case PROJECT:
    case RELU: {
        if (!inside) break;
#pragma unroll
        for (int i = 0; i < PACKED_COLUMNS; ++i) c.value[i] *= info.r;
        if (epilogue == RELU) {
#pragma unroll
            for (int i = 0; i < PACKED_COLUMNS; ++i) c.value[i] = fmaxf(c.value[i], 0.0f);
            drop(c, mask, column);
            if (arguments.bits != nullptr) {
                uint32_t bits = 0;
#pragma unroll
                for (int i = 0; i < PACKED_COLUMNS; ++i) bits |= (c.value[i] > 0.0f ? 1u : 0u) << i;
                arguments.bits[at / 8] = static_cast<uint8_t>(bits);
            }
        }
        store_columns(static_cast<T*>(arguments.out) + at, c);
        break;
    }
    case ADD: {
        const Columns<PACKED_COLUMNS> x = settled<Paired>(before.x);
        if (inside) {
            drop(c, mask, column);
#pragma unroll
            for (int i = 0; i < PACKED_COLUMNS; ++i) c.value[i] += x.value[i];
            if (arguments.copy != nullptr) store_columns(arguments.copy + at, c);
        } else {
            c = {};
        }
        store_floats<Paired>(arguments.x_next + at, c, inside);
        const float sum = squares(c);
        if (inside && column % NORM_COLUMNS == 0) {
            const int count = (n + NORM_COLUMNS - 1) / NORM_COLUMNS;
            arguments.partials_next[static_cast<int64_t>(info.row) * count + column / NORM_COLUMNS] = sum;
        }
        break;
    }
    case PLAIN:
        if (inside) store_columns(static_cast<T*>(arguments.out) + at, c);
        break;
    case DELTA: {
        float sum = 0.0f;
        if (inside) {
            store_columns(static_cast<T*>(arguments.out) + at, c);
            // As attention will read it.
#pragma unroll
            for (int i = 0; i < PACKED_COLUMNS; ++i) sum = fmaf(to_float(from_float<T>(c.value[i])), before.x.value[i], sum);
        }
        write_inner(arguments, info.row, column, sum, inside);
        break;
    }
    case RELU_BACKWARD: {
        if (!inside) break;
        const float scale = mask.any ? mask.scale : 1.0f;
#pragma unroll
        for (int i = 0; i < PACKED_COLUMNS; ++i) c.value[i] = (before.bits >> i & 1u) != 0 ? c.value[i] * scale : 0.0f;
        store_columns(static_cast<T*>(arguments.out) + at, c);
        break;
    }
    case NORM_BACKWARD: {
        const bool copied = arguments.y != nullptr;
        const Columns<PACKED_COLUMNS> next = settled<Paired>(before.next), x = copied ? before.x : settled<Paired>(before.x);
        const Columns<PACKED_COLUMNS> below = copied || arguments.below == nullptr ? before.below : settled<Paired>(before.below);
        float sum = 0.0f;
        if (inside) {
            const float along = info.along;
#pragma unroll
            for (int i = 0; i < PACKED_COLUMNS; ++i) {
                c.value[i] = next.value[i] + info.r * c.value[i] - along * x.value[i];
                sum = fmaf(c.value[i], x.value[i] - below.value[i], sum);
            }
            if (arguments.copy != nullptr) store_columns(arguments.copy + at, c);
        }
        store_floats<Paired>(arguments.x_next + at, c, inside);
        if (arguments.below != nullptr) write_inner(arguments, info.row, column, sum, inside);
        break;
    }
    case ACCUMULATE: {
        const Columns<PACKED_COLUMNS> next = settled<Paired>(before.next);
#pragma unroll
        for (int i = 0; i < PACKED_COLUMNS; ++i) c.value[i] += next.value[i];
        store_floats<Paired>(arguments.x_next + at, c, inside);
        break;
    }
    case FLOAT: {
        if (!inside) break;
        float* const out = static_cast<float*>(arguments.out) + at;
        if (n % 4 == 0 && column + PACKED_COLUMNS <= n) {
            store_columns(out, c);
        } else {
            for (int i = 0; i < PACKED_COLUMNS && column + i < n; ++i) out[i] = c.value[i];
        }
        break;
    }
    }
}

// Runs the epilogue over a tile of f32 in shared memory, eight columns a lane and some rows at once, whose loads do not wait
// for each other; first sums the parts of k if the kernel cuts it and there are any. `thread` counts those that share the tile,
// which are the whole block where k is cut.
template <typename T, int Only, int Rows, int Width, int Stride, int Threads, bool Cuts = true, bool Paired = false>
__device__ __forceinline__ void finish_tile(const GemmArguments& arguments, const RowInfo* info, float* tile, int first_row,
                                            int first_column, int rows, uint32_t thread) {
    constexpr int Lanes = Width / PACKED_COLUMNS;  // of a row
    constexpr int Step = Threads / Lanes, AtOnce = Rows / Step % 4 == 0 ? 4 : 2;
    static_assert(Rows % (Step * AtOnce) == 0, "whole groups of rows");
    const int parts = Cuts ? gridDim.z : 1;
    const int lane = thread % Lanes, start = thread / Lanes;
    if (parts > 1) {
        __shared__ int came;
        const int64_t tile_index = static_cast<int64_t>(blockIdx.y) * gridDim.x + blockIdx.x;
        float* const slabs = arguments.workspace + tile_index * parts * Rows * Width;
        for (int row = start; row < Rows; row += Step) {
            const Columns<PACKED_COLUMNS> c = load_shared(tile + row * Stride + lane * PACKED_COLUMNS, lane);
            store_columns(slabs + (static_cast<int64_t>(blockIdx.z) * Rows + row) * Width + lane * PACKED_COLUMNS, c);
        }
        // One thread's fences stand for the block's: what others wrote before the barrier comes before them.
        __syncthreads();
        if (thread == 0) {
            __threadfence();
            came = atomicAdd(arguments.counters + tile_index, 1);
            __threadfence();
        }
        __syncthreads();
        if (came != parts - 1) return;
        if (thread == 0) arguments.counters[tile_index] = 0;
        for (int group = start; group < Rows; group += Step * AtOnce) {
            Columns<PACKED_COLUMNS> sums[AtOnce] = {};
            const float* const slab = slabs + static_cast<int64_t>(group) * Width + lane * PACKED_COLUMNS;
#pragma unroll 2
            for (int part = 0; part < parts; ++part) {
#pragma unroll
                for (int g = 0; g < AtOnce; ++g) {
                    const Columns<PACKED_COLUMNS> c = load_columns<PACKED_COLUMNS>(slab + (part * Rows + g * Step) * Width);
#pragma unroll
                    for (int i = 0; i < PACKED_COLUMNS; ++i) sums[g].value[i] += c.value[i];
                }
            }
#pragma unroll
            for (int g = 0; g < AtOnce; ++g) store_shared(tile + (group + g * Step) * Stride + lane * PACKED_COLUMNS, lane, sums[g]);
        }
        // Each lane reads back what it wrote itself.
    }
    const int column = first_column + lane * PACKED_COLUMNS;
    for (int group = start; group < Rows; group += Step * AtOnce) {
        Before before[AtOnce];
#pragma unroll
        for (int g = 0; g < AtOnce; ++g) {
            const int row = group + g * Step;
            before[g] = load_before<Only, Paired>(arguments, info[row].row, column, first_row + row < rows && column < arguments.n);
        }
#pragma unroll
        for (int g = 0; g < AtOnce; ++g) {
            const int row = group + g * Step;
            const Columns<PACKED_COLUMNS> c = load_shared(tile + row * Stride + lane * PACKED_COLUMNS, lane);
            finish<T, Only, Paired>(arguments, info[row], before[g], column, c, first_row + row < rows && column < arguments.n);
        }
    }
}

}  // namespace promptmix
