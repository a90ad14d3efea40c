// Products of packed rows with a frozen weight, and everything around them in the epilogue.
//
//   forward    C = A W^T    A [m, k], W [n, k]: the weight's rows lie along k
//   backward   C = A W      A [m, k], W [k, n]: the same stored weight, read the other way
//
// Epilogues, with r = 1 / rms of the row from its partial sums of squares:
//   project        z = r·C                                        a projection after a folded norm
//   relu           a = max(r·C, 0)·mask; one bit an element: positive and kept
//   add            x' = x + mask(C); its bf16 copy and its partial sums of squares: the end of a sublayer
//   plain          C in the operand format
//   delta          the same, and <C, y> of each 64 columns: a head of attention, whose output y was
//   relu backward  C·bit / (1 - p)
//   norm backward  d_x += r·C - r^2·(inner / D)·x, and its copy; inner = <dz, z> of the row, from partials. Where x was made of
//                  `below` by a ReLU feed-forward, also the partials of that one's inner: <d_x, x - below> of each 64 columns.
//                  x and `below` in f32, or both in bf16, whose rounding brings less to d_x than its own copy's
//   float          C in f32
//   accumulate     what was there in f32, plus C
//
// Grid: x over columns, y over rows, z over parts of k where the problem is thin: the last part of a tile to come sums them
// all in order and runs the epilogue. The true number of rows is the batch's; surplus blocks exit.
// bf16: blocks of 128x128 (4 warps of 64x64, one ldmatrix.x4 of either operand feeds eight mma), 80x128 (4 warps of 80x32, for
// results whose last wave of large tiles would be half empty) or 64x64 (twice 4 warps of 32x32, which take turns in k), k in
// k-blocks of 32 over four stages of cp.async; tiles are swizzled so that ldmatrix meets no bank conflict.
// f32: blocks of 64x64, fused multiply-adds in order of k, never TF32.
// Bytes: A once for every column of blocks, W once for every row of blocks, C once.
// HMMA is 51 % (forward) and 45 % (backward) of the large tile's main loop on sm_80.
// On sm_80: registers a thread, bytes of shared memory a block, blocks a multiprocessor at once:
//   gemm_forward_large 205 72320 2, gemm_backward_large 205 72320 2, gemm_forward_medium 153 54912 3,
//   gemm_backward_medium 151 54912 3, gemm_forward_small_project 96 66944 2, gemm_forward_small_relu 96 66944 2,
//   gemm_forward_small_add 92 66944 2, gemm_forward_small_plain 102 66944 2, gemm_forward_small_float 102 66944 2,
//   gemm_backward_small_plain 90 66944 2, gemm_backward_small_delta 90 66944 2, gemm_backward_small_relu 90 66944 2,
//   gemm_backward_small_norm 94 66944 2, gemm_backward_small_accumulate 90 66944 2, gemm_forward_f32 84 19840 2,
//   gemm_backward_f32 86 19840 2
#include "dependent.cuh"
#include "gemm.cuh"
#include "mma.cuh"

using namespace promptmix;

constexpr int DEPTH = 32;   // of a stage, in k
constexpr int STAGES = 4;

// Where chunk `chunk` (16 bytes) of row `row` of a tile with rows of 64 bytes lies: eight neighbouring rows of one chunk
// fall on all banks.
__device__ __forceinline__ uint32_t deep_offset(int row, int chunk) { return row * 64 + ((chunk ^ ((row >> 1) & 3)) << 4); }
// The same for rows of Width columns of bf16, read along the rows.
template <int Width> __device__ __forceinline__ uint32_t wide_offset(int row, int chunk) {
    return row * (Width * 2) + ((chunk ^ (row & 7)) << 4);
}

