// How the kernels are launched: blocks, threads and shared memory of each, and the batch descriptor that they read.
//
// The build puts this after the generated structs of promptmix.h; it is C11 and C++17. The launchers in src/backend/cuda/ops
// follow the same rules, and tests/export.rs compares them launch by launch.

// A launch: cuLaunchKernel(function, grid[0], grid[1], grid[2], block, 1, 1, shared, stream, arguments, NULL), where `arguments`
// is an array of one pointer, to the kernel's struct. More than 48 KiB of shared memory must be asked for first:
// cuFuncSetAttribute(function, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, shared). `kernel` is NULL where no kernel
// takes such a shape; a grid with a 0 is no launch.
typedef struct promptmix_launch {
    const char *file;    // the stem of its fatbin
    const char *kernel;  // its name there
    uint32_t grid[3];
    uint32_t block;      // threads
    uint32_t shared;     // bytes of dynamic shared memory
} promptmix_launch;

// The number format of matrices. f32 is slow, to verify with.
typedef enum promptmix_precision { PROMPTMIX_BF16 = 0, PROMPTMIX_F32 = 1 } promptmix_precision;

static inline uint32_t promptmix_ceil(int64_t number, int64_t divisor) {
    return (uint32_t)((number + divisor - 1) / divisor);
}

static inline promptmix_launch promptmix_launch_of(const char *file, const char *kernel, uint32_t x, uint32_t y, uint32_t z,
                                                   uint32_t block, uint32_t shared) {
    promptmix_launch launch;
    launch.file = file;
    launch.kernel = kernel;
    launch.grid[0] = x;
    launch.grid[1] = y;
    launch.grid[2] = z;
    launch.block = block;
    launch.shared = shared;
    return launch;
}

// What a batch is, on the host. Rows are packed end to end, example by example; the sources are the encoder's side, the targets
// the decoder's. A side without offsets has no rows. Self attention of one kind of row is over targets alone.
typedef struct promptmix_batch {
    int32_t examples;               // B, at least 1
    int32_t prompt_length;          // M: rows of a prompt, at the start of each example's sources
    const int32_t *source_offsets;  // [B + 1], from 0: where each example's rows begin, and the end; or NULL
    const int32_t *target_offsets;  // the same of the targets; or NULL
    const int32_t *source_ids;      // [R] token ids, -1 on prompt rows; NULL for 0
    const int32_t *target_ids;      // [T] token ids; NULL for 0
    const int32_t *labels;          // [T] token ids; NULL for 0
    const float *weights;           // [T] what a row's loss counts in the gradient; NULL for 1
    const int32_t *index;           // [B] the example's number within its run, for dropout; NULL for its number
    const int32_t *run;             // [B] the example's run; NULL for 0
    const int32_t *target_prompt;   // [B] which target prompt of its run; NULL for 0
    const int32_t *pooled_padding;  // [B] token that joins the pool of the mixture, or -1; NULL for -1
} promptmix_batch;

// Rows of a side, or of its prompts.
static inline int64_t promptmix_batch_rows(const promptmix_batch *batch, int32_t side, int32_t scope) {
    const int32_t *const offsets = side == PROMPTMIX_SIDE_DECODER ? batch->target_offsets : batch->source_offsets;
    if (scope == PROMPTMIX_SCOPE_PROMPT) return (int64_t)batch->examples * batch->prompt_length;
    return offsets ? offsets[batch->examples] : 0;
}

// The most tiles of rows that a side, or its prompts, can have: what grids over tiles need.
static inline uint32_t promptmix_batch_tiles(const promptmix_batch *batch, int32_t side, int32_t scope) {
    if (scope == PROMPTMIX_SCOPE_PROMPT) {
        return (uint32_t)batch->examples * promptmix_ceil(batch->prompt_length, PROMPTMIX_BATCH_ATTENTION_TILE);
    }
    return (uint32_t)(promptmix_batch_rows(batch, side, scope) / PROMPTMIX_BATCH_ATTENTION_TILE + batch->examples);
}

// The most targets of an example.
static inline int32_t promptmix_batch_longest(const promptmix_batch *batch) {
    int32_t longest = 0;
    for (int32_t b = 0; batch->target_offsets && b < batch->examples; ++b) {
        const int32_t length = batch->target_offsets[b + 1] - batch->target_offsets[b];
        if (length > longest) longest = length;
    }
    return longest;
}

// The place of an array of the descriptor after those before, from 16 bytes on.
static inline int32_t promptmix_batch_place(int64_t *end, int64_t length) {
    const int64_t start = (*end + 3) / 4 * 4;
    *end = start + length;
    return (int32_t)start;
}

