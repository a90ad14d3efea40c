// Cross entropy of decoder rows from their logits, the most likely token, and what the head's product turns into the gradient.
//
//   log_sum_exp = log sum_v e^(z_v);  negative_log_likelihood = log_sum_exp - z_label
//   d_z = w·(softmax(z) - [v = label]), in the operand format, w the row's weight from the descriptor
//
// Shapes: z [T, V] f32; d_z [T, stride], zeros from V to the stride; negative_log_likelihood [T] f32, greedy [T]. Ties go
// to the lowest id.
// Grid: a block of 256 threads a row. Bytes: z is read twice (three times with d_z), d_z written once. T is the few label
// rows of a batch, so z stays in the second-level cache.
#include "batch.cuh"
#include "number.cuh"

using namespace promptmix;

struct LossArguments {
    const int* batch;
    const float* logits;
    float* negative_log_likelihood;
    int* greedy;
    void* d_logits;     // null without a gradient
    int vocabulary;
    int stride;
};
static_assert(sizeof(LossArguments) == 48, "as backend/cuda/loss.rs has it");

constexpr int THREADS = 256;

template <typename T> __device__ __forceinline__ void loss(const LossArguments& arguments) {
    __shared__ float values[THREADS / 32];
    __shared__ int tokens[THREADS / 32];
    const Batch batch{arguments.batch};
    const int row = blockIdx.x, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    if (row >= batch.rows(DECODER)) return;
    const int vocabulary = arguments.vocabulary;
    const float* const z = arguments.logits + static_cast<int64_t>(row) * vocabulary;
    float most = -INFINITY;
    int best = vocabulary;
    for (int v = threadIdx.x; v < vocabulary; v += THREADS) {
        const float value = z[v];
        if (value > most) {
            most = value;
            best = v;
        }
    }
#pragma unroll
    for (int step = 16; step > 0; step >>= 1) {
        const float other = __shfl_xor_sync(0xffffffffu, most, step);
        const int token = __shfl_xor_sync(0xffffffffu, best, step);
        if (other > most || (other == most && token < best)) {
            most = other;
            best = token;
        }
    }
    if (lane == 0) {
        values[warp] = most;
        tokens[warp] = best;
    }
    __syncthreads();
    most = values[0];
    best = tokens[0];
    for (int i = 1; i < THREADS / 32; ++i) {
        if (values[i] > most || (values[i] == most && tokens[i] < best)) {
            most = values[i];
            best = tokens[i];
        }
    }
    __syncthreads();
    float sum = 0.0f;
    for (int v = threadIdx.x; v < vocabulary; v += THREADS) sum += expf(z[v] - most);
    sum = warp_sum(sum);
    if (lane == 0) values[warp] = sum;
    __syncthreads();
    sum = 0.0f;
    for (int i = 0; i < THREADS / 32; ++i) sum += values[i];
    const int label = __ldg(batch.array(LABELS) + row);
    if (threadIdx.x == 0) {
        arguments.negative_log_likelihood[row] = most + logf(sum) - z[label];
        // A row without a finite logit has no most likely token.
        arguments.greedy[row] = best < vocabulary ? best : 0;
    }
    if (arguments.d_logits == nullptr) return;
    const float weight = __int_as_float(__ldg(batch.array(ROW_WEIGHTS) + row)), share = weight / sum;
    T* const d_z = static_cast<T*>(arguments.d_logits) + static_cast<int64_t>(row) * arguments.stride;
    for (int v = threadIdx.x; v < arguments.stride; v += THREADS) {
        float value = 0.0f;
        if (v < vocabulary) value = expf(z[v] - most) * share - (v == label ? weight : 0.0f);
        d_z[v] = from_float<T>(value);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) loss_bf16(LossArguments arguments) { loss<bf16>(arguments); }
extern "C" __global__ void __launch_bounds__(THREADS) loss_f32(LossArguments arguments) { loss<float>(arguments); }
