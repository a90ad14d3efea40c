#include "dropout.cuh"
#include "number.cuh"
extern "C" __global__ void probe() {}