// Where the arrays of the descriptor lie, and in `length` how many int32 numbers they are in all; `data` is 0.
static inline promptmix_descriptor promptmix_batch_places(const promptmix_batch *batch, int64_t *length) {
    const int64_t examples = batch->examples, entry = PROMPTMIX_BATCH_TILE_ENTRY;
    const int64_t sources = promptmix_batch_rows(batch, PROMPTMIX_SIDE_ENCODER, PROMPTMIX_SCOPE_ALL);
    const int64_t targets = promptmix_batch_rows(batch, PROMPTMIX_SIDE_DECODER, PROMPTMIX_SCOPE_ALL);
    int64_t end = PROMPTMIX_HEADER_HEADER_LENGTH;
    promptmix_descriptor of;
    of.data = 0;
    of.examples = batch->examples;
    of.prompt_length = batch->prompt_length;
    of.encoder_offsets = promptmix_batch_place(&end, examples + 1);
    of.decoder_offsets = promptmix_batch_place(&end, examples + 1);
    of.encoder_example = promptmix_batch_place(&end, sources);
    of.decoder_example = promptmix_batch_place(&end, targets);
    of.encoder_ids = promptmix_batch_place(&end, sources);
    of.decoder_ids = promptmix_batch_place(&end, targets);
    of.labels = promptmix_batch_place(&end, targets);
    of.row_weights = promptmix_batch_place(&end, targets);
    of.example_index = promptmix_batch_place(&end, examples);
    of.example_run = promptmix_batch_place(&end, examples);
    of.example_target = promptmix_batch_place(&end, examples);
    of.pooled_padding = promptmix_batch_place(&end, examples);
    of.encoder_tiles = promptmix_batch_place(&end, entry * promptmix_batch_tiles(batch, PROMPTMIX_SIDE_ENCODER, PROMPTMIX_SCOPE_ALL));
    of.prompt_tiles = promptmix_batch_place(&end, entry * promptmix_batch_tiles(batch, PROMPTMIX_SIDE_ENCODER, PROMPTMIX_SCOPE_PROMPT));
    of.decoder_tiles = promptmix_batch_place(&end, entry * promptmix_batch_tiles(batch, PROMPTMIX_SIDE_DECODER, PROMPTMIX_SCOPE_ALL));
    of.padding = 0;
    *length = end;
    return of;
}

// int32 numbers of the descriptor's array.
static inline int64_t promptmix_batch_length(const promptmix_batch *batch) {
    int64_t length;
    promptmix_batch_places(batch, &length);
    return length;
}

// Copies numbers, or writes `otherwise`, with `step` more from each to the next.
static inline void promptmix_batch_copy(int32_t *to, const int32_t *from, int64_t length, int32_t otherwise, int32_t step) {
    for (int64_t i = 0; i < length; ++i) to[i] = from ? from[i] : otherwise + (int32_t)i * step;
}

// Writes the example of each row between the offsets.
static inline void promptmix_batch_owners(int32_t *to, const int32_t *offsets, int32_t examples) {
    for (int32_t b = 0; offsets && b < examples; ++b) {
        for (int32_t row = offsets[b]; row < offsets[b + 1]; ++row) to[row] = b;
    }
}

// Writes the entries of `most` tiles over the rows between the offsets, or over so many rows of each example from them on; those that
// are left over have no example.
static inline void promptmix_batch_tile_entries(int32_t *to, uint32_t most, const int32_t *offsets, const int32_t *other,
                                                int32_t examples, const int32_t *rows) {
    const int32_t *const end = to + (size_t)most * PROMPTMIX_BATCH_TILE_ENTRY;
    for (int32_t b = 0; offsets && b < examples; ++b) {
        const int32_t length = offsets[b + 1] - offsets[b], tiled = rows ? *rows : length;
        for (int32_t first = 0; first < tiled; first += PROMPTMIX_BATCH_ATTENTION_TILE, to += PROMPTMIX_BATCH_TILE_ENTRY) {
            to[0] = b;
            to[1] = first;
            to[2] = offsets[b];
            to[3] = length;
            to[4] = other ? other[b] : 0;
            to[5] = other ? other[b + 1] - other[b] : 0;
            to[6] = to[7] = 0;
        }
    }
    while (to < end) *to++ = -1;
}

