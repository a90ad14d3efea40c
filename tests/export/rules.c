/* The launches of each case of rules.rs, by the rules of promptmix.h: a line each, of case, kernel, blocks, threads and bytes of shared
 * memory. Its argument is the number of multiprocessors. */
#include <stdio.h>
#include <stdlib.h>

#include "promptmix.h"

static const char *of_case;

static void print(promptmix_launch launch) {
    const uint64_t blocks = (uint64_t)launch.grid[0] * launch.grid[1] * launch.grid[2];
    printf("%s %s %llu %u %u\n", of_case, launch.kernel ? launch.kernel : "none", (unsigned long long)blocks, launch.block,
           launch.shared);
}

static void attention(const char *name, promptmix_precision precision, int32_t examples, const int32_t *queries, const int32_t *keys,
                      int32_t heads, int32_t width, int32_t max_distance, int dropped) {
    promptmix_attention_arguments a;
    promptmix_batch batch;
    memset(&a, 0, sizeof a);
    memset(&batch, 0, sizeof batch);
    batch.examples = examples;
    batch.target_offsets = queries;
    batch.source_offsets = keys;
    a.query_side = PROMPTMIX_SIDE_DECODER;
    a.key_side = keys ? PROMPTMIX_SIDE_ENCODER : PROMPTMIX_SIDE_DECODER;
    a.heads = heads;
    a.width = width;
    a.max_distance = max_distance;
    a.mask.step = dropped ? 256 : 0;
    /* Without a scale, which a struct of zeros has not, there is no kernel. */
    if (promptmix_attention_launch(PROMPTMIX_ATTENTION_FORWARD, precision, &a, &batch).kernel != NULL) printf("no scale was taken\n");
    a.softmax_scale = 1.0f;
    of_case = name;
    if (precision == PROMPTMIX_BF16 && promptmix_attention_is_short(&a, &batch)) {
        print(promptmix_attention_launch(PROMPTMIX_ATTENTION_SHORT_FORWARD, precision, &a, &batch));
        print(promptmix_attention_launch(PROMPTMIX_ATTENTION_SHORT_BACKWARD, precision, &a, &batch));
        return;
    }
    print(promptmix_attention_launch(PROMPTMIX_ATTENTION_FORWARD, precision, &a, &batch));
    print(promptmix_attention_launch(PROMPTMIX_ATTENTION_DELTA, precision, &a, &batch));
    /* Backward must know how many of its blocks are of keys. */
    if (promptmix_attention_launch(PROMPTMIX_ATTENTION_BACKWARD, precision, &a, &batch).kernel != NULL) printf("no tiles were taken\n");
    a.key_tiles = promptmix_attention_key_tiles(&a, &batch);
    a.d_q = 256;
    print(promptmix_attention_launch(PROMPTMIX_ATTENTION_BACKWARD, precision, &a, &batch));
}

/* All tiles and parts: the launcher takes one of them. */
static void gemm(const char *name, int64_t rows, int32_t n, int32_t k, promptmix_epilogue epilogue, int backward) {
    promptmix_gemm_arguments a;
    memset(&a, 0, sizeof a);
    a.n = n;
    a.k = k;
    a.epilogue = epilogue;
    of_case = name;
    for (int32_t parts = 1; parts <= 8; ++parts) {
        print(promptmix_gemm_launch(PROMPTMIX_GEMM_LARGE, backward, parts, rows, &a));
        print(promptmix_gemm_launch(PROMPTMIX_GEMM_MEDIUM, backward, parts, rows, &a));
        print(promptmix_gemm_launch(PROMPTMIX_GEMM_SMALL, backward, parts, rows, &a));
    }
}

static void loss(const char *name, promptmix_precision precision, int32_t rows, int32_t vocabulary, int32_t width, int gradient,
                 int32_t multiprocessors) {
    promptmix_loss_arguments a;
    memset(&a, 0, sizeof a);
    a.rows = rows;
    a.vocabulary = vocabulary;
    a.width = width;
    a.d_hidden = gradient ? 256 : 0;
    promptmix_loss_plan(&a, precision, multiprocessors);
    of_case = name;
    print(promptmix_loss_words_launch(precision, &a));
    print(promptmix_loss_rows_launch(precision, &a));
}

static void cross(const char *name, promptmix_precision precision) {
    static const int32_t targets[] = {0, 3, 5}, sources[] = {0, 70, 150};
    promptmix_cross_arguments a;
    promptmix_batch batch;
    memset(&a, 0, sizeof a);
    memset(&batch, 0, sizeof batch);
    batch.examples = 2;
    batch.target_offsets = targets;
    batch.source_offsets = sources;
    a.heads = 2;
    a.width = 16;
    a.depth = 136;
    a.longest = promptmix_batch_longest(&batch);
    a.fragments = promptmix_cross_fragments(&a, &batch);
    of_case = name;
    for (int step = PROMPTMIX_CROSS_WIDEN; step <= PROMPTMIX_CROSS_SOURCES; ++step) {
        const promptmix_launch launch = promptmix_cross_launch((promptmix_cross_step)step, precision, &a, &batch);
        print(launch);
        /* Widening and narrowing stand in both passes. */
        if (step == PROMPTMIX_CROSS_WIDEN || step == PROMPTMIX_CROSS_NARROW) print(launch);
    }
}

