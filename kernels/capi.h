// The functions of libpromptmix, which `cargo rustc --release --lib --crate-type cdylib --features capi` builds.
//
// A handle of kernels belongs to one CUDA stream, as a cublasHandle_t does: what is launched through it is on that stream, in
// order, and nothing waits. Ordering with other streams is the caller's. The context is the one that is current when the handle is
// made, PyTorch's primary context among them, and is current again when a function returns. Device memory stays the caller's: it
// is read and written where it is, neither copied nor freed, and must live until the stream is past the launch. Its first number
// lies on 16 bytes. Handles may be used from any thread; of two threads one waits. What is made with kernels is used with these, or with
// others on the same stream.
//
// Each function but the destroying ones returns PROMPTMIX_OK or says what was wrong: promptmix_last_error() is the text, of this
// thread's last failure. Nothing is launched where an operand does not fit.

struct CUstream_st;

typedef enum promptmix_result {
    PROMPTMIX_OK = 0,
    PROMPTMIX_ERROR_ARGUMENT = 1,     // a null pointer, a number out of range, an operand that does not fit
    PROMPTMIX_ERROR_ABI = 2,          // the header is of another build than the library
    PROMPTMIX_ERROR_DEVICE = 3,       // the GPU or its driver
    PROMPTMIX_ERROR_UNSUPPORTED = 4,  // what this build or machine cannot do
    PROMPTMIX_ERROR_DEFECT = 5        // a defect of this library
} promptmix_result;

// What the library's header has as PROMPTMIX_ABI.
uint32_t promptmix_abi(void);

// This thread's last failure, empty before the first; until its next one.
const char *promptmix_last_error(void);

// The compiled kernels in the current context, for launches on `stream`. `abi` is PROMPTMIX_ABI. A kernel file is loaded at its
// first launch, so launch once before a stream capture.
typedef struct promptmix_kernels promptmix_kernels;
promptmix_result promptmix_kernels_create(uint32_t abi, struct CUstream_st *stream, promptmix_kernels **kernels);
// Handles that were made with it stay usable.
void promptmix_kernels_destroy(promptmix_kernels *kernels);

// How packed rows are cut into sequences: `cu_seqlens_q` and `cu_seqlens_k` are [batch + 1] in host memory, from 0, as in flash-attn's
// varlen functions; without `cu_seqlens_k` (NULL) queries and keys are the same rows. It is copied to the device once, and serves
// every launch over these sequences, all layers of a model.
typedef struct promptmix_sequences promptmix_sequences;
promptmix_result promptmix_sequences_create(promptmix_kernels *kernels, const int32_t *cu_seqlens_q, const int32_t *cu_seqlens_k,
                                            int32_t batch, promptmix_sequences **sequences);
void promptmix_sequences_destroy(promptmix_sequences *sequences);

// Attention: o = softmax(softmax_scale q k^T + bias) v for each sequence and head.
typedef struct promptmix_attention {
    promptmix_sequences *sequences;
    promptmix_device_pointer q;            // [query rows, heads * width], rows q_stride numbers apart
    promptmix_device_pointer k;            // [key rows, heads * width], rows kv_stride numbers apart
    promptmix_device_pointer v;            // as k
    promptmix_device_pointer bias;         // float [heads, 2 * max_distance + 1], by key - query from -max_distance on; or 0
    promptmix_device_pointer o;            // [query rows, heads * width], without gaps
    promptmix_device_pointer log_sum_exp;  // float [query rows, heads]
    int64_t q_stride;                      // a multiple of 8
    int64_t kv_stride;
    int32_t heads;
    int32_t width;                         // of a head: a multiple of 8, up to 128
    int32_t max_distance;                  // beyond it the bias's end values hold
    int32_t causal;                        // 1: a row sees itself and those before it
    int32_t precision;                     // promptmix_precision of q, k, v, o and their gradients
    float softmax_scale;                   // above zero: 1 for T5, 1 / sqrt(width) for most other models
} promptmix_attention;

typedef struct promptmix_attention_gradient {
    promptmix_device_pointer d_o;    // [query rows, heads * width], without gaps
    promptmix_device_pointer delta;  // float [query rows, heads]: scratch
    promptmix_device_pointer d_q;    // as q, with its stride
    promptmix_device_pointer d_k;    // as k, with its stride
    promptmix_device_pointer d_v;
} promptmix_attention_gradient;