// Writes the descriptor's array, promptmix_batch_length(batch) numbers, for a copy to the device. The result is the field `batch` of
// every argument struct, once its own field `data` is set to the array's address on the device.
static inline promptmix_descriptor promptmix_batch_write(const promptmix_batch *batch, int32_t *to) {
    const int32_t examples = batch->examples;
    const int32_t *const from = batch->source_offsets, *const until = batch->target_offsets;
    const int64_t sources = promptmix_batch_rows(batch, PROMPTMIX_SIDE_ENCODER, PROMPTMIX_SCOPE_ALL);
    const int64_t targets = promptmix_batch_rows(batch, PROMPTMIX_SIDE_DECODER, PROMPTMIX_SCOPE_ALL);
    int64_t length;
    const promptmix_descriptor of = promptmix_batch_places(batch, &length);
    memset(to, 0, (size_t)length * sizeof(int32_t));
    to[PROMPTMIX_HEADER_ENCODER_ROWS] = (int32_t)sources;
    to[PROMPTMIX_HEADER_DECODER_ROWS] = (int32_t)targets;
    promptmix_batch_copy(to + of.encoder_offsets, from, examples + 1, 0, 0);
    promptmix_batch_copy(to + of.decoder_offsets, until, examples + 1, 0, 0);
    promptmix_batch_owners(to + of.encoder_example, from, examples);
    promptmix_batch_owners(to + of.decoder_example, until, examples);
    promptmix_batch_copy(to + of.encoder_ids, batch->source_ids, sources, 0, 0);
    promptmix_batch_copy(to + of.decoder_ids, batch->target_ids, targets, 0, 0);
    promptmix_batch_copy(to + of.labels, batch->labels, targets, 0, 0);
    for (int64_t row = 0; row < targets; ++row) {
        const float weight = batch->weights ? batch->weights[row] : 1.0f;
        memcpy(to + of.row_weights + row, &weight, sizeof weight);
    }
    promptmix_batch_copy(to + of.example_index, batch->index, examples, 0, 1);
    promptmix_batch_copy(to + of.example_run, batch->run, examples, 0, 0);
    promptmix_batch_copy(to + of.example_target, batch->target_prompt, examples, 0, 0);
    promptmix_batch_copy(to + of.pooled_padding, batch->pooled_padding, examples, -1, 0);
    promptmix_batch_tile_entries(to + of.encoder_tiles, promptmix_batch_tiles(batch, PROMPTMIX_SIDE_ENCODER, PROMPTMIX_SCOPE_ALL), from,
                                 until, examples, NULL);
    promptmix_batch_tile_entries(to + of.prompt_tiles, promptmix_batch_tiles(batch, PROMPTMIX_SIDE_ENCODER, PROMPTMIX_SCOPE_PROMPT),
                                 from, until, examples, &batch->prompt_length);
    promptmix_batch_tile_entries(to + of.decoder_tiles, promptmix_batch_tiles(batch, PROMPTMIX_SIDE_DECODER, PROMPTMIX_SCOPE_ALL), until,
                                 from, examples, NULL);
    return of;
}

// The passes of attention: o and log_sum_exp; delta, which the next reads; d_k, d_v and d_q, which is left out where it is NULL. The
// short ones do the work of the first, and of the other two, where promptmix_attention_is_short.
typedef enum promptmix_attention_pass {
    PROMPTMIX_ATTENTION_FORWARD,
    PROMPTMIX_ATTENTION_DELTA,
    PROMPTMIX_ATTENTION_BACKWARD,
    PROMPTMIX_ATTENTION_SHORT_FORWARD,
    PROMPTMIX_ATTENTION_SHORT_BACKWARD
} promptmix_attention_pass;

// Whether every example's rows fit a warp: targets over themselves, in bf16.
static inline int promptmix_attention_is_short(const promptmix_attention_arguments *a, const promptmix_batch *batch) {
    return a->query_side == PROMPTMIX_SIDE_DECODER && a->key_side == PROMPTMIX_SIDE_DECODER &&
           promptmix_batch_longest(batch) <= PROMPTMIX_SHORT_ATTENTION_MAX_ROWS;
}

// The field `key_tiles`, which backward needs, from key_side and scope.
static inline int32_t promptmix_attention_key_tiles(const promptmix_attention_arguments *a, const promptmix_batch *batch) {
    return (int32_t)promptmix_batch_tiles(batch, a->key_side, a->scope);
}

