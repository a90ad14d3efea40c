/* Squares numbers on device 0. It knows nothing of the virtual GPU, and needs no CUDA toolkit to be built.
 *
 * cc -o square tests/vgpu/examples/square.c -ldl
 * cargo run -p vgpu -- run -- ./square
 */
#include <dlfcn.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

static const char ptx[] =
    ".version 7.0\n.target sm_80\n.address_size 64\n.visible .entry square(.param .u64 p)\n{\n"
    ".reg .b32 %r<2>;\n.reg .f32 %f<2>;\n.reg .b64 %rd<4>;\nld.param.u64 %rd1, [p];\nmov.u32 %r1, %tid.x;\n"
    "mul.wide.u32 %rd2, %r1, 4;\nadd.s64 %rd3, %rd1, %rd2;\nld.global.f32 %f1, [%rd3];\n"
    "mul.f32 %f1, %f1, %f1;\nst.global.f32 [%rd3], %f1;\nret;\n}\n";

static void *cuda;

static void *find(const char *name) {
  void *found = dlsym(cuda, name);
  if (!found) {
    fprintf(stderr, "libcuda has no %s\n", name);
    exit(1);
  }
  return found;
}

static void check(const char *what, int code) {
  if (code != 0) {
    fprintf(stderr, "%s: error %d\n", what, code);
    exit(1);
  }
}

int main(void) {
  int device;
  void *context, *module, *function;
  unsigned long long memory;
  float numbers[3] = {1, 2, 3};
  void *arguments[1] = {&memory};
  cuda = dlopen("libcuda.so.1", RTLD_NOW);
  if (!cuda) {
    fprintf(stderr, "%s\n", dlerror());
    return 1;
  }
  check("cuInit", ((int (*)(unsigned))find("cuInit"))(0));
  check("cuDeviceGet", ((int (*)(int *, int))find("cuDeviceGet"))(&device, 0));
  check("cuDevicePrimaryCtxRetain", ((int (*)(void **, int))find("cuDevicePrimaryCtxRetain"))(&context, device));
  check("cuCtxSetCurrent", ((int (*)(void *))find("cuCtxSetCurrent"))(context));
  check("cuModuleLoadData", ((int (*)(void **, const void *))find("cuModuleLoadData"))(&module, ptx));
  check("cuModuleGetFunction", ((int (*)(void **, void *, const char *))find("cuModuleGetFunction"))(&function, module, "square"));
  check("cuMemAlloc", ((int (*)(unsigned long long *, size_t))find("cuMemAlloc_v2"))(&memory, sizeof numbers));
  check("cuMemcpyHtoD", ((int (*)(unsigned long long, const void *, size_t))find("cuMemcpyHtoD_v2"))(memory, numbers, sizeof numbers));
  check("cuLaunchKernel",
        ((int (*)(void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void *, void **, void **))find("cuLaunchKernel"))(
            function, 1, 1, 1, 3, 1, 1, 0, NULL, arguments, NULL));
  check("cuMemcpyDtoH", ((int (*)(void *, unsigned long long, size_t))find("cuMemcpyDtoH_v2"))(numbers, memory, sizeof numbers));
  printf("[%.1f, %.1f, %.1f]\n", numbers[0], numbers[1], numbers[2]);
  return 0;
}