// Groups of warps take turns at the k-blocks, each through stages of its own, and add up in order.
template <int Rows, int Width, int WarpRows, int WarpWidth, bool Backward, int Groups = 1, int Only = ANY>
__device__ __forceinline__ void gemm(const GemmArguments& arguments) {
    constexpr int Threads = Rows / WarpRows * (Width / WarpWidth) * 32;  // of a group
    constexpr int BytesA = Rows * DEPTH * 2, BytesB = Width * DEPTH * 2, BytesStage = BytesA + BytesB;
    constexpr int Stride = Width + 8;  // of the tile that the epilogue reads
    constexpr int Fragments = WarpRows / 16, Columns8 = WarpWidth / 8;
    extern __shared__ __align__(128) unsigned char shared[];
    __shared__ RowInfo info[Rows];
    const Batch batch{arguments.batch};
    const int rows = batch.rows(arguments.side, arguments.scope);
    const int first_row = blockIdx.y * Rows, first_column = blockIdx.x * Width;
    if (first_row >= rows) return;
    const int n = arguments.n, k = arguments.k;
    const int k_blocks = (k + DEPTH - 1) / DEPTH;
    const int share = (k_blocks + gridDim.z - 1) / gridDim.z;
    const int first = min(static_cast<int>(blockIdx.z) * share, k_blocks), last = min(first + share, k_blocks);
    const int group = Groups > 1 ? threadIdx.x / Threads : 0, thread = Groups > 1 ? threadIdx.x % Threads : threadIdx.x;
    const int lane = thread % 32, warp = thread / 32;
    const int warp_row = warp / (Width / WarpWidth) * WarpRows, warp_column = warp % (Width / WarpWidth) * WarpWidth;
    const uint32_t base = shared_address(shared) + group * STAGES * BytesStage;

    // All addresses are made before the loop, where only the depth and the stage move on: what is left of them there is an
    // addition or an immediate. Rows and columns beyond the matrices read the last one, as what comes of them is not stored;
    // beyond the depth A is zero, so that there the weight may be any row.
    constexpr int RowsAtOnce = Threads / 4, CopiesA = (Rows + RowsAtOnce - 1) / RowsAtOnce;
    const int chunk = thread % 4;
    const uint32_t to_a = deep_offset(thread / 4, chunk);
    const bf16* const a = static_cast<const bf16*>(arguments.a) + static_cast<int64_t>(first_row) * arguments.a_stride;
    const bf16* a_from = a + (first + group) * DEPTH + chunk * 8;
    // Of a tile whose rows are no whole number of rounds, the last round is done by the first threads alone.
    const bool last_round = Rows % RowsAtOnce == 0 || thread / 4 < Rows % RowsAtOnce;
    int a_row[CopiesA];
#pragma unroll
    for (int i = 0; i < CopiesA; ++i) {
        a_row[i] = min(thread / 4 + i * RowsAtOnce, rows - 1 - first_row) * arguments.a_stride;
    }
    constexpr int Chunks = Backward ? Width / 8 : 4;
    constexpr int WeightRowsAtOnce = Threads / Chunks, CopiesB = (Backward ? DEPTH : Width) / WeightRowsAtOnce;
    const bf16* const weight = static_cast<const bf16*>(arguments.weight);
    const uint32_t to_b = BytesA + (Backward ? wide_offset<Width>(thread / Chunks, thread % Chunks) : to_a);
    const bf16* const b = Backward ? weight + min(first_column + thread % Chunks * 8, n - 8)
                                   : weight + static_cast<int64_t>(first_column) * k;
    const bf16* b_from = b + (first + group) * DEPTH + chunk * 8;
    int b_row[Backward ? 1 : CopiesB];
    if (!Backward) {
#pragma unroll
        for (int i = 0; i < CopiesB; ++i) b_row[i] = min(thread / 4 + i * WeightRowsAtOnce, n - 1 - first_column) * k;
    }
    int depth = (first + group) * DEPTH;  // of the next k-block to load
    // Where a group has no k-block left, it has zeros.
    const int most = Groups > 1 ? min(k, last * DEPTH) : k;
    const auto load = [&](uint32_t to) {
        const bool any = depth + chunk * 8 < most;
        const bf16* const left = any ? a_from : a;
#pragma unroll
        for (int i = 0; i < CopiesA; ++i) {
            if (i + 1 < CopiesA || last_round) copy_async(to + to_a + i * RowsAtOnce * 64, left + a_row[i], any);
        }
        if (Backward) {
#pragma unroll
            for (int i = 0; i < CopiesB; ++i) {
                const int row = min(depth + thread / Chunks + i * WeightRowsAtOnce, k - 1);
                copy_async(to + to_b + i * WeightRowsAtOnce * Width * 2, b + static_cast<int64_t>(row) * n, true);
            }
        } else {
            const bf16* const right = any ? b_from : b;
#pragma unroll
            for (int i = 0; i < CopiesB; ++i) copy_async(to + to_b + i * WeightRowsAtOnce * 64, right + b_row[i], any);
        }
        a_from += Groups * DEPTH;
        b_from += Groups * DEPTH;
        depth += Groups * DEPTH;
    };

    // Both swizzles are exclusive ors of bits that a fragment's place does not touch, so that further fragments lie at
    // immediates; the second half of a k-block lies 32 bytes across (`deep`), a further column at its own bits (`wide`).
    const uint32_t left_from = deep_offset(warp_row + lane % 16, lane / 16);
    const uint32_t right_from = BytesA + (Backward ? wide_offset<Width>(lane % 16, warp_column / 8 + lane / 16)
                                                   : deep_offset(warp_column + lane / 16 * 8 + lane % 8, lane / 8 % 2));
    float sums[Fragments][Columns8][4] = {};
#pragma unroll
    for (int stage = 0; stage < STAGES - 1; ++stage) {
        if (first + stage * Groups < last) load(base + stage * BytesStage);
        commit_copies();
    }
    describe_rows<Only, Rows, Threads * Groups>(arguments, batch, info, first_row, rows, threadIdx.x);
    uint32_t full = base, empty = base + (STAGES - 1) * BytesStage;
    for (int left_over = (last - first + Groups - 1) / Groups; left_over > 0; --left_over) {
        wait_for_copies<STAGES - 2>();
        __syncthreads();
        if (left_over >= STAGES) load(empty);
        commit_copies();
#pragma unroll
        for (int half = 0; half < DEPTH / 16; ++half) {
            uint32_t left[Fragments][4];
            const uint32_t left_half = full + (left_from ^ half * 32);
#pragma unroll
            for (int i = 0; i < Fragments; ++i) {
                // Matrices: rows 0-7 and 8-15 of the first eight of k, then of the next eight.
                load_matrices(left[i], left_half + i * 16 * 64);
            }
#pragma unroll
            for (int j = 0; j < Columns8; j += 2) {
                uint32_t right[4];
                if (Backward) {
                    // Rows are k: eight and eight of them, for columns of j, then of j + 1.
                    load_matrices_transposed(right, full + (right_from ^ j * 16) + half * 16 * Width * 2);
                } else {
                    // Rows are columns of C: those of j for both halves of k, then those of j + 1.
                    load_matrices(right, full + (right_from ^ half * 32) + j * 8 * 64);
                }
#pragma unroll
                for (int i = 0; i < Fragments; ++i) {
                    multiply_add(sums[i][j], left[i], right[0], right[1]);
                    multiply_add(sums[i][j + 1], left[i], right[2], right[3]);
                }
            }
        }
        constexpr uint32_t Ring = STAGES * BytesStage;
        full = full + BytesStage == base + Ring ? base : full + BytesStage;
        empty = empty + BytesStage == base + Ring ? base : empty + BytesStage;
    }
    wait_for_copies<0>();
    __syncthreads();
    float* const tile = reinterpret_cast<float*>(shared);
#pragma unroll
    for (int turn = 0; turn < Groups; ++turn) {
        if (Groups == 1 || group == turn) {
#pragma unroll
            for (int i = 0; i < Fragments; ++i) {
#pragma unroll
                for (int j = 0; j < Columns8; ++j) {
                    float* const to = tile + (warp_row + i * 16 + lane / 4) * Stride + warp_column + j * 8 + lane % 4 * 2;
#pragma unroll
                    for (int half = 0; half < 2; ++half) {
                        float2 sum = make_float2(sums[i][j][half * 2], sums[i][j][half * 2 + 1]);
                        if (turn > 0) {
                            const float2 before = *reinterpret_cast<const float2*>(to + half * 8 * Stride);
                            sum = make_float2(before.x + sum.x, before.y + sum.y);
                        }
                        store_pair(to + half * 8 * Stride, sum.x, sum.y);
                    }
                }
            }
        }
        __syncthreads();
    }
    finish_tile<bf16, Only, Rows, Width, Stride, Threads * Groups>(arguments, info, tile, first_row, first_column, rows, threadIdx.x);
}