// Uses heads, width, max_distance, softmax_scale, sides, scope, mask, and of backward key_tiles and d_q of the arguments. Heads may be up to 128 wide, a multiple of 8,
// and the scale is above zero; of short passes no f32.
static inline promptmix_launch promptmix_attention_launch(promptmix_attention_pass pass, promptmix_precision precision,
                                                          const promptmix_attention_arguments *a, const promptmix_batch *batch) {
    static const char *const names[5][5] = {
        {"attention_64", "attention_128", "attention_dropped_64", "attention_dropped_128", "attention_f32"},
        {"attention_delta_bf16", "attention_delta_bf16", "attention_delta_bf16", "attention_delta_bf16", "attention_delta_f32"},
        {"attention_backward_64", "attention_backward_128", "attention_backward_dropped_64", "attention_backward_dropped_128",
         "attention_backward_f32"},
        {"attention_short_64", "attention_short_128", "attention_short_dropped_64", "attention_short_dropped_128", NULL},
        {"attention_short_backward_64", "attention_short_backward_128", "attention_short_backward_dropped_64",
         "attention_short_backward_dropped_128", NULL}};
    static const uint32_t tiles[5] = {5, 0, 6, 3, 4};
    const int is_short = pass == PROMPTMIX_ATTENTION_SHORT_FORWARD || pass == PROMPTMIX_ATTENTION_SHORT_BACKWARD;
    const int wide = a->width > 64, dropped = a->mask.step != 0;
    const uint32_t heads = (uint32_t)a->heads;
    const char *const file = is_short ? "short_attention" : "attention";
    const char *kernel = names[pass][precision == PROMPTMIX_F32 ? 4 : wide + 2 * dropped];
    const int backward = pass == PROMPTMIX_ATTENTION_BACKWARD;
    uint32_t shared = tiles[pass] * PROMPTMIX_BATCH_ATTENTION_TILE * (wide ? 128u : 64u) * 2u;
    if (a->width < 8 || a->width > 128 || a->width % 8 || a->heads < 1 || a->heads > 65535) kernel = NULL;
    if (!(a->softmax_scale > 0.0f)) kernel = NULL;
    if (is_short) {
        const uint32_t blocks = promptmix_ceil((int64_t)batch->examples * heads, 4);
        if (dropped) shared += 4u * PROMPTMIX_SHORT_ATTENTION_MASK_BYTES;
        return promptmix_launch_of(file, kernel, blocks, 1, 1, 128, shared);
    }
    if (pass == PROMPTMIX_ATTENTION_DELTA) {
        const int64_t rows = promptmix_batch_rows(batch, a->query_side, PROMPTMIX_SCOPE_ALL);
        return promptmix_launch_of(file, kernel, promptmix_ceil(rows * heads, 4), 1, 1, 128, 0);
    }
    if (dropped) shared += 2u * PROMPTMIX_ATTENTION_TILE_MASK_BYTES;
    if (backward) shared += PROMPTMIX_ATTENTION_TILE_SIDE_BYTES;
    shared += (2u * ((uint32_t)a->max_distance + PROMPTMIX_ATTENTION_BIAS_MARGIN) + 1u) * 4u;
    if (precision == PROMPTMIX_F32) shared = 0;
    uint32_t blocks = promptmix_batch_tiles(batch, a->query_side, a->scope);
    if (backward) {
        blocks = (a->d_q ? blocks : 0u) + (uint32_t)a->key_tiles;
        if (a->key_tiles != promptmix_attention_key_tiles(a, batch)) kernel = NULL;
    }
    return promptmix_launch_of(file, kernel, blocks, heads, 1, 128, shared);
}

// The steps of cross attention absorbed into its sources, in the order of a forward pass and of a backward pass.
typedef enum promptmix_cross_step {
    PROMPTMIX_CROSS_WIDEN,
    PROMPTMIX_CROSS_NARROW,
    PROMPTMIX_CROSS_SCORES,
    PROMPTMIX_CROSS_SCORES_BACKWARD,
    PROMPTMIX_CROSS_MIX,
    PROMPTMIX_CROSS_MIX_BACKWARD,
    PROMPTMIX_CROSS_SOURCES,
    PROMPTMIX_CROSS_PROJECT,
    PROMPTMIX_CROSS_PROJECT_BACKWARD
} promptmix_cross_step;

// The field `fragments`, from heads and width.
static inline int32_t promptmix_cross_fragments(const promptmix_cross_arguments *a, const promptmix_batch *batch) {
    const int64_t targets = promptmix_batch_rows(batch, PROMPTMIX_SIDE_DECODER, PROMPTMIX_SCOPE_ALL);
    const int64_t heads = (int64_t)promptmix_ceil(a->width, 64) * a->heads;
    for (int32_t fragments = 4; fragments > 1; fragments /= 2) {
        if (promptmix_ceil(targets, 16 * fragments) * heads >= 108) return fragments;
    }
    return 1;
}

