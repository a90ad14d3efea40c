/* The kernels in a C program, in both ways that there are: through the functions of libpromptmix, and by a launch of one's own from an
 * exported fatbin. Self attention with relative position bias over packed sequences, forward and backward, against sums by hand.
 *
 *     cargo rustc --release --lib --crate-type cdylib --features capi
 *     promptmix kernels export kernels
 *     cc -std=c11 -O2 -I kernels examples/c/attention.c -o attention -L target/release -lpromptmix -lcuda -lm
 *     LD_LIBRARY_PATH=target/release ./attention kernels
 *
 * It declares the few functions of the driver that it calls, so that no CUDA toolkit is needed; your program includes cuda.h. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "promptmix.h"

typedef int CUresult;
typedef struct CUctx_st *CUcontext;
typedef struct CUmod_st *CUmodule;
typedef struct CUfunc_st *CUfunction;
typedef struct CUstream_st *CUstream;
extern CUresult cuInit(unsigned flags);
extern CUresult cuDevicePrimaryCtxRetain(CUcontext *context, int device);
extern CUresult cuDevicePrimaryCtxRelease_v2(int device);
extern CUresult cuCtxSetCurrent(CUcontext context);
extern CUresult cuStreamCreate(CUstream *stream, unsigned flags);
extern CUresult cuStreamDestroy_v2(CUstream stream);
extern CUresult cuStreamSynchronize(CUstream stream);
extern CUresult cuMemAlloc_v2(uint64_t *at, size_t bytes);
extern CUresult cuMemFree_v2(uint64_t at);
extern CUresult cuMemcpyHtoD_v2(uint64_t to, const void *from, size_t bytes);
extern CUresult cuMemcpyDtoH_v2(void *to, uint64_t from, size_t bytes);
extern CUresult cuModuleLoad(CUmodule *module, const char *path);
extern CUresult cuModuleUnload(CUmodule module);
extern CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name);
extern CUresult cuFuncSetAttribute(CUfunction function, int attribute, int value);
extern CUresult cuLaunchKernel(CUfunction function, unsigned x, unsigned y, unsigned z, unsigned block_x, unsigned block_y,
                               unsigned block_z, unsigned shared, CUstream stream, void **arguments, void **extra);
enum { CU_STREAM_NON_BLOCKING = 1, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8 };

/* 1 / sqrt(WIDTH). */
static const double SOFTMAX_SCALE = 0.25;
enum { SEQUENCES = 3, HEADS = 2, WIDTH = 16, MAX_DISTANCE = 4, TOTAL = HEADS * WIDTH, STRIDE = 3 * TOTAL, ROWS = 106 };
static const int32_t ENDS[SEQUENCES + 1] = {0, 5, 75, ROWS};

#define DRIVER(call) driver(call, #call)
static void driver(CUresult result, const char *call) {
    if (result != 0) {
        fprintf(stderr, "%s: error %d\n", call, result);
        exit(1);
    }
}

#define PROMPTMIX(call) promptmix(call, #call)
static void promptmix(promptmix_result result, const char *call) {
    if (result != PROMPTMIX_OK) {
        fprintf(stderr, "%s: %s\n", call, promptmix_last_error());
        exit(1);
    }
}

static void *room(size_t bytes) {
    void *const memory = calloc(bytes, 1);
    if (memory == NULL) {
        fprintf(stderr, "no memory\n");
        exit(1);
    }
    return memory;
}

static double from_bf16(uint16_t bits) {
    const uint32_t whole = (uint32_t)bits << 16;
    float number;
    memcpy(&number, &whole, sizeof number);
    return number;
}

/* Numbers from -1 to 1; the lower half of their bits is cut off, so that bf16 has them. */
static uint16_t number(int i, int key) {
    const float number = (float)((uint32_t)(i + key) * 2654435761u % 1009u) / 504.5f - 1.0f;
    uint32_t bits;
    memcpy(&bits, &number, sizeof bits);
    return (uint16_t)(bits >> 16);
}

