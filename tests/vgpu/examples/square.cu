// Squares numbers on device 0 through CUDA's runtime, and prints from the kernel. It knows nothing of the virtual GPU.
//
// nvcc -cudart shared -gencode arch=compute_80,code=compute_80 --compress-mode=none -o /tmp/square tests/vgpu/examples/square.cu
// cargo run -p vgpu -- run -- /tmp/square
#include <cstdio>

__managed__ int count = 3;
__constant__ float least = 1;

__global__ void square(float* numbers) {
  if (threadIdx.x >= count) return;
  numbers[threadIdx.x] *= numbers[threadIdx.x];
  if (numbers[threadIdx.x] == least) printf("thread %d of %u has %.1f\n", threadIdx.x, blockDim.x, numbers[threadIdx.x]);
}

int main() {
  float numbers[3] = {1, 2, 3};
  float* memory;
  cudaError_t error = cudaMalloc(&memory, sizeof numbers);
  if (!error) error = cudaMemcpy(memory, numbers, sizeof numbers, cudaMemcpyHostToDevice);
  printf("before\n");
  square<<<1, 32>>>(memory);
  if (!error) error = cudaDeviceSynchronize();
  if (!error) error = cudaMemcpy(numbers, memory, sizeof numbers, cudaMemcpyDeviceToHost);
  if (error) {
    printf("%s: %s\n", cudaGetErrorName(error), cudaGetErrorString(error));
    return 1;
  }
  printf("%.1f %.1f %.1f\n", numbers[0], numbers[1], numbers[2]);
  square<<<1, 2048>>>(memory);
  printf("%s\n", cudaGetErrorName(cudaGetLastError()));
}