// Uses heads, width, depth, longest and fragments of the arguments, or of their part `of`. Projections take heads up to 64 wide, in
// bf16.
static inline promptmix_launch promptmix_cross_launch(promptmix_cross_step step, promptmix_precision precision,
                                                      const promptmix_cross_arguments *a, const promptmix_batch *batch) {
    static const char *const names[9][2] = {{"cross_widen_bf16", "cross_widen_f32"},
                                            {"cross_narrow_bf16", "cross_narrow_f32"},
                                            {"cross_scores_bf16", "cross_scores_f32"},
                                            {"cross_scores_backward_bf16", "cross_scores_backward_f32"},
                                            {"cross_mix_bf16", "cross_mix_f32"},
                                            {"cross_backward_bf16", "cross_backward_f32"},
                                            {"cross_sources_bf16", "cross_sources_f32"},
                                            {"cross_project_bf16", NULL},
                                            {"cross_project_backward_bf16", NULL}};
    const int f32 = precision == PROMPTMIX_F32;
    const int projects = step == PROMPTMIX_CROSS_PROJECT || step == PROMPTMIX_CROSS_PROJECT_BACKWARD;
    const int64_t targets = promptmix_batch_rows(batch, PROMPTMIX_SIDE_DECODER, PROMPTMIX_SCOPE_ALL);
    const uint32_t sources = (uint32_t)promptmix_batch_rows(batch, PROMPTMIX_SIDE_ENCODER, PROMPTMIX_SCOPE_ALL);
    const uint32_t heads = (uint32_t)a->heads, rows = (uint32_t)targets * heads, examples = (uint32_t)batch->examples;
    const uint32_t columns = promptmix_ceil(a->depth, PROMPTMIX_CROSS_ATTENTION_SLICE);
    const uint32_t parts = promptmix_ceil((int64_t)a->longest * heads, 64);
    const uint32_t tiles = promptmix_batch_tiles(batch, PROMPTMIX_SIDE_ENCODER, PROMPTMIX_SCOPE_ALL);
    const uint32_t shared = f32 ? 0u : projects ? 72u * 1024u : 48u * 1024u + 2u * 64u * 4u;
    const char *kernel = names[step][f32];
    uint32_t x = columns, y = f32 ? rows : parts, z = f32 ? 1u : examples;
    if (a->width < 8 || a->width > 128 || a->width % 8 || a->depth < 8 || a->depth % 8 || (projects && a->width > 64)) kernel = NULL;
    switch (step) {
        case PROMPTMIX_CROSS_WIDEN:
        case PROMPTMIX_CROSS_PROJECT:
        case PROMPTMIX_CROSS_PROJECT_BACKWARD:
            y = f32 ? (uint32_t)targets : promptmix_ceil(targets, 64);
            z = heads;
            break;
        case PROMPTMIX_CROSS_NARROW:
            x = f32 ? 1u : promptmix_ceil(a->width, 64);
            y = f32 ? (uint32_t)targets : promptmix_ceil(targets, 16 * (a->fragments > 0 ? a->fragments : 1));
            z = heads;
            break;
        case PROMPTMIX_CROSS_SCORES:
        case PROMPTMIX_CROSS_SCORES_BACKWARD:
            x = f32 ? rows : tiles;
            y = f32 ? 1u : parts;
            z = 1;
            break;
        case PROMPTMIX_CROSS_SOURCES:
            y = f32 ? sources : tiles;
            z = 1;
            break;
        case PROMPTMIX_CROSS_MIX:
        case PROMPTMIX_CROSS_MIX_BACKWARD: break;
    }
    return promptmix_launch_of("cross_attention", kernel, x, y, z, 128, shared);
}

// A product's tiles, in bf16 but for the last: 128 by 128, 80 by 128 and 64 by 64 numbers a block. Each gives the same result but for
// the order of its sums.
typedef enum promptmix_gemm_tile {
    PROMPTMIX_GEMM_LARGE,
    PROMPTMIX_GEMM_MEDIUM,
    PROMPTMIX_GEMM_SMALL,
    PROMPTMIX_GEMM_F32
} promptmix_gemm_tile;

// Rows and columns of a tile.
static inline void promptmix_gemm_tile_size(promptmix_gemm_tile tile, int64_t *rows, int64_t *columns) {
    *rows = tile == PROMPTMIX_GEMM_LARGE ? 128 : tile == PROMPTMIX_GEMM_MEDIUM ? 80 : 64;
    *columns = tile == PROMPTMIX_GEMM_LARGE || tile == PROMPTMIX_GEMM_MEDIUM ? 128 : 64;
}

// Numbers of the field `counters`, zeros before a launch and after it, for a product of so many rows whose depth is cut into `parts`.
static inline int64_t promptmix_gemm_counters(promptmix_gemm_tile tile, int32_t parts, int64_t rows, int64_t columns) {
    int64_t tile_rows, tile_columns;
    promptmix_gemm_tile_size(tile, &tile_rows, &tile_columns);
    return parts > 1 ? (int64_t)promptmix_ceil(rows, tile_rows) * promptmix_ceil(columns, tile_columns) : 0;
}

