// Dropout masks: Philox4x32-10 (Salmon et al., SC 2011), the same draws as backend/dropout.rs.
//
// Key = (run seed, site); counter = (step, example's index in its run, row within the example, column / 8). A block of
// 128 bits decides 8 columns, 16 bits each, lowest first: kept iff the word is at least `threshold`, then scaled.
#pragma once
#include <cstdint>
#include "batch.cuh"

namespace promptmix {

// Written by the host before each step; in device memory, so that a captured graph sees every step's own.
struct DropoutStep {
    uint32_t threshold;      // round(p · 65536)
    float scale;             // 1 / (1 - p)
    uint32_t step;
    uint32_t runs;
    uint32_t seeds[1];       // `runs` of them
};

// One site's mask; `step` is null where nothing is dropped.
struct Mask {
    const DropoutStep* step;
    uint32_t site;
    uint32_t padding;
};

__device__ __forceinline__ uint4 philox(uint32_t key0, uint32_t key1, uint4 counter) {
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const uint32_t low0 = counter.x * 0xD2511F53u, high0 = __umulhi(counter.x, 0xD2511F53u);
        const uint32_t low1 = counter.z * 0xCD9E8D57u, high1 = __umulhi(counter.z, 0xCD9E8D57u);
        counter = make_uint4(high1 ^ counter.y ^ key0, low1, high0 ^ counter.w ^ key1, low0);
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    return counter;
}

// The mask of one row: what is constant along it.
struct MaskRow {
    uint32_t seed = 0, site = 0, step = 0, index = 0, row = 0, threshold = 0;
    float scale = 1.0f;
    bool any = false;

    __device__ MaskRow() {}
    // From what differs from row to row, where another has looked it up: `seed`, `index` and `row` of the row's own mask.
    __device__ MaskRow(const Mask& mask, uint32_t seed, uint32_t index, uint32_t row) : any(mask.step != nullptr) {
        if (!any) return;
        this->seed = seed;
        site = mask.site;
        step = mask.step->step;
        this->index = index;
        this->row = row;
        threshold = mask.step->threshold;
        scale = mask.step->scale;
    }
    // Row `row` within example `example` of the batch; head is 0 but for attention probabilities.
    __device__ MaskRow(const Mask& mask, const Batch& batch, int example, int row_in_example, int head = 0)
        : any(mask.step != nullptr) {
        if (!any) return;
        seed = mask.step->seeds[batch.run(example)];
        site = mask.site | head;
        step = mask.step->step;
        index = batch.index(example);
        row = row_in_example;
        threshold = mask.step->threshold;
        scale = mask.step->scale;
    }
    // The 128 bits of columns 8·block .. 8·block + 7.
    __device__ __forceinline__ uint4 draw(int block) const {
        return philox(seed, site, make_uint4(step, index, row, block));
    }
    // What column `lane` (0..7) of a drawn block is multiplied by: `scale` or 0.
    __device__ __forceinline__ float factor(const uint4& drawn, int lane) const {
        const uint32_t pair = lane < 2 ? drawn.x : lane < 4 ? drawn.y : lane < 6 ? drawn.z : drawn.w;
        const uint32_t word = (lane & 1) ? pair >> 16 : pair & 0xffffu;
        return word >= threshold ? scale : 0.0f;
    }
};

// The mask of packed row `row` of a side; nothing is read where nothing is dropped.
__device__ __forceinline__ MaskRow mask_of_row(const Mask& mask, const Batch& batch, int side, int row) {
    if (mask.step == nullptr) return MaskRow();
    const int example = batch.example_of_row(side, row);
    return MaskRow(mask, batch, example, row - batch.offset(side, example));
}

}  // namespace promptmix
