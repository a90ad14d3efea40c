// The attention of attention.cu for heads up to 64 wide, for compute capability 9.0: products by warpgroups.
//
//   s_ij = softmax_scale q_i · k_j + bias[j - i],  p = softmax_j(s)·mask,  o_i = sum_j p_ij v_j,  and backward as there
//
// Shapes, arguments, grid, the tiles in shared memory and the numbers are those of attention.cu, as is the code but for the products:
// a block's four warps are one warpgroup, which reads both tiles of a product from shared memory, or the weights from registers. So a
// product takes a few instructions, and a tile is read once for four warps.
// Bytes and what backward keeps: as attention.cu.
// On sm_90a, with a bias of reach 128: registers a thread, bytes of shared memory a block, blocks a multiprocessor at once:
//   attention_64_hopper 117 42996 4, attention_dropped_64_hopper 127 44020 4, attention_backward_64_hopper 150 52212 3,
//   attention_backward_dropped_64_hopper 168 53236 3
#include "attention_tile.cuh"
#include "hopper.cuh"

using namespace promptmix;

template <bool Value> struct Flag {
    static constexpr bool value = Value;
};

struct WarpgroupProducts {
    static constexpr int WIDTH = 64, TILE_BYTES = 64 * WIDTH * 2;

    // Sums as the instructions take them.
    template <int Blocks> static __device__ __forceinline__ float (&flat(float (&sums)[Blocks][4]))[Blocks * 4] {
        return reinterpret_cast<float (&)[Blocks * 4]>(sums);
    }
    // Issues the product of 64 rows of one tile by 8·Blocks rows of another, from `from` on.
    template <int Blocks> static __device__ __forceinline__ void issue(float (&to)[Blocks * 4], uint32_t left, uint32_t right, int from) {
        const uint64_t a = describe_operand(left, 16, 1024), b = describe_operand(right + from * 128, 16, 1024);
        const auto product = [&](int step, auto adds) {
            constexpr bool Adds = decltype(adds)::value;
            const uint64_t a_of_step = operand_behind(a, step * 32), b_of_step = operand_behind(b, step * 32);
            if constexpr (Blocks == 8) {
                multiply_64<Adds, false>(to, a_of_step, b_of_step);
            } else {
                multiply_32<Adds>(to, a_of_step, b_of_step);
            }
        };
        product(0, Flag<false>());
#pragma unroll
        for (int step = 1; step < WIDTH / 16; ++step) product(step, Flag<true>());
    }
    // The warp's weights as left operands, a stretch of 16 rows each.
    template <int Blocks> static __device__ __forceinline__ void pack(uint32_t (&to)[Blocks / 2][4], const float (&weights)[Blocks][4]) {
#pragma unroll
        for (int step = 0; step < Blocks / 2; ++step) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const float* const pair = weights[2 * step + i / 2] + i % 2 * 2;
                to[step][i] = pack_bf16(pair[0], pair[1]);
                // Before the fence that orders it before the products.
                asm volatile("" : "+r"(to[step][i])::"memory");
            }
        }
    }
    template <int Steps>
    static __device__ __forceinline__ void issue_weighted(float (&to)[32], const uint32_t (&weights)[Steps][4], uint32_t tile, int from) {
        const uint64_t rows = describe_operand(tile + from * 128, TILE_BYTES, 1024);
#pragma unroll
        for (int step = 0; step < Steps; ++step) multiply_own_64(to, weights[step], operand_behind(rows, step * 2048));
    }
    static __device__ __forceinline__ void end() {
        commit_products();
        wait_for_products<0>();
    }

    static __device__ __forceinline__ void show_copies() { fence_writes(); }
    template <int Blocks>
    static __device__ __forceinline__ void by_rows(float (&to)[Blocks][4], uint32_t left, uint32_t right, int from) {
        fence_products();
        issue<Blocks>(flat(to), left, right, from);
        end();
        hold(flat(to));
    }
    template <int Blocks>
    static __device__ __forceinline__ void two_by_rows(float (&to)[Blocks][4], float (&behind)[Blocks][4], uint32_t left, uint32_t right,
                                                       int from) {
        fence_products();
        issue<Blocks>(flat(to), left, right, from);
        issue<Blocks>(flat(behind), left + TILE_BYTES, right + TILE_BYTES, from);
        end();
        hold(flat(to));
        hold(flat(behind));
    }
    template <int Blocks>
    static __device__ __forceinline__ void add_weighted(float (&to)[8][4], const float (&weights)[Blocks][4], uint32_t tile, int from) {
        uint32_t left[Blocks / 2][4];
        pack<Blocks>(left, weights);
        hold(flat(to));
        fence_products();
        issue_weighted(flat(to), left, tile, from);
        end();
        hold(flat(to));
    }
    template <int Blocks>
    static __device__ __forceinline__ void add_two_weighted(float (&to)[8][4], const float (&weights)[Blocks][4], float (&to_behind)[8][4],
                                                            const float (&behind)[Blocks][4], uint32_t tile, int from) {
        uint32_t left[Blocks / 2][4], left_behind[Blocks / 2][4];
        pack<Blocks>(left_behind, behind);
        pack<Blocks>(left, weights);
        hold(flat(to));
        hold(flat(to_behind));
        fence_products();
        issue_weighted(flat(to_behind), left_behind, tile + TILE_BYTES, from);
        issue_weighted(flat(to), left, tile, from);
        end();
        hold(flat(to));
        hold(flat(to_behind));
    }
    // Products of other warps may read these rows.
    static __device__ __forceinline__ void end_reading() { __syncthreads(); }
};

extern "C" __global__ void __launch_bounds__(128, 4) attention_64_hopper(AttentionArguments arguments) {
    attention_forward<WarpgroupProducts, 64, false>(arguments);
}
extern "C" __global__ void __launch_bounds__(128, 3) attention_dropped_64_hopper(AttentionArguments arguments) {
    attention_forward<WarpgroupProducts, 64, true>(arguments);
}
extern "C" __global__ void __launch_bounds__(128, 3) attention_backward_64_hopper(AttentionArguments arguments) {
    attention_backward<WarpgroupProducts, 64, false>(arguments);
}
extern "C" __global__ void __launch_bounds__(128, 3) attention_backward_dropped_64_hopper(AttentionArguments arguments) {
    attention_backward<WarpgroupProducts, 64, true>(arguments);
}