// Numbers of f32 of the field `workspace`.
static inline int64_t promptmix_gemm_workspace(promptmix_gemm_tile tile, int32_t parts, int64_t rows, int64_t columns) {
    int64_t tile_rows, tile_columns;
    promptmix_gemm_tile_size(tile, &tile_rows, &tile_columns);
    return promptmix_gemm_counters(tile, parts, rows, columns) * parts * tile_rows * tile_columns;
}

// Uses n, k and epilogue of the arguments, over `rows` rows. `parts` divides the depth, 1 for thick products: a part should have 128
// numbers of k, twice that with the small tile. Which tile is fastest depends on shape and device; promptmix_linear_forward chooses.
static inline promptmix_launch promptmix_gemm_launch(promptmix_gemm_tile tile, int backward, int32_t parts, int64_t rows,
                                                     const promptmix_gemm_arguments *a) {
    static const char *const names[2][4] = {{"gemm_forward_large", "gemm_forward_medium", NULL, "gemm_forward_f32"},
                                            {"gemm_backward_large", "gemm_backward_medium", NULL, "gemm_backward_f32"}};
    int64_t tile_rows, tile_columns;
    const char *kernel = names[backward ? 1 : 0][tile];
    uint32_t shared = 0;
    promptmix_gemm_tile_size(tile, &tile_rows, &tile_columns);
    if (tile == PROMPTMIX_GEMM_SMALL) {
        switch ((promptmix_epilogue)a->epilogue) {
            case PROMPTMIX_EPILOGUE_PROJECT: kernel = backward ? NULL : "gemm_forward_small_project"; break;
            case PROMPTMIX_EPILOGUE_RELU: kernel = backward ? NULL : "gemm_forward_small_relu"; break;
            case PROMPTMIX_EPILOGUE_ADD: kernel = backward ? NULL : "gemm_forward_small_add"; break;
            case PROMPTMIX_EPILOGUE_FLOAT: kernel = backward ? NULL : "gemm_forward_small_float"; break;
            case PROMPTMIX_EPILOGUE_PLAIN: kernel = backward ? "gemm_backward_small_plain" : "gemm_forward_small_plain"; break;
            case PROMPTMIX_EPILOGUE_DELTA: kernel = backward ? "gemm_backward_small_delta" : NULL; break;
            case PROMPTMIX_EPILOGUE_RELU_BACKWARD: kernel = backward ? "gemm_backward_small_relu" : NULL; break;
            case PROMPTMIX_EPILOGUE_NORM_BACKWARD: kernel = backward ? "gemm_backward_small_norm" : NULL; break;
            case PROMPTMIX_EPILOGUE_ACCUMULATE: kernel = backward ? "gemm_backward_small_accumulate" : NULL; break;
        }
    }
    if (a->n < 1 || a->k < 8 || a->k % 8 || (a->epilogue != PROMPTMIX_EPILOGUE_FLOAT && a->n % 8)) kernel = NULL;
    if (parts < 1 || (tile == PROMPTMIX_GEMM_F32 && parts > 1)) kernel = NULL;
    // The stages of the main loop, twice for the small tile's two groups of warps; of the large one its tile of f32, which is more.
    if (tile != PROMPTMIX_GEMM_F32) {
        shared = (uint32_t)(PROMPTMIX_GEMM_STAGES * (tile_rows + tile_columns) * PROMPTMIX_GEMM_DEPTH * 2);
    }
    if (tile == PROMPTMIX_GEMM_SMALL) shared *= 2;
    if (tile == PROMPTMIX_GEMM_LARGE) shared = 128 * 136 * 4;
    return promptmix_launch_of("gemm", kernel, promptmix_ceil(a->n, tile_columns), promptmix_ceil(rows, tile_rows), (uint32_t)parts,
                               tile == PROMPTMIX_GEMM_SMALL || tile == PROMPTMIX_GEMM_F32 ? 256 : 128, shared);
}

// Warps of a block of the loss, for rows so wide.
static inline int32_t promptmix_loss_warps(int32_t width) {
    const uint32_t warps = promptmix_ceil(width, PROMPTMIX_LOSS_WARP_COLUMNS);
    return warps > PROMPTMIX_LOSS_MAX_WARPS ? PROMPTMIX_LOSS_MAX_WARPS : (int32_t)warps;
}

