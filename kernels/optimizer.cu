// AdamW (Loshchilov and Hutter, 2019) over the flat trained state of each run, with clip by global norm.
//
//   g' = g · min(1, clip / (|g| + 1e-6));  m = b1·m + (1 - b1)·g';  v = b2·v + (1 - b2)·g'^2
//   p  = p·(1 - lr·decay) - lr / (1 - b1^t) · m / (sqrt(v) / sqrt(1 - b2^t) + epsilon)
//
// Shapes: values, gradient, first and second moment [runs, length] f32; settings, tallies and statuses one a run; segments
// say which stretch follows which rate. A run whose tallied loss or whose gradient is not finite is left as it is and halts:
// later steps leave it alone too until the host, which reads the ring of reports every few steps, has set it going again.
// Grid: `gradient_norm` sums the squares of 2,048 numbers a block, in f64 and a fixed order, into [runs, blocks];
// `adamw` sums those again in every block, in order, and updates the same 2,048; `finish_step` counts the update and
// writes the report, a block a run. Bytes: 4 read a number by the first, 16 read and 12 written by the second.
// On sm_80: registers a thread, bytes of shared memory a block, blocks a multiprocessor at once:
//   gradient_norm 28 2048 8, adamw 48 2048 5, finish_step 28 2048 8
#include <cstdint>

struct Segment {
    int64_t start;
    int64_t end;
    int group;      // 0 prompt, 1 scorer, 2 temperature
    int trained;
};

struct Settings {
    double prompt_rate;
    double scorer_rate;
    double weight_decay;
    double beta1;
    double beta2;
    double epsilon;
    double clip_norm;
};

// What the step's passes added up; kernels/tally.cu writes it.
struct Tally {
    double loss;
    double entropy;
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
    double* partials;          // [runs, blocks]
    const Segment* segments;
    const Settings* settings;  // [runs]
    const Tally* tallies;      // [runs]
    Status* statuses;          // [runs]
    Report* ring;              // [places, runs]
    int64_t length;
    int segment_count;
    int blocks;
    int runs;
    int places;
};
static_assert(sizeof(OptimizerArguments) == 104, "as backend/cuda/optimizer.rs has it");

constexpr int THREADS = 256;
constexpr int STEPS = 8;  // numbers a thread
constexpr int BLOCK_NUMBERS = THREADS * STEPS;

__device__ __forceinline__ const Segment* segment_of(const OptimizerArguments& arguments, int64_t index) {
    for (int i = 0; i < arguments.segment_count; ++i) {
        if (index < arguments.segments[i].end) return arguments.segments + i;
    }
    return arguments.segments;
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

extern "C" __global__ void __launch_bounds__(THREADS) gradient_norm(OptimizerArguments arguments) {
    const int64_t run = blockIdx.y;
    double sum = 0.0;
    for (int step = 0; step < STEPS; ++step) {
        const int64_t index = static_cast<int64_t>(blockIdx.x) * BLOCK_NUMBERS + step * THREADS + threadIdx.x;
        if (index >= arguments.length) break;
        const double g = arguments.gradient[run * arguments.length + index];
        if (segment_of(arguments, index)->trained) sum += g * g;
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) arguments.partials[run * arguments.blocks + blockIdx.x] = sum;
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

__device__ double norm_of(const OptimizerArguments& arguments, int64_t run) {
    double sum = 0.0;
    for (int block = threadIdx.x; block < arguments.blocks; block += THREADS) {
        sum += arguments.partials[run * arguments.blocks + block];
    }
    return sqrt(block_sum(sum));
}

// Whether the step changes the run.
__device__ bool goes_on(const OptimizerArguments& arguments, int64_t run, double norm) {
    return arguments.statuses[run].halted == 0 && isfinite(norm) && isfinite(arguments.tallies[run].loss);
}

extern "C" __global__ void __launch_bounds__(THREADS) adamw(OptimizerArguments arguments) {
    const int64_t run = blockIdx.y;
    const double norm = norm_of(arguments, run);
    if (!goes_on(arguments, run, norm)) return;
    const Settings settings = arguments.settings[run];
    const unsigned long long updates = arguments.statuses[run].updates + 1;
    const float clip = static_cast<float>(fmin(settings.clip_norm / (norm + 1e-6), 1.0));
    const double correction1 = 1.0 - power(settings.beta1, updates);
    const float correction2 = static_cast<float>(sqrt(1.0 - power(settings.beta2, updates)));
    const float beta1 = static_cast<float>(settings.beta1), beta2 = static_cast<float>(settings.beta2);
    // Rounded once: in f32 the difference itself would be off by one part in 80,000.
    const float rest1 = static_cast<float>(1.0 - settings.beta1), rest2 = static_cast<float>(1.0 - settings.beta2);
    const float epsilon = static_cast<float>(settings.epsilon);
    for (int step = 0; step < STEPS; ++step) {
        const int64_t index = static_cast<int64_t>(blockIdx.x) * BLOCK_NUMBERS + step * THREADS + threadIdx.x;
        if (index >= arguments.length) break;
        const Segment* const segment = segment_of(arguments, index);
        if (!segment->trained) continue;
        const double rate = segment->group == 0 ? settings.prompt_rate : settings.scorer_rate;
        const double decay = segment->group == 2 ? 0.0 : settings.weight_decay;
        const int64_t at = run * arguments.length + index;
        const float g = arguments.gradient[at] * clip;
        const float m = beta1 * arguments.first_moment[at] + rest1 * g;
        const float v = beta2 * arguments.second_moment[at] + rest2 * g * g;
        arguments.first_moment[at] = m;
        arguments.second_moment[at] = v;
        arguments.values[at] = arguments.values[at] * static_cast<float>(1.0 - rate * decay) -
                               static_cast<float>(rate / correction1) * m / (sqrtf(v) / correction2 + epsilon);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) finish_step(OptimizerArguments arguments) {
    const int64_t run = blockIdx.x;
    const double norm = norm_of(arguments, run);
    if (threadIdx.x != 0) return;
    const bool applied = goes_on(arguments, run, norm);
    const Tally tally = arguments.tallies[run];
    Status status = arguments.statuses[run];
    // The host never issues more steps than there are places; a step too many is counted and so found out.
    if (status.reports < arguments.places) {
        arguments.ring[status.reports * arguments.runs + run] = {tally.loss, tally.entropy, norm, applied ? 1.0 : 0.0};
    }
    status.reports += 1;
    if (applied) status.updates += 1;
    if (!applied) status.halted = 1;
    arguments.statuses[run] = status;
}