extern "C" __global__ void __launch_bounds__(128, 2) gemm_forward_large(GemmArguments arguments) {
    wait_for_earlier_launches();
    gemm<128, 128, 64, 64, false>(arguments);
}
extern "C" __global__ void __launch_bounds__(128, 2) gemm_backward_large(GemmArguments arguments) {
    wait_for_earlier_launches();
    gemm<128, 128, 64, 64, true>(arguments);
}
extern "C" __global__ void __launch_bounds__(128, 3) gemm_forward_medium(GemmArguments arguments) {
    wait_for_earlier_launches();
    gemm<80, 128, 80, 32, false>(arguments);
}
extern "C" __global__ void __launch_bounds__(128, 3) gemm_backward_medium(GemmArguments arguments) {
    wait_for_earlier_launches();
    gemm<80, 128, 80, 32, true>(arguments);
}
// Thin products run each piece of their code once or twice, straight from memory: a kernel an epilogue.
extern "C" __global__ void __launch_bounds__(256, 2) gemm_forward_small_project(GemmArguments arguments) {
    wait_for_earlier_launches();
    gemm<64, 64, 32, 32, false, 2, PROJECT>(arguments);
}
extern "C" __global__ void __launch_bounds__(256, 2) gemm_forward_small_relu(GemmArguments arguments) {
    wait_for_earlier_launches();
    gemm<64, 64, 32, 32, false, 2, RELU>(arguments);
}
extern "C" __global__ void __launch_bounds__(256, 2) gemm_forward_small_add(GemmArguments arguments) {
    wait_for_earlier_launches();
    gemm<64, 64, 32, 32, false, 2, ADD>(arguments);
}
extern "C" __global__ void __launch_bounds__(256, 2) gemm_forward_small_plain(GemmArguments arguments) {
    wait_for_earlier_launches();
    gemm<64, 64, 32, 32, false, 2, PLAIN>(arguments);
}
extern "C" __global__ void __launch_bounds__(256, 2) gemm_forward_small_float(GemmArguments arguments) {
    wait_for_earlier_launches();
    gemm<64, 64, 32, 32, false, 2, FLOAT>(arguments);
}
extern "C" __global__ void __launch_bounds__(256, 2) gemm_backward_small_plain(GemmArguments arguments) {
    wait_for_earlier_launches();
    gemm<64, 64, 32, 32, true, 2, PLAIN>(arguments);
}
extern "C" __global__ void __launch_bounds__(256, 2) gemm_backward_small_delta(GemmArguments arguments) {
    wait_for_earlier_launches();
    gemm<64, 64, 32, 32, true, 2, DELTA>(arguments);
}
extern "C" __global__ void __launch_bounds__(256, 2) gemm_backward_small_relu(GemmArguments arguments) {
    wait_for_earlier_launches();
    gemm<64, 64, 32, 32, true, 2, RELU_BACKWARD>(arguments);
}
extern "C" __global__ void __launch_bounds__(256, 2) gemm_backward_small_norm(GemmArguments arguments) {
    wait_for_earlier_launches();
    gemm<64, 64, 32, 32, true, 2, NORM_BACKWARD>(arguments);
}
extern "C" __global__ void __launch_bounds__(256, 2) gemm_backward_small_accumulate(GemmArguments arguments) {
    wait_for_earlier_launches();
    gemm<64, 64, 32, 32, true, 2, ACCUMULATE>(arguments);
}

