// What the products for compute capability 9.0 take: tensor maps beside the argument of all products.
#pragma once
#include "gemm.cuh"
#include "hopper.cuh"

namespace promptmix {

struct GemmHopperArguments {
    TensorMap a;             // [rows, k]
    TensorMap weight;        // [n, k], or backward [k, n]
    GemmArguments of;
    int rows;                // that the matrices of rows have room for: no fewer than the batch's
    int head_columns;        // of C, a multiple of 64, where A has k columns a head; 0 where it has k
};

}  // namespace promptmix
