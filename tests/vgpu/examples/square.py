"""Squares numbers on device 0 through ctypes. It knows nothing of the virtual GPU.

cargo run -p vgpu -- run -- python3 tests/vgpu/examples/square.py
"""

import ctypes

PTX = b"""
.version 7.0
.target sm_80
.address_size 64
.visible .entry square(.param .u64 p)
{
  .reg .b32 %r<2>;
  .reg .f32 %f<2>;
  .reg .b64 %rd<4>;
  ld.param.u64 %rd1, [p];
  mov.u32 %r1, %tid.x;
  mul.wide.u32 %rd2, %r1, 4;
  add.s64 %rd3, %rd1, %rd2;
  ld.global.f32 %f1, [%rd3];
  mul.f32 %f1, %f1, %f1;
  st.global.f32 [%rd3], %f1;
  ret;
}
"""

cuda = ctypes.CDLL("libcuda.so.1")


def call(name, *arguments):
    code = getattr(cuda, name)(*arguments)
    if code != 0:
        raise SystemExit(f"{name}: error {code}")


device, context = ctypes.c_int(), ctypes.c_void_p()
call("cuInit", 0)
call("cuDeviceGet", ctypes.byref(device), 0)
call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
call("cuCtxSetCurrent", context)
module, function, memory = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_uint64()
call("cuModuleLoadData", ctypes.byref(module), PTX)
call("cuModuleGetFunction", ctypes.byref(function), module, b"square")
numbers = (ctypes.c_float * 3)(1, 2, 3)
call("cuMemAlloc_v2", ctypes.byref(memory), ctypes.c_size_t(12))
call("cuMemcpyHtoD_v2", memory, numbers, ctypes.c_size_t(12))
arguments = (ctypes.c_void_p * 1)(ctypes.addressof(memory))
call("cuLaunchKernel", function, 1, 1, 1, 3, 1, 1, 0, None, arguments, None)
call("cuMemcpyDtoH_v2", numbers, memory, ctypes.c_size_t(12))
print(list(numbers))