static void mixture(const char *name, promptmix_scorer_kind scorer) {
    promptmix_mix_arguments a;
    memset(&a, 0, sizeof a);
    a.scorer = scorer;
    a.width = 24;
    a.length = 5;
    a.bottleneck_dim = 4;
    a.targets = 1;
    a.runs = 1;
    /* Target prompt, both weights of the bottleneck, and weight and bias of its LayerNorm. */
    a.state_length = 5 * 24 + 2 * 4 * 24 + 2 * 24;
    of_case = name;
    for (int step = PROMPTMIX_MIX_TARGET_KEYS; step <= PROMPTMIX_MIX_D_STATE; ++step) {
        if (step == PROMPTMIX_MIX_TOKEN_SCORES && scorer != PROMPTMIX_SCORER_KIND_TOKEN) continue;
        print(promptmix_mix_launch((promptmix_mix_step)step, &a, 9));
    }
}

int main(int count, char **words) {
    static const int32_t longer[] = {0, 5, 75, 106}, shorter[] = {0, 5, 21, 24}, sources[] = {0, 70, 150, 151};
    const int32_t multiprocessors = count == 2 ? atoi(words[1]) : 0;
    attention("attention", PROMPTMIX_BF16, 3, longer, NULL, 2, 64, 8, 0);
    attention("attention-dropped", PROMPTMIX_BF16, 3, longer, NULL, 3, 72, 0, 1);
    attention("attention-f32", PROMPTMIX_F32, 3, longer, NULL, 2, 64, 8, 0);
    attention("attention-short", PROMPTMIX_BF16, 3, shorter, NULL, 2, 64, 8, 0);
    attention("attention-short-dropped", PROMPTMIX_BF16, 3, shorter, NULL, 3, 72, 0, 1);
    attention("attention-apart", PROMPTMIX_BF16, 3, shorter, sources, 2, 64, 0, 0);
    gemm("gemm-plain", 106, 136, 264, PROMPTMIX_EPILOGUE_PLAIN, 0);
    gemm("gemm-float", 106, 136, 264, PROMPTMIX_EPILOGUE_FLOAT, 0);
    gemm("gemm-deep", 9, 64, 2048, PROMPTMIX_EPILOGUE_PLAIN, 0);
    gemm("gemm-backward", 106, 264, 136, PROMPTMIX_EPILOGUE_ACCUMULATE, 1);
    loss("loss", PROMPTMIX_BF16, 37, 501, 136, 0, multiprocessors);
    loss("loss-gradient", PROMPTMIX_BF16, 37, 501, 1032, 1, multiprocessors);
    loss("loss-f32", PROMPTMIX_F32, 3, 101, 24, 1, multiprocessors);
    cross("cross", PROMPTMIX_BF16);
    cross("cross-f32", PROMPTMIX_F32);
    mixture("mix", PROMPTMIX_SCORER_KIND_BOTTLENECK);
    mixture("mix-token", PROMPTMIX_SCORER_KIND_TOKEN);

    promptmix_decode_arguments decode;
    memset(&decode, 0, sizeof decode);
    decode.heads = 3;
    decode.width = 24;
    of_case = "decode";
    print(promptmix_decode_launch(PROMPTMIX_BF16, &decode, 5));

    promptmix_optimizer_arguments optimizer;
    memset(&optimizer, 0, sizeof optimizer);
    optimizer.length = 5000;
    optimizer.blocks = promptmix_optimizer_blocks(optimizer.length);
    optimizer.runs = 1;
    of_case = "optimizer";
    print(promptmix_optimizer_launch(0, &optimizer));
    print(promptmix_optimizer_launch(1, &optimizer));

    promptmix_final_norm_backward_arguments norm;
    memset(&norm, 0, sizeof norm);
    norm.width = 72;
    of_case = "rows";
    print(promptmix_rows_launch("norm", "final_norm_bf16", 106));
    print(promptmix_final_norm_backward_launch(&norm, 106));
    print(promptmix_rows_launch("feed_forward", "gate_bf16", 106));
    print(promptmix_rows_launch("feed_forward", "row_inner", 106));
    print(promptmix_rows_launch("feed_forward", "row_squares", 106));

    promptmix_sequences_arguments lengths;
    memset(&lengths, 0, sizeof lengths);
    lengths.target_capacity = 600;
    of_case = "sequences";
    print(promptmix_sequences_launch(0, &lengths));
    print(promptmix_sequences_launch(1, &lengths));
    return 0;
}
