// Embedding: token rows of the residual stream from the frozen table, the embedding's dropout, and each row's partial sums
// of squares; and the same dropout on the gradient of the prompt rows.
//
//   x[row] = mask(table[id[row]])  on token rows; prompt rows are the mixture's and stay as they are
//   id: the batch's, or where a decoding step's tokens lie on the device already, those
//   partials[row, i] = sum of x[row, 64 i .. 64 i + 63]^2
//
// Shapes: table [V, D] f32, x [rows, D] f32, copy [rows, D] bf16 (none in f32), partials [rows, ceil(D / 64)] f32.
// Grid: a warp a row, four rows a block; rows beyond the batch's exit.
// Bytes: reads 4 D a row and its id, writes 4 D + 2 D + D / 16. Backward keeps nothing: masks are drawn again.
// On sm_80: registers a thread, bytes of shared memory a block, blocks a multiprocessor at once:
//   embed 42 0 10, embed_backward 34 0 12
#include "dependent.cuh"
#include "rows.cuh"

using namespace promptmix;

struct EmbedArguments {
    Descriptor batch;
    const float* table;
    float* x;
    bf16* copy;
    float* partials;
    Mask mask;
    const int* ids;          // [rows] in place of the batch's, or null
    int side;
    int width;
    int vocabulary;          // V, for ids
    int padding;
};

extern "C" __global__ void __launch_bounds__(128) embed(EmbedArguments arguments) {
    wait_for_earlier_launches();
    const Batch batch{arguments.batch};
    const int row = blockIdx.x * ROW_WARPS + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= batch.rows(arguments.side)) return;
    const int width = arguments.width;
    int id;
    if (arguments.ids == nullptr) {
        id = batch.id(arguments.side, row);
    } else {
        // The launch before may have written it: an ordinary load. No number leads out of the table.
        id = static_cast<int>(min(static_cast<uint32_t>(arguments.ids[row]), static_cast<uint32_t>(arguments.vocabulary - 1)));
    }
    if (id < 0) return;
    const MaskRow mask = mask_of_row(arguments.mask, batch, arguments.side, row);
    float* const x = arguments.x + static_cast<int64_t>(row) * width;
    const float* const from = arguments.table + static_cast<int64_t>(id) * width;
    for (int start = 0; start < width; start += 32 * FLOAT_COLUMNS) {
        const int column = start + lane * FLOAT_COLUMNS;
        Columns<FLOAT_COLUMNS> c = {};
        if (column < width) {
            c = load_columns<FLOAT_COLUMNS>(from + column);
            drop(c, mask, column);
            store_columns(x + column, c);
            if (arguments.copy != nullptr) store_columns(arguments.copy + static_cast<int64_t>(row) * width + column, c);
        }
        write_partials(arguments.partials, row, width, column, c);
    }
}

struct EmbedBackwardArguments {
    Descriptor batch;
    float* d_x;
    Mask mask;
    int width;
    int padding;
};

extern "C" __global__ void __launch_bounds__(128) embed_backward(EmbedBackwardArguments arguments) {
    wait_for_earlier_launches();
    const Batch batch{arguments.batch};
    const int prompt_row = blockIdx.x * ROW_WARPS + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (prompt_row >= batch.rows(ENCODER, PROMPT)) return;
    const int row = batch.row_of_prompt_row(prompt_row);
    const MaskRow mask = mask_of_row(arguments.mask, batch, ENCODER, row);
    float* const d_x = arguments.d_x + static_cast<int64_t>(row) * arguments.width;
    for (int column = lane * FLOAT_COLUMNS; column < arguments.width; column += 32 * FLOAT_COLUMNS) {
        Columns<FLOAT_COLUMNS> c = load_columns<FLOAT_COLUMNS>(d_x + column);
        drop(c, mask, column);
        store_columns(d_x + column, c);
    }
}