static uint64_t upload(const void *from, size_t bytes) {
    uint64_t at;
    DRIVER(cuMemAlloc_v2(&at, bytes));
    DRIVER(cuMemcpyHtoD_v2(at, from, bytes));
    return at;
}

/* Memory full of NaN, in either format: what is not written is found. */
static uint64_t poison(size_t bytes) {
    unsigned char *const from = room(bytes);
    memset(from, 0xff, bytes);
    const uint64_t at = upload(from, bytes);
    free(from);
    return at;
}

/* Fails on NaN, on zeros, and on what is farther off than so much of the largest. */
static void near(const char *what, const double *found, const double *expected, int count, double bound) {
    double largest = 0.0, farthest = 0.0;
    for (int i = 0; i < count; ++i) {
        const double off = fabs(found[i] - expected[i]);
        largest = fmax(largest, fabs(expected[i]));
        farthest = fmax(farthest, isnan(off) ? INFINITY : off);
    }
    printf("%s: off by %.2g of %.2g\n", what, farthest, largest);
    if (!(largest > 0.0) || !(farthest <= bound * largest)) {
        fprintf(stderr, "%s: expected at most %g\n", what, bound * largest);
        exit(1);
    }
}

/* What attention gives, and its gradients from d_o, in f64. */
static void by_hand(const uint16_t *qkv, const float *bias, const uint16_t *d_o, double *o, double *log_sum_exp, double *d_qkv) {
    double p[ROWS], mixed[WIDTH];
    for (int s = 0; s < SEQUENCES; ++s) {
        for (int row = ENDS[s]; row < ENDS[s + 1]; ++row) {
            for (int head = 0; head < HEADS; ++head) {
                const int q = row * STRIDE + head * WIDTH, out = row * TOTAL + head * WIDTH;
                double sum = 0.0, delta = 0.0;
                for (int key = ENDS[s]; key < ENDS[s + 1]; ++key) {
                    int distance = key - row;
                    double score = 0.0;
                    if (distance < -MAX_DISTANCE) distance = -MAX_DISTANCE;
                    if (distance > MAX_DISTANCE) distance = MAX_DISTANCE;
                    for (int c = 0; c < WIDTH; ++c) {
                        score += from_bf16(qkv[q + c]) * from_bf16(qkv[key * STRIDE + TOTAL + head * WIDTH + c]);
                    }
                    p[key] = exp(SOFTMAX_SCALE * score + bias[head * (2 * MAX_DISTANCE + 1) + distance + MAX_DISTANCE]);
                    sum += p[key];
                }
                log_sum_exp[row * HEADS + head] = log(sum);
                for (int c = 0; c < WIDTH; ++c) {
                    mixed[c] = 0.0;
                    for (int key = ENDS[s]; key < ENDS[s + 1]; ++key) {
                        mixed[c] += p[key] / sum * from_bf16(qkv[key * STRIDE + 2 * TOTAL + head * WIDTH + c]);
                    }
                    o[out + c] = mixed[c];
                    delta += mixed[c] * from_bf16(d_o[out + c]);
                }
                for (int key = ENDS[s]; key < ENDS[s + 1]; ++key) {
                    const int k = key * STRIDE + TOTAL + head * WIDTH, v = k + TOTAL;
                    const double weight = p[key] / sum;
                    double d_weight = 0.0;
                    for (int c = 0; c < WIDTH; ++c) d_weight += from_bf16(d_o[out + c]) * from_bf16(qkv[v + c]);
                    const double d_score = SOFTMAX_SCALE * weight * (d_weight - delta);
                    for (int c = 0; c < WIDTH; ++c) {
                        d_qkv[q + c] += d_score * from_bf16(qkv[k + c]);
                        d_qkv[k + c] += d_score * from_bf16(qkv[q + c]);
                        d_qkv[v + c] += weight * from_bf16(d_o[out + c]);
                    }
                }
            }
        }
    }
}