// Fills words, ranges and slices, from rows, vocabulary and width, for a device of so many multiprocessors. `partials` is then of
// ranges * rows * 4 numbers, `weighted` of ranges * rows * width.
static inline void promptmix_loss_plan(promptmix_loss_arguments *a, promptmix_precision precision, int32_t multiprocessors) {
    const int32_t warps = promptmix_loss_warps(a->width), resident = PROMPTMIX_LOSS_MAX_WARPS / warps;
    int64_t wanted = 16;
    a->slices = (int32_t)promptmix_ceil(a->width, (int64_t)warps * PROMPTMIX_LOSS_WARP_COLUMNS);
    if (precision == PROMPTMIX_BF16) {
        wanted = (int64_t)multiprocessors * (resident < 2 ? resident : 2) /
                 ((int64_t)promptmix_ceil(a->rows, PROMPTMIX_LOSS_BLOCK_ROWS) * a->slices);
    }
    if (wanted < 1) wanted = 1;
    if (wanted > PROMPTMIX_LOSS_MAX_RANGES) wanted = PROMPTMIX_LOSS_MAX_RANGES;
    a->words = (int32_t)(promptmix_ceil(promptmix_ceil(a->vocabulary, wanted), PROMPTMIX_LOSS_WORDS) * PROMPTMIX_LOSS_WORDS);
    a->ranges = (int32_t)promptmix_ceil(a->vocabulary, a->words);
}

// The first launch of the loss, over a planned division of the vocabulary.
static inline promptmix_launch promptmix_loss_words_launch(promptmix_precision precision, const promptmix_loss_arguments *a) {
    const uint32_t warps = (uint32_t)promptmix_loss_warps(a->width), rows = (uint32_t)a->rows, ranges = (uint32_t)a->ranges;
    const char *const kernel = a->width < 8 || a->width % 8 ? NULL : precision == PROMPTMIX_F32 ? "loss_words_f32" : "loss_words_bf16";
    if (precision == PROMPTMIX_F32) return promptmix_launch_of("loss", kernel, ranges, rows, 1, 128, 0);
    return promptmix_launch_of("loss", kernel, ranges, promptmix_ceil(rows, PROMPTMIX_LOSS_BLOCK_ROWS),
                               a->d_hidden ? (uint32_t)a->slices : 1u, warps * 32,
                               warps * (2 * PROMPTMIX_LOSS_TILE_BYTES + 8 * 32 * 8) + 8 * 32 * 4);
}

// The second, which joins its parts.
static inline promptmix_launch promptmix_loss_rows_launch(promptmix_precision precision, const promptmix_loss_arguments *a) {
    const char *const kernel = a->width < 8 || a->width % 8 ? NULL : precision == PROMPTMIX_F32 ? "loss_rows_f32" : "loss_rows_bf16";
    return promptmix_launch_of("loss", kernel, (uint32_t)a->rows, a->d_hidden ? promptmix_ceil(a->width, 512) : 1u, 1, 128, 0);
}

// The kernels of the mixture. Forward: TARGET_KEYS where the scorer reads the input and the target is in the mixture, SCORES of every
// scorer, TOKEN_SCORES of the token scorer, ROWS. Backward: D_ATTENTION and D_SCORES but for a plain prompt and the uniform scorer,
// D_STATE.
typedef enum promptmix_mix_step {
    PROMPTMIX_MIX_TARGET_KEYS,
    PROMPTMIX_MIX_SCORES,
    PROMPTMIX_MIX_TOKEN_SCORES,
    PROMPTMIX_MIX_ROWS,
    PROMPTMIX_MIX_D_ATTENTION,
    PROMPTMIX_MIX_D_SCORES,
    PROMPTMIX_MIX_D_STATE
} promptmix_mix_step;

// Uses width, length, bottleneck_dim, targets, runs and state_length of the arguments. Scores take a 2 D + Q of at most 12,256.
static inline promptmix_launch promptmix_mix_launch(promptmix_mix_step step, const promptmix_mix_arguments *a, int32_t examples) {
    const uint32_t threads = PROMPTMIX_MIX_THREADS, length = (uint32_t)a->length, count = (uint32_t)examples;
    const uint32_t scores = (uint32_t)(2 * a->width + a->bottleneck_dim + PROMPTMIX_MIX_SCORE_WARPS) * 4u;
    switch (step) {
        case PROMPTMIX_MIX_TARGET_KEYS:
            return promptmix_launch_of("mix", "target_keys", promptmix_ceil(a->width, PROMPTMIX_MIX_KEY_COLUMNS),
                                       (uint32_t)(a->runs * a->targets), 1, threads, 0);
        case PROMPTMIX_MIX_SCORES:
            return promptmix_launch_of("mix", scores > 48 * 1024 ? NULL : "mix_scores", count, 1, 1, PROMPTMIX_MIX_SCORE_THREADS,
                                       scores);
        case PROMPTMIX_MIX_TOKEN_SCORES:
            return promptmix_launch_of("mix", "token_scores", length, promptmix_ceil(count, PROMPTMIX_MIX_WARPS), 1, threads, 0);
        case PROMPTMIX_MIX_ROWS:
            return promptmix_launch_of("mix", "mix_rows", length, promptmix_ceil(a->width, 4 * PROMPTMIX_MIX_MIXED_THREADS),
                                       promptmix_ceil(count, PROMPTMIX_MIX_MIXED), PROMPTMIX_MIX_MIXED_THREADS, 0);
        case PROMPTMIX_MIX_D_ATTENTION:
            return promptmix_launch_of("mix", "mix_d_attention", length, promptmix_ceil(count, PROMPTMIX_MIX_WARPS), 1, threads, 0);
        case PROMPTMIX_MIX_D_SCORES:
            return promptmix_launch_of("mix", "mix_d_scores", count, 1, 1, PROMPTMIX_MIX_SCORE_THREADS,
                                       (uint32_t)(a->width + PROMPTMIX_MIX_SCORE_WARPS) * 4u);
        case PROMPTMIX_MIX_D_STATE: break;
    }
    return promptmix_launch_of("mix", "mix_d_state", promptmix_ceil(a->state_length, threads), (uint32_t)a->runs, 1, threads, 0);
}

