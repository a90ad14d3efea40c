// AdamW (Loshchilov and Hutter, 2019) over the flat trained state of each run, with clip by global norm.
//
//   g' = g · min(1, clip / (|g| + 1e-6));  m = b1·m + (1 - b1)·g';  v = b2·v + (1 - b2)·g'^2
//   p  = p·(1 - lr·decay) - lr / (1 - b1^t) · m / (sqrt(v) / sqrt(1 - b2^t) + epsilon)
//
// Shapes: values, gradient, first and second moment [runs, length] f32; settings, tallies and statuses one a run; segments
// say which range follows which rate. A run whose tallied loss or whose gradient is not finite is left as it is and halts:
// later steps leave it alone too until the host, which reads the ring of reports every few steps, has set it going again.
// Grid: 2,048 numbers a block, a row of blocks a run. `gradient_norm` sums their squares, in f64 and a fixed order; the last
// block of a run to come sums the blocks' in order, so that `adamw` reads one norm. The last block of `adamw` to come counts
// the update and writes the report. Bytes: 4 read a number by the first, 16 read and 12 written by the second.
// On sm_80: registers a thread, bytes of shared memory a block, blocks a multiprocessor at once:
//   gradient_norm 31 2080 8, adamw 63 96 4
#include <cstdint>
#include "dependent.cuh"
#include "tally.cuh"

// Segments of one group share a rate; the temperature knows no decay.
enum Group : int { PROMPT, SCORER, TEMPERATURE };

struct Segment {
    int64_t start;
    int64_t end;
    int group;
    int trained;
};

struct Settings {
    double prompt_rate;
    double scorer_rate;
    double weight_decay;
    double beta1;
    double beta2;
    double epsilon;
    double max_grad_norm;
};

struct Status {
    unsigned long long updates;
    unsigned long long reports;  // written to the ring since the host last read it
    unsigned long long halted;
};

struct Report {
    double loss;
    double entropy;
    double norm;
    double applied;
};

struct OptimizerArguments {
    float* values;
    const float* gradient;
    float* first_moment;
    float* second_moment;
    double* partials;          // [runs, blocks], and after them [runs]: the norms
    int* counters;             // [runs, COUNTERS], zero before and after: blocks of either kernel that are done
    const Segment* segments;
    const Settings* settings;  // [runs]
    const StepStatistics* statistics;      // [runs]
    Status* statuses;          // [runs]
    Report* ring;              // [places, runs]
    int64_t length;
    int segment_count;
    int blocks;
    int runs;
    int places;
};

constexpr int THREADS = 256;
constexpr int STEPS = 8;  // numbers a thread
constexpr int BLOCK_NUMBERS = THREADS * STEPS;
constexpr int COUNTERS = 2;  // of a run, one a kernel

// The segment of a thread's numbers, which it asks for in rising order. The first one of a block is found by one thread: all
// of a block lie in one, mostly.
class Place {
  public:
    __device__ explicit Place(const OptimizerArguments& arguments) : arguments(arguments) {
        __shared__ int first;
        if (threadIdx.x == 0) {
            const int64_t start = static_cast<int64_t>(blockIdx.x) * BLOCK_NUMBERS;
            first = 0;
            while (first + 1 < arguments.segment_count && start >= arguments.segments[first].end) ++first;
        }
        __syncthreads();
        number = first;
        segment = arguments.segments[number];
    }
    __device__ const Segment& of(int64_t index) {
        while (index >= segment.end && number + 1 < arguments.segment_count) segment = arguments.segments[++number];
        return segment;
    }

  private:
    const OptimizerArguments& arguments;
    int number;
    Segment segment;
};

// Counts a block of a run as done; true in the last to come, where what the others wrote before can be read. For one thread of
// a block, which stands for all that a barrier put before it.
__device__ bool is_last(const OptimizerArguments& arguments, int64_t run, int kernel) {
    int* const counter = arguments.counters + COUNTERS * run + kernel;
    __threadfence();
    const bool last = atomicAdd(counter, 1) == arguments.blocks - 1;
    __threadfence();
    if (last) *counter = 0;
    return last;
}

// Sums over the block in one fixed order; every thread gets the sum.
__device__ double block_sum(double value) {
    __shared__ double sums[THREADS];
    sums[threadIdx.x] = value;
    __syncthreads();
    for (int half = THREADS / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
        __syncthreads();
    }
    return sums[0];
}

__device__ __forceinline__ double* norm_of(const OptimizerArguments& arguments, int64_t run) {
    return arguments.partials + static_cast<int64_t>(arguments.runs) * arguments.blocks + run;
}

