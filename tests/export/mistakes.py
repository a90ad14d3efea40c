"""What can be got wrong when the functions of libpromptmix are called: a line each, of code and text."""

import ctypes
import sys

from attention import Driver
from promptmix_kernels import AdamWReport, AttentionStruct, Handle, Kernels, Library, PromptmixError, Sequences

library = Library(sys.argv[1], sys.argv[2])


def refused(call):
    try:
        call()
    except PromptmixError as error:
        print(error.code, error)
    else:
        sys.exit("it was taken")


refused(lambda: Handle(library, "kernels", library.abi + 1, None))
cuda = ctypes.CDLL("libcuda.so.1")
cuda.cuInit(0)
refused(lambda: Kernels(library, None))
driver = Driver()
kernels = Kernels(library, driver.stream.value)


def sequences(*ends, count=None):
    ends = (ctypes.c_int32 * len(ends))(*ends)
    return Handle(library, "sequences", kernels.address, ends, None, len(ends) - 1 if count is None else count)


refused(lambda: library.call("attention_forward", None, ctypes.byref(AttentionStruct())))
refused(lambda: sequences(0, 5, 3))
refused(lambda: sequences(1, 5, 9))
refused(lambda: sequences(0, 5, count=-1))
two = Sequences(kernels, [0, 2, 5])
memory = driver.poison(2 * 5 * 16)


def attention(**changed):
    fields = dict.fromkeys(("q", "k", "v", "o", "log_sum_exp"), memory)
    fields.update(sequences=two.address, q_stride=16, kv_stride=16, heads=2, width=8, softmax_scale=1.0)
    fields.update(changed)
    return AttentionStruct(**fields)


for changed in (
    {"sequences": None},
    {"q": 0},
    {"q_stride": -16},
    {"q_stride": 8, "kv_stride": 8},
    {"precision": 7},
    {"causal": 2},
    {"softmax_scale": 0.0},
    {"width": 136, "heads": 1, "q_stride": 136, "kv_stride": 136},
):
    refused(lambda: kernels.call("attention_forward", ctypes.byref(attention(**changed))))
refused(lambda: Handle(library, "linear", kernels.address, 5, 16, 12))
labels = (ctypes.c_uint32 * 1)(20)
refused(lambda: Handle(library, "cross_entropy", kernels.address, labels, None, 1, 20, 8))
adamw = Handle(library, "adamw", kernels.address, 8)
count = ctypes.c_int32()
refused(lambda: kernels.call("adamw_reports", adamw.address, (AdamWReport * 1)(), 1, ctypes.byref(count)))

# Handles of the primary context, called while another is current.
primary, other, now = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
cuda.cuCtxGetCurrent(ctypes.byref(primary))
if cuda.cuCtxCreate_v4(ctypes.byref(other), None, 0, 0) != 0:
    sys.exit("no second context")
three = Sequences(kernels, [0, 1, 2, 3])
cuda.cuCtxGetCurrent(ctypes.byref(now))
print("the context that was current still is" if now.value == other.value else "another context is current")

# A handle of that context, which its owner destroys.
stream = ctypes.c_void_p()
cuda.cuStreamCreate(ctypes.byref(stream), 1)
own = Kernels(library, stream.value)
four = Sequences(own, [0, 4])
del four, own
cuda.cuStreamDestroy_v2(stream)
print("a context of the caller's own" if cuda.cuCtxDestroy_v2(other) == 0 else "the context was destroyed before")
cuda.cuCtxSetCurrent(primary)
del two, three, adamw, kernels
driver.close()