// The field `blocks`, from the field `length`. `partials` has runs * (blocks + 1) numbers of f64, `counters` runs *
// PROMPTMIX_OPTIMIZER_COUNTERS zeros, `ring` places * runs reports; statistics and statuses begin as zeros.
static inline int32_t promptmix_optimizer_blocks(int64_t length) {
    return (int32_t)promptmix_ceil(length, PROMPTMIX_OPTIMIZER_BLOCK_NUMBERS);
}

// The two launches of a step, in order: `update` 0 and then 1.
static inline promptmix_launch promptmix_optimizer_launch(int update, const promptmix_optimizer_arguments *a) {
    return promptmix_launch_of("optimizer", update ? "adamw" : "gradient_norm", (uint32_t)a->blocks, (uint32_t)a->runs, 1,
                               PROMPTMIX_OPTIMIZER_THREADS, 0);
}

// A decoding step's attention for so many examples.
static inline promptmix_launch promptmix_decode_launch(promptmix_precision precision, const promptmix_decode_arguments *a,
                                                       int32_t examples) {
    const char *const kernel = precision == PROMPTMIX_F32 ? "decode_f32" : "decode_bf16";
    return promptmix_launch_of("decode", a->width > 32 * PROMPTMIX_DECODE_LANE_PARTS ? NULL : kernel, (uint32_t)examples,
                               (uint32_t)a->heads, 1, 32, 0);
}

// Kernels with a warp a row, over rows of a multiple of 8 columns: embed, embed_backward (over prompt rows), gate_bf16, gate_f32,
// gate_backward_bf16, gate_backward_f32, row_inner, row_squares, mask_copy_bf16, mask_copy_f32, final_norm_bf16, final_norm_f32.
static inline promptmix_launch promptmix_rows_launch(const char *file, const char *kernel, int64_t rows) {
    return promptmix_launch_of(file, kernel, promptmix_ceil(rows, PROMPTMIX_ROWS_ROW_WARPS), 1, 1, 128, 0);
}

// The backward of the final norm: a block a row of up to 4,096 columns.
static inline promptmix_launch promptmix_final_norm_backward_launch(const promptmix_final_norm_backward_arguments *a, int64_t rows) {
    return promptmix_launch_of("norm", a->width > 4096 ? NULL : "final_norm_backward", (uint32_t)rows, 1, 1, 128, 0);
}

// The two launches that write the descriptor anew from cumulative lengths on the device, in order: `rows` 0 and then 1. Uses capacities
// and tiles of the arguments.
static inline promptmix_launch promptmix_sequences_launch(int rows, const promptmix_sequences_arguments *a) {
    int32_t most = a->target_capacity > a->source_capacity ? a->target_capacity : a->source_capacity;
    if (a->target_tiles > most) most = a->target_tiles;
    if (a->source_tiles > most) most = a->source_tiles;
    if (!rows) return promptmix_launch_of("sequences", "sequence_offsets", 2, 1, 1, PROMPTMIX_SEQUENCES_THREADS, 0);
    return promptmix_launch_of("sequences", "sequence_rows", promptmix_ceil(most, PROMPTMIX_SEQUENCES_THREADS), 2, 1,
                               PROMPTMIX_SEQUENCES_THREADS, 0);
}

// The kernel `tally`, which adds up the loss of this program's own training step, has no rule here, nor have the kernels for compute
// capability 9.0 alone, of files that end in `_hopper`: they take tensor maps, and the others do the same there.
