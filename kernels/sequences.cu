// Descriptors of other lengths, written on the device: what the host would have copied there, from cumulative lengths that the
// host does not know. So a captured graph can begin with the lengths of its batch.
//
//   offset[0] = 0,  offset[b + 1] = min(capacity, the largest of cumulative[0 .. b + 1])
//   example[row] = b where offset[b] <= row < offset[b + 1];  tiles: ceil((offset[b + 1] - offset[b]) / 64) of each example b
//
// Cumulative lengths that do not begin at 0, fall, or exceed the capacity set `refused`: what is beyond the capacity is cut
// off, and nothing outside of the descriptor's room is written, whatever the numbers are.
// Shapes: targets and sources [B + 1] i32, sources null where the encoder's rows are no one's business; first_tiles [2, B + 1] i32,
// a scratch; the descriptor as kernels/batch.cuh has it.
// Grid: sequence_offsets a block of 256 threads a side, which goes through the examples 256 at a time. sequence_rows x over rows or
// tiles, whichever are more, 256 a block, y over sides; a thread finds the example of its row, and of its tile, by bisection.
// Bytes: reads 4 B a side, writes 4 B + 4 rows + 32 tiles. Backward keeps nothing.
// On sm_80: registers a thread, bytes of shared memory a block, blocks a multiprocessor at once:
//   sequence_offsets 22 2048 8, sequence_rows 22 0 8
#include "batch.cuh"
#include "dependent.cuh"

using namespace promptmix;

struct SequencesArguments {
    Descriptor batch;
    int* data;               // the descriptor's array, which these kernels write
    const int* targets;      // [B + 1] first rows of the decoder's examples, and their end
    const int* sources;      // the same of the encoder's, or null
    int* first_tiles;        // [2, B + 1]: the first tile of an example, and the end
    int* refused;            // [1], set where the lengths are not what they should be
    int target_capacity;     // rows of the decoder that there is room for
    int source_capacity;
    int target_tiles;        // and tiles
    int source_tiles;
};

constexpr int THREADS = 256;

namespace {

// One side of the descriptor.
struct Place {
    const int* cumulative;
    int capacity, most_tiles, count, offsets, example, tiles;
    int* first_tiles;

    __device__ Place(const SequencesArguments& arguments, int side) {
        const Descriptor& of = arguments.batch;
        const bool encoder = side == ENCODER;
        cumulative = encoder ? arguments.sources : arguments.targets;
        capacity = encoder ? arguments.source_capacity : arguments.target_capacity;
        most_tiles = encoder ? arguments.source_tiles : arguments.target_tiles;
        count = encoder ? ENCODER_ROWS : DECODER_ROWS;
        offsets = encoder ? of.encoder_offsets : of.decoder_offsets;
        example = encoder ? of.encoder_example : of.decoder_example;
        tiles = encoder ? of.encoder_tiles : of.decoder_tiles;
        first_tiles = arguments.first_tiles + side * (of.examples + 1);
    }
};

// The example whose range `at` lies in: the last that begins at or before it. Empty ones before it begin there too.
__device__ __forceinline__ int example_of(const int* first, int examples, int at) {
    int low = 0, high = examples;
    while (high - low > 1) {
        const int middle = (low + high) / 2;
        if (first[middle] <= at) low = middle;
        else high = middle;
    }
    return low;
}

}  // namespace

extern "C" __global__ void __launch_bounds__(THREADS) sequence_offsets(SequencesArguments arguments) {
    wait_for_earlier_launches();
    __shared__ int ends[THREADS], counts[THREADS];
    const Place place(arguments, blockIdx.x);
    if (place.cumulative == nullptr) return;
    const int thread = threadIdx.x, examples = arguments.batch.examples;
    int* const offsets = arguments.data + place.offsets;
    int end = 0, tiles = 0;  // of the examples before
    if (thread == 0) {
        offsets[0] = 0;
        place.first_tiles[0] = 0;
        if (place.cumulative[0] != 0) *arguments.refused = 1;
    }
    for (int from = 0; from < examples; from += THREADS) {
        const int example = from + thread;
        int own = end;
        if (example < examples) {
            const int given = place.cumulative[example + 1];
            if (given < place.cumulative[example] || given > place.capacity) *arguments.refused = 1;
            own = max(end, min(given, place.capacity));
        }
        ends[thread] = own;
        __syncthreads();
        for (int step = 1; step < THREADS; step *= 2) {
            const int before = thread >= step ? ends[thread - step] : 0;
            __syncthreads();
            ends[thread] = max(ends[thread], before);
            __syncthreads();
        }
        const int start = thread == 0 ? end : ends[thread - 1];
        counts[thread] = (ends[thread] - start + ATTENTION_TILE - 1) / ATTENTION_TILE;
        __syncthreads();
        for (int step = 1; step < THREADS; step *= 2) {
            const int before = thread >= step ? counts[thread - step] : 0;
            __syncthreads();
            counts[thread] += before;
            __syncthreads();
        }
        if (example < examples) {
            offsets[example + 1] = ends[thread];
            place.first_tiles[example + 1] = tiles + counts[thread];
        }
        end = ends[THREADS - 1];
        tiles += counts[THREADS - 1];
        __syncthreads();
    }
    if (thread == 0) arguments.data[place.count] = end;
}

extern "C" __global__ void __launch_bounds__(THREADS) sequence_rows(SequencesArguments arguments) {
    wait_for_earlier_launches();
    const Place place(arguments, blockIdx.y), other(arguments, 1 - blockIdx.y);
    if (place.cumulative == nullptr) return;
    const int at = blockIdx.x * THREADS + threadIdx.x, examples = arguments.batch.examples;
    const int* const offsets = arguments.data + place.offsets;
    if (at < place.capacity) {
        arguments.data[place.example + at] = at < offsets[examples] ? example_of(offsets, examples, at) : 0;
    }
    if (at >= place.most_tiles) return;
    int4 entry = make_int4(-1, -1, -1, -1), rest = entry;
    if (at < place.first_tiles[examples]) {
        const int example = example_of(place.first_tiles, examples, at);
        const int* const others = arguments.data + other.offsets;
        const int row = offsets[example], other_row = others[example];
        entry = make_int4(example, (at - place.first_tiles[example]) * ATTENTION_TILE, row, offsets[example + 1] - row);
        rest = make_int4(other_row, others[example + 1] - other_row, 0, 0);
    }
    int4* const to = reinterpret_cast<int4*>(arguments.data + place.tiles + at * TILE_ENTRY);
    to[0] = entry;
    to[1] = rest;
}