// Writes o and log_sum_exp.
promptmix_result promptmix_attention_forward(promptmix_kernels *kernels, const promptmix_attention *attention);
// Writes d_q, d_k and d_v, from what forward read and wrote. The bias has no gradient.
promptmix_result promptmix_attention_backward(promptmix_kernels *kernels, const promptmix_attention *attention,
                                              const promptmix_attention_gradient *gradient);

// Products of `rows` rows with weights [out, in] of bf16, out and in multiples of 8, and the memory that they work in.
typedef struct promptmix_linear promptmix_linear;
promptmix_result promptmix_linear_create(promptmix_kernels *kernels, int64_t rows, int32_t out, int32_t in, promptmix_linear **linear);
void promptmix_linear_destroy(promptmix_linear *linear);
// z [rows, out] = a weight^T, from a [rows, in] of bf16; z in bf16, or with PROMPTMIX_F32 in float.
promptmix_result promptmix_linear_forward(promptmix_kernels *kernels, promptmix_linear *linear, promptmix_device_pointer a,
                                          promptmix_device_pointer weight, promptmix_device_pointer z, int32_t z_precision);
// d_a [rows, in] = d_z weight, from d_z [rows, out], in bf16. The weight has no gradient.
promptmix_result promptmix_linear_backward(promptmix_kernels *kernels, promptmix_linear *linear, promptmix_device_pointer d_z,
                                           promptmix_device_pointer weight, promptmix_device_pointer d_a);

// Cross entropy of labelled rows through a frozen lm_head [vocabulary, width] of bf16, without stored logits. `labels` and `weights`
// are [rows] in host memory; weights are what a row's loss counts in the gradient, NULL for 1.
typedef struct promptmix_cross_entropy promptmix_cross_entropy;
promptmix_result promptmix_cross_entropy_create(promptmix_kernels *kernels, const uint32_t *labels, const float *weights, int32_t rows,
                                                int32_t vocabulary, int32_t width, promptmix_cross_entropy **cross_entropy);
void promptmix_cross_entropy_destroy(promptmix_cross_entropy *cross_entropy);
// loss [rows] of float, greedy [rows] of uint32, the word of the highest logit, and unless it is 0 d_hidden [rows, width] of float, from
// hidden [rows, width] of bf16.
promptmix_result promptmix_cross_entropy_launch(promptmix_kernels *kernels, promptmix_cross_entropy *cross_entropy,
                                                promptmix_device_pointer hidden, promptmix_device_pointer lm_head,
                                                promptmix_device_pointer loss, promptmix_device_pointer greedy,
                                                promptmix_device_pointer d_hidden);

// AdamW over a vector of `length` numbers of float, with clip by its gradient's norm.
typedef struct promptmix_adamw promptmix_adamw;
typedef struct promptmix_adamw_settings {
    double learning_rate;
    double weight_decay;   // decoupled
    double beta1;
    double beta2;
    double epsilon;
    double max_grad_norm;  // HUGE_VAL for no clip
} promptmix_adamw_settings;
typedef struct promptmix_adamw_report {
    double gradient_norm;  // before the clip
    int32_t applied;       // 0 where the gradient was not finite, or that of a step before was not reported yet
    int32_t padding;
} promptmix_adamw_report;
promptmix_result promptmix_adamw_create(promptmix_kernels *kernels, int64_t length, promptmix_adamw **adamw);
void promptmix_adamw_destroy(promptmix_adamw *adamw);
// Settings of the steps from now on; until it is called, the rate is 0.
promptmix_result promptmix_adamw_schedule(promptmix_kernels *kernels, promptmix_adamw *adamw, const promptmix_adamw_settings *settings);
// A step: values and moments change. The moments begin as zeros.
promptmix_result promptmix_adamw_step(promptmix_kernels *kernels, promptmix_adamw *adamw, promptmix_device_pointer values,
                                      promptmix_device_pointer gradient, promptmix_device_pointer first_moment,
                                      promptmix_device_pointer second_moment);
// Waits for the steps since the last call, at most 64, and writes a report of each, in order, to `reports`, whose `room` is 64 or more.
promptmix_result promptmix_adamw_reports(promptmix_kernels *kernels, promptmix_adamw *adamw, promptmix_adamw_report *reports,
                                         int32_t room, int32_t *count);