extern "C" __global__ void __launch_bounds__(THREADS) gradient_norm(OptimizerArguments arguments) {
    promptmix::wait_for_earlier_launches();
    __shared__ bool last;
    const int64_t run = blockIdx.y;
    Place place(arguments);
    double sum = 0.0;
#pragma unroll
    for (int step = 0; step < STEPS; ++step) {
        const int64_t index = static_cast<int64_t>(blockIdx.x) * BLOCK_NUMBERS + step * THREADS + threadIdx.x;
        if (index < arguments.length && place.of(index).trained) {
            const double g = arguments.gradient[run * arguments.length + index];
            sum += g * g;
        }
    }
    double* const partials = arguments.partials + run * arguments.blocks;
    sum = block_sum(sum);
    if (threadIdx.x == 0) {
        partials[blockIdx.x] = sum;
        last = is_last(arguments, run, 0);
    }
    __syncthreads();
    if (!last) return;
    sum = 0.0;
    for (int block = threadIdx.x; block < arguments.blocks; block += THREADS) sum += partials[block];
    sum = block_sum(sum);
    if (threadIdx.x == 0) *norm_of(arguments, run) = sqrt(sum);
}

// base^exponent by squaring.
__device__ double power(double base, unsigned long long exponent) {
    double result = 1.0;
    for (; exponent > 0; exponent >>= 1) {
        if (exponent & 1) result *= base;
        base *= base;
    }
    return result;
}

// What all numbers of a run have in common.
struct Update {
    float clip;
    float beta1, rest1, beta2, rest2;
    float correction2, epsilon;
    float keep[3], rate[3];    // of a segment's group: 1 - lr·decay, and lr / (1 - b1^t)
    bool applies;
};

__device__ Update update_of(const OptimizerArguments& arguments, int64_t run) {
    const double norm = *norm_of(arguments, run);
    Update update;
    update.applies = arguments.statuses[run].halted == 0 && isfinite(norm) && isfinite(arguments.statistics[run].loss);
    const Settings settings = arguments.settings[run];
    const unsigned long long updates = arguments.statuses[run].updates + 1;
    update.clip = static_cast<float>(fmin(settings.max_grad_norm / (norm + 1e-6), 1.0));
    update.beta1 = static_cast<float>(settings.beta1);
    update.beta2 = static_cast<float>(settings.beta2);
    // Rounded once: in f32 the difference itself would be off by one part in 80,000.
    update.rest1 = static_cast<float>(1.0 - settings.beta1);
    update.rest2 = static_cast<float>(1.0 - settings.beta2);
    update.correction2 = static_cast<float>(sqrt(1.0 - power(settings.beta2, updates)));
    update.epsilon = static_cast<float>(settings.epsilon);
    const double correction1 = 1.0 - power(settings.beta1, updates);
#pragma unroll
    for (int group = 0; group < 3; ++group) {
        const double rate = group == PROMPT ? settings.prompt_rate : settings.scorer_rate;
        update.keep[group] = static_cast<float>(1.0 - rate * (group == TEMPERATURE ? 0.0 : settings.weight_decay));
        update.rate[group] = static_cast<float>(rate / correction1);
    }
    return update;
}

extern "C" __global__ void __launch_bounds__(THREADS) adamw(OptimizerArguments arguments) {
    promptmix::wait_for_earlier_launches();
    __shared__ Update update;
    const int64_t run = blockIdx.y;
    if (threadIdx.x == 0) update = update_of(arguments, run);
    Place place(arguments);
    if (update.applies) {
        // All of a thread's numbers are asked for before the first is written.
        float g[STEPS], m[STEPS], v[STEPS], value[STEPS];
        int group[STEPS];
        const int64_t first = static_cast<int64_t>(blockIdx.x) * BLOCK_NUMBERS + threadIdx.x;
#pragma unroll
        for (int step = 0; step < STEPS; ++step) {
            const int64_t index = first + step * THREADS, at = run * arguments.length + index;
            group[step] = -1;
            if (index >= arguments.length) continue;
            const Segment& segment = place.of(index);
            if (!segment.trained) continue;
            group[step] = segment.group;
            g[step] = arguments.gradient[at];
            m[step] = arguments.first_moment[at];
            v[step] = arguments.second_moment[at];
            value[step] = arguments.values[at];
        }
#pragma unroll
        for (int step = 0; step < STEPS; ++step) {
            if (group[step] < 0) continue;
            const int64_t at = run * arguments.length + first + step * THREADS;
            const float clipped = g[step] * update.clip;
            const float next_m = update.beta1 * m[step] + update.rest1 * clipped;
            const float next_v = update.beta2 * v[step] + update.rest2 * clipped * clipped;
            arguments.first_moment[at] = next_m;
            arguments.second_moment[at] = next_v;
            arguments.values[at] = value[step] * update.keep[group[step]] -
                                   update.rate[group[step]] * next_m / (sqrtf(next_v) / update.correction2 + update.epsilon);
        }
    }
    // Every block has read the run's status before it counts itself.
    if (threadIdx.x != 0 || !is_last(arguments, run, 1)) return;
    const StepStatistics tally = arguments.statistics[run];
    Status status = arguments.statuses[run];
    // The host never issues more steps than there are places; a step too many is counted and so found out.
    if (status.reports < arguments.places) {
        arguments.ring[status.reports * arguments.runs + run] = {tally.loss, tally.entropy, *norm_of(arguments, run),
                                                                 update.applies ? 1.0 : 0.0};
    }
    status.reports += 1;
    if (update.applies) status.updates += 1;
    if (!update.applies) status.halted = 1;
    arguments.statuses[run] = status;
}