static double *download_bf16(uint64_t from, int count) {
    uint16_t *const bits = room(2 * (size_t)count);
    double *const numbers = room(sizeof(double) * (size_t)count);
    DRIVER(cuMemcpyDtoH_v2(bits, from, 2 * (size_t)count));
    for (int i = 0; i < count; ++i) numbers[i] = from_bf16(bits[i]);
    free(bits);
    return numbers;
}

static double *download_float(uint64_t from, int count) {
    float *const floats = room(sizeof(float) * (size_t)count);
    double *const numbers = room(sizeof(double) * (size_t)count);
    DRIVER(cuMemcpyDtoH_v2(floats, from, sizeof(float) * (size_t)count));
    for (int i = 0; i < count; ++i) numbers[i] = floats[i];
    free(floats);
    return numbers;
}

int main(int count, char **words) {
    static uint16_t qkv[ROWS * STRIDE], d_o[ROWS * TOTAL];
    static float bias[HEADS * (2 * MAX_DISTANCE + 1)];
    static double o[ROWS * TOTAL], log_sum_exp[ROWS * HEADS], d_qkv[ROWS * STRIDE];
    /* A result is rounded to bf16, by up to 1 / 256 of itself, and so are the weights that its sum is of; a gradient's sum is of two
     * such products. */
    const double bound = 2.0 / 256.0, bound_of_gradients = 4.0 / 256.0;
    if (count != 2) {
        fprintf(stderr, "usage: attention FOLDER, which `promptmix kernels export FOLDER` has written\n");
        return 2;
    }
    for (int i = 0; i < ROWS * STRIDE; ++i) qkv[i] = number(i, 3);
    for (int i = 0; i < ROWS * TOTAL; ++i) d_o[i] = number(i, 57);
    for (int i = 0; i < HEADS * (2 * MAX_DISTANCE + 1); ++i) bias[i] = (float)from_bf16(number(i, 91));
    by_hand(qkv, bias, d_o, o, log_sum_exp, d_qkv);

    CUcontext context;
    CUstream stream;
    DRIVER(cuInit(0));
    DRIVER(cuDevicePrimaryCtxRetain(&context, 0));
    DRIVER(cuCtxSetCurrent(context));
    DRIVER(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    const uint64_t at = upload(qkv, sizeof qkv), at_bias = upload(bias, sizeof bias), at_d_o = upload(d_o, sizeof d_o);
    const uint64_t at_o = poison(2 * ROWS * TOTAL), at_sum = poison(4 * ROWS * HEADS), at_d = poison(sizeof qkv);

    /* Through the library. */
    promptmix_kernels *kernels;
    promptmix_sequences *sequences;
    PROMPTMIX(promptmix_kernels_create(PROMPTMIX_ABI, stream, &kernels));
    PROMPTMIX(promptmix_sequences_create(kernels, ENDS, NULL, SEQUENCES, &sequences));
    promptmix_attention attention;
    memset(&attention, 0, sizeof attention);
    attention.sequences = sequences;
    attention.q = at;
    attention.k = at + 2 * TOTAL;
    attention.v = at + 4 * TOTAL;
    attention.bias = at_bias;
    attention.o = at_o;
    attention.log_sum_exp = at_sum;
    attention.q_stride = attention.kv_stride = STRIDE;
    attention.heads = HEADS;
    attention.width = WIDTH;
    attention.max_distance = MAX_DISTANCE;
    attention.precision = PROMPTMIX_BF16;
    attention.softmax_scale = (float)SOFTMAX_SCALE;
    PROMPTMIX(promptmix_attention_forward(kernels, &attention));
    promptmix_attention_gradient gradient;
    gradient.d_o = at_d_o;
    gradient.delta = poison(4 * ROWS * HEADS);
    gradient.d_q = at_d;
    gradient.d_k = at_d + 2 * TOTAL;
    gradient.d_v = at_d + 4 * TOTAL;
    PROMPTMIX(promptmix_attention_backward(kernels, &attention, &gradient));
    DRIVER(cuStreamSynchronize(stream));
    double *found = download_bf16(at_o, ROWS * TOTAL);
    near("o", found, o, ROWS * TOTAL, bound);
    free(found);
    found = download_float(at_sum, ROWS * HEADS);
    near("log_sum_exp", found, log_sum_exp, ROWS * HEADS, 1e-5); /* In f32. */
    free(found);
    found = download_bf16(at_d, ROWS * STRIDE);
    near("d_qkv", found, d_qkv, ROWS * STRIDE, bound_of_gradients);
    free(found);

    /* What does not fit is refused, with a text, and nothing is launched. */
    attention.width = 20;
    if (promptmix_attention_forward(kernels, &attention) != PROMPTMIX_ERROR_ARGUMENT) return 1;
    printf("refused: %s\n", promptmix_last_error());

    /* The same from the exported fatbin, with a launch of this program's own. */
    promptmix_batch batch;
    memset(&batch, 0, sizeof batch);
    batch.examples = SEQUENCES;
    batch.target_offsets = ENDS;
    int32_t *const descriptor = room((size_t)promptmix_batch_length(&batch) * sizeof(int32_t));
    promptmix_attention_arguments arguments;
    memset(&arguments, 0, sizeof arguments);
    arguments.batch = promptmix_batch_write(&batch, descriptor);
    arguments.batch.data = upload(descriptor, (size_t)promptmix_batch_length(&batch) * sizeof(int32_t));
    arguments.q = attention.q;
    arguments.k = attention.k;
    arguments.v = attention.v;
    arguments.bias = at_bias;
    arguments.o = poison(2 * ROWS * TOTAL);
    arguments.log_sum_exp = poison(4 * ROWS * HEADS);
    arguments.query_side = arguments.key_side = PROMPTMIX_SIDE_DECODER;
    arguments.scope = PROMPTMIX_SCOPE_ALL;
    arguments.heads = HEADS;
    arguments.width = WIDTH;
    arguments.q_stride = arguments.kv_stride = STRIDE;
    arguments.max_distance = MAX_DISTANCE;
    arguments.softmax_scale = (float)SOFTMAX_SCALE;
    const promptmix_launch launch =
        promptmix_attention_launch(PROMPTMIX_ATTENTION_FORWARD, PROMPTMIX_BF16, &arguments, &batch);
    char path[4096];
    CUmodule module;
    CUfunction function;
    void *pointers[1] = {&arguments};
    if (launch.kernel == NULL) return 1;
    snprintf(path, sizeof path, "%s/%s.fatbin", words[1], launch.file);
    DRIVER(cuModuleLoad(&module, path));
    DRIVER(cuModuleGetFunction(&function, module, launch.kernel));
    DRIVER(cuFuncSetAttribute(function, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, (int)launch.shared));
    DRIVER(cuLaunchKernel(function, launch.grid[0], launch.grid[1], launch.grid[2], launch.block, 1, 1, launch.shared, stream, pointers,
                          NULL));
    DRIVER(cuStreamSynchronize(stream));
    found = download_bf16(arguments.o, ROWS * TOTAL);
    near("o of the fatbin", found, o, ROWS * TOTAL, bound);
    free(found);

    free(descriptor);
    promptmix_sequences_destroy(sequences);
    promptmix_kernels_destroy(kernels);
    const uint64_t memory[] = {at,    at_bias, at_d_o, at_o, at_sum, at_d, gradient.delta, arguments.batch.data, arguments.o,
                               arguments.log_sum_exp};
    for (size_t i = 0; i < sizeof memory / sizeof memory[0]; ++i) DRIVER(cuMemFree_v2(memory[i]));
    DRIVER(cuModuleUnload(module));
    DRIVER(cuStreamDestroy_v2(stream));
    DRIVER(cuDevicePrimaryCtxRelease_v2(0));
    printf("all as by hand\n");
    return 0;
}
