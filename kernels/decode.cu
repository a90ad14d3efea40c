// One decoding step's self attention: a new token of every example against the tokens before it, whose keys and values lie
// in a cache that the token joins.
//
//   o = sum_j softmax_j(q · k_j + bias[j - position]) v_j,  j = 0 .. position
//
// Shapes: qkv [B, 3·H·K], cache of one layer [B, length, 2·H·K], o [B, H·K], all in the operand format; bias [H, 2·max_distance + 1].
// Grid: x examples, y heads; a warp each: a lane a key of 32 at a time, then columns lane, lane + 32, .. (K up to 128).
// Bytes: the cache's keys and values up to the position once.
// On sm_80: registers a thread, bytes of shared memory a block, blocks a multiprocessor at once:
//   decode_bf16 64 0 32, decode_f32 64 0 32
#include "dependent.cuh"
#include "number.cuh"

using namespace promptmix;

struct DecodeArguments {
    const void* qkv;
    void* cache;
    void* o;
    const float* bias;
    int heads;
    int width;
    int length;
    int position;
    int max_distance;
    int padding;
};

constexpr int LANE_PARTS = 4;

template <typename T> __device__ __forceinline__ void decode(const DecodeArguments& arguments) {
    const int example = blockIdx.x, head = blockIdx.y, lane = threadIdx.x, width = arguments.width;
    const int64_t total = static_cast<int64_t>(arguments.heads) * width;
    const T* const q = static_cast<const T*>(arguments.qkv) + example * 3 * total + head * width;
    T* const cache = static_cast<T*>(arguments.cache) + example * arguments.length * 2 * total + head * width;
    T* const own = cache + arguments.position * 2 * total;
    for (int column = lane; column < width; column += 32) {
        own[column] = q[total + column];
        own[total + column] = q[2 * total + column];
    }
    __syncwarp();
    const float* const bias = arguments.bias + static_cast<int64_t>(head) * (2 * arguments.max_distance + 1);
    float most = -INFINITY, sum = 0.0f, out[LANE_PARTS] = {};
    for (int first = 0; first <= arguments.position; first += 32) {
        // Every lane works, one past the position on the position itself: a warp that shuffles must not part.
        const int key = first + lane, safe = min(key, arguments.position);
        const T* const k = cache + safe * 2 * total;
        float product = 0.0f;
        for (int column = 0; column < width; ++column) product = fmaf(to_float(q[column]), to_float(k[column]), product);
        const float near = bias[max(safe - arguments.position + arguments.max_distance, 0)];
        const float score = key <= arguments.position ? product + near : -INFINITY;
        const float next = fmaxf(most, warp_max(score));
        const float shrink = expf(most - next), p = expf(score - next);
        sum = sum * shrink + warp_sum(p);
        most = next;
        for (int part = 0; part < LANE_PARTS; ++part) out[part] *= shrink;
        for (int j = 0; j < 32 && first + j <= arguments.position; ++j) {
            const float weight = __shfl_sync(0xffffffffu, p, j);
            const T* const v = cache + (first + j) * 2 * total + total;
            for (int part = 0; part < LANE_PARTS; ++part) {
                const int column = lane + part * 32;
                if (column < width) out[part] = fmaf(weight, to_float(v[column]), out[part]);
            }
        }
    }
    T* const o = static_cast<T*>(arguments.o) + example * total + head * width;
    for (int part = 0; part < LANE_PARTS; ++part) {
        const int column = lane + part * 32;
        if (column < width) o[column] = from_float<T>(out[part] / sum);
    }
}

extern "C" __global__ void __launch_bounds__(32) decode_bf16(DecodeArguments arguments) {
    wait_for_earlier_launches();
    decode<bf16>(arguments);
}
extern "C" __global__ void __launch_bounds__(32) decode_f32(DecodeArguments arguments) {
    wait_for_earlier_launches();
    decode<float>(arguments);
}