// f32: 256 threads, each 4x4 numbers of a 64x64 block, k-blocks of 16.
template <bool Backward> __device__ __forceinline__ void gemm_f32(const GemmArguments& arguments) {
    constexpr int Side64 = 64, Depth = 16, Stride = Side64 + 8;
    __shared__ __align__(16) float tile[Side64 * Stride];
    __shared__ RowInfo info[Side64];
    float* const left = tile;                             // [Depth][Stride], k by rows of A
    float* const right = tile + Depth * Stride;           // [Depth][Stride], k by columns of C
    const Batch batch{arguments.batch};
    const int rows = batch.rows(arguments.side, arguments.scope);
    const int first_row = blockIdx.y * Side64, first_column = blockIdx.x * Side64;
    if (first_row >= rows) return;
    const int n = arguments.n, k = arguments.k, thread = threadIdx.x;
    const float* const a = static_cast<const float*>(arguments.a);
    const float* const weight = static_cast<const float*>(arguments.weight);
    const int own_row = thread / 16 * 4, own_column = thread % 16 * 4;
    describe_rows<ANY, Side64, 256>(arguments, batch, info, first_row, rows, threadIdx.x);
    float sums[4][4] = {};
    for (int depth = 0; depth < k; depth += Depth) {
        for (int i = thread; i < Side64 * Depth; i += 256) {
            const int row = i / Depth, offset = i % Depth;
            const bool any = first_row + row < rows && depth + offset < k;
            left[offset * Stride + row] =
                any ? a[static_cast<int64_t>(first_row + row) * arguments.a_stride + depth + offset] : 0.0f;
            if (Backward) {
                const int line = i / Side64, column = i % Side64;
                const bool some = depth + line < k && first_column + column < n;
                right[line * Stride + column] =
                    some ? weight[static_cast<int64_t>(depth + line) * n + first_column + column] : 0.0f;
            } else {
                const bool some = first_column + row < n && depth + offset < k;
                right[offset * Stride + row] =
                    some ? weight[static_cast<int64_t>(first_column + row) * k + depth + offset] : 0.0f;
            }
        }
        __syncthreads();
#pragma unroll
        for (int offset = 0; offset < Depth; ++offset) {
            const float4 l = load4(left + offset * Stride + own_row), r = load4(right + offset * Stride + own_column);
            const float ls[4] = {l.x, l.y, l.z, l.w}, rs[4] = {r.x, r.y, r.z, r.w};
#pragma unroll
            for (int i = 0; i < 4; ++i) {
#pragma unroll
                for (int j = 0; j < 4; ++j) sums[i][j] = fmaf(ls[i], rs[j], sums[i][j]);
            }
        }
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        store4(tile + (own_row + i) * Stride + own_column, make_float4(sums[i][0], sums[i][1], sums[i][2], sums[i][3]));
    }
    __syncthreads();
    finish_tile<float, ANY, Side64, Side64, Stride, 256>(arguments, info, tile, first_row, first_column, rows, threadIdx.x);
}

extern "C" __global__ void __launch_bounds__(256, 2) gemm_forward_f32(GemmArguments arguments) {
    wait_for_earlier_launches();
    gemm_f32<false>(arguments);
}
extern "C" __global__ void __launch_bounds__(256, 2) gemm_backward_f32(GemmArguments arguments) {
    wait_for_earlier_launches();
    gemm_f32<true>(arguments);
}
