// The attention of attention.cu for heads up to 64 wide, for compute capability 9.0: products by warpgroups.
//
//   s_ij = softmax_scale q_i · k_j + bias[j - i],  p = softmax_j(s)·mask,  o_i = sum_j p_ij v_j,  and backward as there
//
// Shapes, arguments, grid, the tiles in shared memory and the numbers are those of attention.cu, as is the code but for the products:
// a block's four warps are one warpgroup, whose left operands are in registers but for keys and values of backward. A product takes a few
// instructions, and reads its right tile once for four warps.
// Bytes and what backward keeps: as attention.cu.
// On sm_90a, with a bias of reach 128: registers a thread, bytes of shared memory a block, blocks a multiprocessor at once:
//   attention_64_hopper 111 42996 4, attention_dropped_64_hopper 128 44020 4, attention_backward_64_hopper 144 52212 3,
//   attention_backward_dropped_64_hopper 150 53236 3
#include "attention_tile.cuh"
#include "dependent.cuh"
#include "hopper.cuh"

using namespace promptmix;

struct WarpgroupProducts {
    static constexpr int WIDTH = 64, STEPS = WIDTH / 16, TILE_BYTES = 64 * WIDTH * 2;
    // In registers, so that a product reads its right operand alone from shared memory.
    struct Rows {
        uint32_t step[STEPS][4];
    };

    // Sums as the instructions take them.
    template <int Blocks> static __device__ __forceinline__ float (&flat(float (&sums)[Blocks][4]))[Blocks * 4] {
        return reinterpret_cast<float (&)[Blocks * 4]>(sums);
    }
    // Issues the product of 64 rows, held or of a tile, by 8·Blocks rows of another, from `from` on.
    template <int Blocks> static __device__ __forceinline__ void issue(float (&to)[Blocks * 4], const Rows& left, uint32_t right, int from) {
        const uint64_t b = describe_operand(right + from * 128, 16, 1024);
        multiply_own<false>(to, left.step[0], b);
#pragma unroll
        for (int step = 1; step < STEPS; ++step) multiply_own<true>(to, left.step[step], operand_after(b, step * 32));
    }
    template <int Blocks> static __device__ __forceinline__ void issue(float (&to)[Blocks * 4], uint32_t left, uint32_t right, int from) {
        const uint64_t a = describe_operand(left, 16, 1024), b = describe_operand(right + from * 128, 16, 1024);
        multiply_32<false>(to, a, b);
#pragma unroll
        for (int step = 1; step < STEPS; ++step) multiply_32<true>(to, operand_after(a, step * 32), operand_after(b, step * 32));
    }
    // The warp's weights as left operands, 16 rows each.
    template <int Blocks> static __device__ __forceinline__ void pack(uint32_t (&to)[Blocks / 2][4], const float (&weights)[Blocks][4]) {
#pragma unroll
        for (int step = 0; step < Blocks / 2; ++step) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const float* const pair = weights[2 * step + i / 2] + i % 2 * 2;
                to[step][i] = pack_bf16(pair[0], pair[1]);
            }
            // Before the fence that orders it before the products.
            keep(to[step]);
        }
    }
    template <int Steps>
    static __device__ __forceinline__ void issue_weighted(float (&to)[32], const uint32_t (&weights)[Steps][4], uint32_t tile, int from) {
        const uint64_t rows = describe_operand(tile + from * 128, TILE_BYTES, 1024);
#pragma unroll
        for (int step = 0; step < Steps; ++step) multiply_own_across(to, weights[step], operand_after(rows, step * 2048));
    }
    static __device__ __forceinline__ void end() {
        commit_products();
        wait_for_products<0>();
    }

    static __device__ __forceinline__ void show_copies() { fence_writes(); }
    static __device__ __forceinline__ void hold(Rows& to, uint32_t tile) {
#pragma unroll
        for (int step = 0; step < STEPS; ++step) {
            left_fragment<WIDTH>(to.step[step], tile, threadIdx.x / 32 * 16, step);
            keep(to.step[step]);
        }
    }
    template <int Blocks, typename Left>
    static __device__ __forceinline__ void by_rows(float (&to)[Blocks][4], const Left& left, uint32_t right, int from) {
        fence_products();
        issue<Blocks>(flat(to), left, right, from);
        end();
        keep(flat(to));
    }
    template <int Blocks, typename Left>
    static __device__ __forceinline__ void two_by_rows(float (&to)[Blocks][4], const Left& left, uint32_t right, float (&second)[Blocks][4],
                                                       const Left& second_left, uint32_t second_right, int from) {
        fence_products();
        issue<Blocks>(flat(to), left, right, from);
        issue<Blocks>(flat(second), second_left, second_right, from);
        end();
        keep(flat(to));
        keep(flat(second));
    }
    template <int Blocks>
    static __device__ __forceinline__ void add_weighted(float (&to)[8][4], const float (&weights)[Blocks][4], uint32_t tile, int from) {
        uint32_t left[Blocks / 2][4];
        pack<Blocks>(left, weights);
        keep(flat(to));
        fence_products();
        issue_weighted(flat(to), left, tile, from);
        end();
        keep(flat(to));
    }
    template <int Blocks>
    static __device__ __forceinline__ void add_two_weighted(float (&to)[8][4], const float (&weights)[Blocks][4], uint32_t tile,
                                                            float (&second)[8][4], const float (&second_weights)[Blocks][4],
                                                            uint32_t second_tile, int from) {
        uint32_t left[Blocks / 2][4], second_left[Blocks / 2][4];
        pack<Blocks>(second_left, second_weights);
        pack<Blocks>(left, weights);
        keep(flat(to));
        keep(flat(second));
        fence_products();
        issue_weighted(flat(second), second_left, second_tile, from);
        issue_weighted(flat(to), left, tile, from);
        end();
        keep(flat(to));
        keep(flat(second));
    }
};

extern "C" __global__ void __launch_bounds__(128, 4) attention_64_hopper(AttentionArguments arguments) {
    wait_for_earlier_launches();
    attention_forward<WarpgroupProducts, 64, false>(arguments);
}
extern "C" __global__ void __launch_bounds__(128, 3) attention_dropped_64_hopper(AttentionArguments arguments) {
    wait_for_earlier_launches();
    attention_forward<WarpgroupProducts, 64, true>(arguments);
}
extern "C" __global__ void __launch_bounds__(128, 3) attention_backward_64_hopper(AttentionArguments arguments) {
    wait_for_earlier_launches();
    attention_backward<WarpgroupProducts, 64, false>(arguments);
}
extern "C" __global__ void __launch_bounds__(128, 3) attention_backward_dropped_64_hopper(AttentionArguments arguments) {
    wait_for_earlier_launches();
    attention_backward<WarpgroupProducts, 64, true>(arguments);
}
