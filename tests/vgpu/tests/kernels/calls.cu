// Functions that stay functions: structures by value and back, results that are dropped, calls in divergent code, and the
// slow paths of the library, which are calls as well.
#include <assert.h>

struct Scaled {
  double weight;
  float values[3];
  int pick;
};

__device__ __noinline__ Scaled make(float base, int pick) {
  Scaled out;
  out.weight = 0.5;
  for (int i = 0; i < 3; i++) out.values[i] = base + i;
  out.pick = pick;
  return out;
}

__device__ __noinline__ float value(Scaled scaled) {
  return scaled.values[scaled.pick % 3] * static_cast<float>(scaled.weight);
}

__device__ __noinline__ bool add(float* to, float number) {
  if (number > 40.f) return false;
  *to += number;
  return true;
}

__device__ __noinline__ float twice(float number, int i) { return value(make(number, i)) + value(make(number, i + 1)); }

// out[i] by i % 3: 1 + in[i], or 1 if in[i] is over 40 | 1 + a picked value | 1 + two picked values.
extern "C" __global__ void calls(const float* in, float* out, double* library, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  assert(in[i] < 100.f);
  out[i] = 1.f;
  if (i % 3 == 0) {
    add(out + i, in[i]);
  } else if (i % 3 == 1) {
    add(out + i, value(make(in[i], i)));
  } else {
    add(out + i, twice(in[i], i));
  }
  const double x = in[i];
  library[2 * i] = pow(x, 1.5);
  library[2 * i + 1] = sin(x * 1e6);
}
