/* Prints the places and the array of a small batch's descriptor. */
#include <stdio.h>
#include <stdlib.h>

#include "promptmix.h"

int main(void) {
    static const int32_t sources[] = {0, 3, 5}, targets[] = {0, 1, 3};
    static const int32_t source_ids[] = {-1, 7, 8, -1, 9}, target_ids[] = {0, 0, 4}, labels[] = {3, 4, 5};
    static const float weights[] = {0.5f, 1.0f, 2.0f};
    promptmix_batch batch;
    memset(&batch, 0, sizeof batch);
    batch.examples = 2;
    batch.prompt_length = 1;
    batch.source_offsets = sources;
    batch.target_offsets = targets;
    batch.source_ids = source_ids;
    batch.target_ids = target_ids;
    batch.labels = labels;
    batch.weights = weights;
    const int64_t length = promptmix_batch_length(&batch);
    int32_t *const array = malloc((size_t)length * sizeof *array);
    if (array == NULL) return 1;
    memset(array, 0x55, (size_t)length * sizeof *array);
    const promptmix_descriptor of = promptmix_batch_write(&batch, array);
    if (of.data != 0 || of.examples != 2 || of.prompt_length != 1) return 1;
    printf("%d %d %d %d %d %d %d %d %d %d %d %d %d %d %d\n", of.encoder_offsets, of.decoder_offsets, of.encoder_example,
           of.decoder_example, of.encoder_ids, of.decoder_ids, of.labels, of.row_weights, of.example_index, of.example_run,
           of.example_target, of.pooled_padding, of.encoder_tiles, of.prompt_tiles, of.decoder_tiles);
    for (int64_t i = 0; i < length; ++i) printf("%d ", array[i]);
    free(array);
    return 0;
}
