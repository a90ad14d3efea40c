// Self attention of examples of at most 16 rows each, as a decoder's short targets are: a warp an example and head.
//
//   s_ij = softmax_scale q_i · k_j + bias[j - i],  p = softmax_j(s),  o_i = sum_j p_ij mask_ij v_j,  log_sum_exp_i
//   dp_ij = mask_ij d_o_i · v_j,  delta_i = sum_j p_ij dp_ij = d_o_i · o_i,  ds_ij = p_ij (dp_ij - delta_i)
//   d_v_j = sum_i p_ij mask_ij d_o_i;  d_q_i = softmax_scale sum_j ds_ij k_j;  d_k_j = softmax_scale sum_i ds_ij q_i
//   inner as kernels/attention.cu has it
//
// All of an example's scores are one 16x16 tile of the tensor cores, so that softmax, delta and every gradient come of one pass:
// no tile map, no kernel for delta, nothing scored twice. What a warp works on is its own: no barrier of the block. Examples of at most
// four rows take plain products of rows instead (attention_few.cuh).
// Shapes: q, k, v [rows, H·K] with strides, bias [H, 2·max_distance + 1] f32 or null; K up to 128, a multiple of 8; bf16.
// Grid: x over examples and heads, four a block of 128 threads. Warp w of a block has rows 16·w on of each shared tile.
// Bytes: forward reads q, k, v and writes o and log_sum_exp, backward reads q, k, v, d_o and log_sum_exp and writes d_q, d_k and
// d_v, each once. Backward keeps q, k, v and log_sum_exp.
// On sm_80, registers a thread, bytes of shared memory a block, blocks a multiprocessor at once:
//   attention_short_64 64 24576 6, attention_short_dropped_64 64 24704 6, attention_short_128 120 49152 3,
//   attention_short_dropped_128 122 49280 3, attention_short_backward_64 80 38912 4,
//   attention_short_backward_dropped_64 80 39040 4, attention_short_backward_128 177 71680 2,
//   attention_short_backward_dropped_128 177 71808 2
#include "dependent.cuh"
#include "short_attention.cuh"

using namespace promptmix;

// A warp's example and head, and its rows in the block's tiles.
__device__ __forceinline__ Short short_of_warp(const AttentionArguments& arguments, const Batch& batch) {
    const int index = blockIdx.x * 4 + threadIdx.x / 32;
    return Short(arguments, batch, index / arguments.heads, index % arguments.heads, threadIdx.x / 32 * MAX_ROWS);
}

template <int Width> __device__ __forceinline__ FewInput<Width> few_input(const AttentionArguments& arguments, const Short& of) {
    const int width = arguments.width;
    return {FewRows<Width>(arguments.q, arguments.q_stride, of, width), FewRows<Width>(arguments.k, arguments.kv_stride, of, width),
            FewRows<Width>(arguments.v, arguments.kv_stride, of, width)};
}

template <int Width, bool Dropped> __device__ __forceinline__ void attention_short(const AttentionArguments& arguments) {
    constexpr int TileBytes = 64 * Width * 2;
    extern __shared__ __align__(128) unsigned char shared[];
    const Batch batch{arguments.batch};
    const Short of = short_of_warp(arguments, batch);
    if (!of.any) return;
    const int width = arguments.width;
    if (of.rows <= FEW_ROWS) {
        const int query = min(static_cast<int>(threadIdx.x) % 32 / FEW_LANES, of.rows - 1);
        attention_few<Width, Dropped>(
            arguments, of, few_input<Width>(arguments, of), load_few_before<Dropped, false>(arguments, batch, of),
            [&](int key) { return few_bias(arguments, of, query, key); }, width);
        return;
    }
    const uint32_t base = shared_address(shared);
    copy_short<Width>(base, arguments.q, arguments.q_stride, of, width);
    copy_short<Width>(base + TileBytes, arguments.k, arguments.kv_stride, of, width);
    copy_short<Width>(base + 2 * TileBytes, arguments.v, arguments.kv_stride, of, width);
    commit_copies();
    uint8_t* const bits = shared + 3 * TileBytes + threadIdx.x / 32 * MASK_BYTES;
    const ShortBefore before = load_short_before<Dropped, false>(arguments, batch, of, bits);
    wait_for_copies<0>();
    __syncwarp();
    attend_short<Width, Dropped>(arguments, of, shared, before, bits);
}

extern "C" __global__ void __launch_bounds__(128, 6) attention_short_64(AttentionArguments arguments) {
    wait_for_earlier_launches();
    attention_short<64, false>(arguments);
}
extern "C" __global__ void __launch_bounds__(128, 6) attention_short_dropped_64(AttentionArguments arguments) {
    wait_for_earlier_launches();
    attention_short<64, true>(arguments);
}
extern "C" __global__ void __launch_bounds__(128, 4) attention_short_128(AttentionArguments arguments) {
    wait_for_earlier_launches();
    attention_short<128, false>(arguments);
}
extern "C" __global__ void __launch_bounds__(128, 4) attention_short_dropped_128(AttentionArguments arguments) {
    wait_for_earlier_launches();
    attention_short<128, true>(arguments);
}

template <int Width, bool Dropped> __device__ __forceinline__ void attention_short_backward(const AttentionArguments& arguments) {
    constexpr int TileBytes = 64 * Width * 2;
    extern __shared__ __align__(128) unsigned char shared[];
    __shared__ __align__(16) unsigned char turned[4][2][TURNED_BYTES];
    const Batch batch{arguments.batch};
    const Short of = short_of_warp(arguments, batch);
    if (!of.any) return;
    const int width = arguments.width, total = arguments.heads * width;
    if (of.rows <= FEW_ROWS) {
        attention_few_backward<Width, Dropped>(arguments, of, few_input<Width>(arguments, of),
                                               FewRows<Width>(arguments.d_o, total, of, width),
                                               load_few_before<Dropped, true>(arguments, batch, of), width);
        return;
    }
    const uint32_t base = shared_address(shared);
    copy_short<Width>(base, arguments.q, arguments.q_stride, of, width);
    copy_short<Width>(base + TileBytes, arguments.k, arguments.kv_stride, of, width);
    copy_short<Width>(base + 2 * TileBytes, arguments.v, arguments.kv_stride, of, width);
    copy_short<Width>(base + 3 * TileBytes, arguments.d_o, total, of, width);
    commit_copies();
    uint8_t* const bits = shared + 4 * TileBytes + threadIdx.x / 32 * MASK_BYTES;
    const ShortBefore before = load_short_before<Dropped, true>(arguments, batch, of, bits);
    wait_for_copies<0>();
    __syncwarp();
    attend_short_backward<Width, Dropped>(arguments, of, shared, turned[threadIdx.x / 32][0], before, bits);
}

extern "C" __global__ void __launch_bounds__(128) attention_short_backward_64(AttentionArguments arguments) {
    wait_for_earlier_launches();
    attention_short_backward<64, false>(arguments);
}
extern "C" __global__ void __launch_bounds__(128) attention_short_backward_dropped_64(AttentionArguments arguments) {
    wait_for_earlier_launches();
    attention_short_backward<64, true>(arguments);
}
extern "C" __global__ void __launch_bounds__(128, 2) attention_short_backward_128(AttentionArguments arguments) {
    wait_for_earlier_launches();
    attention_short_backward<128, false>(arguments);
}
extern "C" __global__ void __launch_bounds__(128, 2) attention_short_backward_dropped_128(AttentionArguments arguments) {
    wait_for_earlier_launches();
    attention_short_backward<128, true>(arguments);
}
