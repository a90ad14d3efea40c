// What a pass adds up of each run, so that the host need not read it back: its loss and the entropy of its attention.
//
//   loss += sum over the run's label rows of w·objective;  entropy -= sum over its attention rows of a·ln a
//
// Shapes: objective [T] f32; attention [B, per_example] f32, per_example a row of S + 1, or M of them, or 0
// without a scorer; w from the descriptor; tallies [runs], two f64 each. A weight of 0 adds 0.
// Grid: a block of 256 threads a run. Each thread adds up every 256th element in order, in f64, and the block adds up the
// threads in a fixed tree, so that the bits do not depend on the order in which anything runs.
// Bytes: all of the labels' losses and of the attention, once a run: a few hundred numbers (the token scorer: B·M·(S + 1)).
// On sm_80: registers a thread, bytes of shared memory a block, blocks a multiprocessor at once:
//   tally 32 4096 8
#include "batch.cuh"
#include "dependent.cuh"
#include "tally.cuh"

using namespace promptmix;

struct TallyArguments {
    Descriptor batch;
    const float* objective;
    const float* attention;
    StepStatistics* statistics;
    int per_example;
    int padding;
};

constexpr int THREADS = 256;

extern "C" __global__ void __launch_bounds__(THREADS) tally(TallyArguments arguments) {
    wait_for_earlier_launches();
    __shared__ double losses[THREADS], entropies[THREADS];
    const Batch batch{arguments.batch};
    const int run = blockIdx.x;
    double loss = 0.0, entropy = 0.0;
    for (int row = threadIdx.x; row < batch.rows(DECODER); row += THREADS) {
        if (batch.run(batch.example_of_row(DECODER, row)) != run) continue;
        const double weight = batch.row_weight(row);
        loss += weight * arguments.objective[row];
    }
    const int64_t weights = static_cast<int64_t>(batch.examples()) * arguments.per_example;
    for (int64_t i = threadIdx.x; i < weights; i += THREADS) {
        if (batch.run(static_cast<int>(i / arguments.per_example)) != run) continue;
        const float a = arguments.attention[i];
        if (a > 0.0f) entropy -= static_cast<double>(a) * logf(a);
    }
    losses[threadIdx.x] = loss;
    entropies[threadIdx.x] = entropy;
    __syncthreads();
    for (int half = THREADS / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) {
            losses[threadIdx.x] += losses[threadIdx.x + half];
            entropies[threadIdx.x] += entropies[threadIdx.x + half];
        }
        __syncthreads();
    }
    if (threadIdx.x != 0) return;
    arguments.statistics[run].loss += losses[0];
    arguments.statistics[run].entropy += entropies[0];
}
