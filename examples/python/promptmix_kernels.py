"""The functions of libpromptmix for Python: ctypes alone, and where PyTorch is installed attention as an autograd function.

    cargo rustc --release --lib --crate-type cdylib --features capi
    promptmix kernels export kernels

    library = Library("target/release/libpromptmix.so", "kernels")
    kernels = Kernels(library, torch.cuda.current_stream().cuda_stream)
    sequences = Sequences(kernels, [0, 5, 75, 106])
    o = attention(kernels, sequences, q, k, v)  # q, k, v: bf16 [106, heads, width] on the GPU

Addresses are integers, as CUdeviceptr is and torch.Tensor.data_ptr() gives them. `promptmix.h` says what each function does.
"""

import ctypes
import json
import pathlib

try:
    import torch
except ImportError:
    torch = None

BF16, F32 = 0, 1


class PromptmixError(RuntimeError):
    """A function of the library that failed: its code, and what the library says."""

    def __init__(self, code, text):
        super().__init__(text)
        self.code = code


class AttentionStruct(ctypes.Structure):
    """`promptmix_attention`."""

    _fields_ = [
        ("sequences", ctypes.c_void_p),
        ("q", ctypes.c_uint64),
        ("k", ctypes.c_uint64),
        ("v", ctypes.c_uint64),
        ("bias", ctypes.c_uint64),
        ("o", ctypes.c_uint64),
        ("log_sum_exp", ctypes.c_uint64),
        ("q_stride", ctypes.c_int64),
        ("kv_stride", ctypes.c_int64),
        ("heads", ctypes.c_int32),
        ("width", ctypes.c_int32),
        ("max_distance", ctypes.c_int32),
        ("causal", ctypes.c_int32),
        ("precision", ctypes.c_int32),
        ("softmax_scale", ctypes.c_float),
    ]


class AttentionGradientStruct(ctypes.Structure):
    """`promptmix_attention_gradient`."""

    _fields_ = [(name, ctypes.c_uint64) for name in ("d_o", "delta", "d_q", "d_k", "d_v")]


class AdamWSettings(ctypes.Structure):
    """`promptmix_adamw_settings`."""

    _fields_ = [
        (name, ctypes.c_double)
        for name in ("learning_rate", "weight_decay", "beta1", "beta2", "epsilon", "max_grad_norm")
    ]


class AdamWReport(ctypes.Structure):
    """`promptmix_adamw_report`."""

    _fields_ = [("gradient_norm", ctypes.c_double), ("applied", ctypes.c_int32), ("padding", ctypes.c_int32)]


_HANDLE, _ADDRESS = ctypes.c_void_p, ctypes.c_uint64
_INTS, _FLOATS = ctypes.POINTER(ctypes.c_int32), ctypes.POINTER(ctypes.c_float)
_NEW = ctypes.POINTER(ctypes.c_void_p)
_FUNCTIONS = {
    "kernels_create": [ctypes.c_uint32, _HANDLE, _NEW],
    "sequences_create": [_HANDLE, _INTS, _INTS, ctypes.c_int32, _NEW],
    "attention_forward": [_HANDLE, ctypes.POINTER(AttentionStruct)],
    "attention_backward": [_HANDLE, ctypes.POINTER(AttentionStruct), ctypes.POINTER(AttentionGradientStruct)],
    "linear_create": [_HANDLE, ctypes.c_int64, ctypes.c_int32, ctypes.c_int32, _NEW],
    "linear_forward": [_HANDLE, _HANDLE, _ADDRESS, _ADDRESS, _ADDRESS, ctypes.c_int32],
    "linear_backward": [_HANDLE, _HANDLE, _ADDRESS, _ADDRESS, _ADDRESS],
    "cross_entropy_create": [
        _HANDLE,
        ctypes.POINTER(ctypes.c_uint32),
        _FLOATS,
        ctypes.c_int32,
        ctypes.c_int32,
        ctypes.c_int32,
        _NEW,
    ],
    "cross_entropy_launch": [_HANDLE, _HANDLE] + [_ADDRESS] * 5,
    "adamw_create": [_HANDLE, ctypes.c_int64, _NEW],
    "adamw_schedule": [_HANDLE, _HANDLE, ctypes.POINTER(AdamWSettings)],
    "adamw_step": [_HANDLE, _HANDLE] + [_ADDRESS] * 4,
    "adamw_reports": [_HANDLE, _HANDLE, ctypes.POINTER(AdamWReport), ctypes.c_int32, _INTS],
}
_DESTROY = ("kernels", "sequences", "linear", "cross_entropy", "adamw")


class Library:
    """The library at `path`, and the interface that `promptmix kernels export` has written to `folder`."""

    def __init__(self, path, folder):
        self._library = ctypes.CDLL(str(path))
        self.abi = json.loads((pathlib.Path(folder) / "promptmix.json").read_text())["abi"]
        self._library.promptmix_last_error.restype = ctypes.c_char_p
        for name, arguments in _FUNCTIONS.items():
            function = getattr(self._library, f"promptmix_{name}")
            function.argtypes, function.restype = arguments, ctypes.c_int
        for name in _DESTROY:
            function = getattr(self._library, f"promptmix_{name}_destroy")
            function.argtypes, function.restype = [_HANDLE], None

    def call(self, name, *arguments):
        """Calls `promptmix_NAME`; what fails is a PromptmixError."""
        code = getattr(self._library, f"promptmix_{name}")(*arguments)
        if code != 0:
            raise PromptmixError(code, self._library.promptmix_last_error().decode())


class Handle:
    """A handle of the library, which ends with this object."""

    def __init__(self, library, kind, *arguments):
        self.library, self.kind, self.address = library, kind, ctypes.c_void_p()
        library.call(f"{kind}_create", *arguments, ctypes.byref(self.address))

    def __del__(self):
        if getattr(self, "address", None):
            getattr(self.library._library, f"promptmix_{self.kind}_destroy")(self.address)
            self.address = None


class Kernels(Handle):
    """The kernels in the current CUDA context, for launches on a stream: a CUstream as an integer, 0 for the default one."""

    def __init__(self, library, stream):
        super().__init__(library, "kernels", library.abi, stream)

    def call(self, name, *arguments):
        """Calls `promptmix_NAME` with these kernels."""
        self.library.call(name, self.address, *arguments)


class Sequences(Handle):
    """How packed rows are cut into sequences: cumulative lengths from 0, of queries and, where they are other rows, of keys."""

    def __init__(self, kernels, cu_seqlens_q, cu_seqlens_k=None):
        queries = [int(end) for end in cu_seqlens_q]
        keys = None if cu_seqlens_k is None else [int(end) for end in cu_seqlens_k]
        if keys is not None and len(keys) != len(queries):
            raise ValueError(f"cu_seqlens_k: expected {len(queries)} numbers, as of queries, found {len(keys)}")
        array = ctypes.c_int32 * len(queries)
        super().__init__(
            kernels.library,
            "sequences",
            kernels.address,
            array(*queries),
            None if keys is None else array(*keys),
            len(queries) - 1,
        )
        self.query_rows = queries[-1]
        self.key_rows = queries[-1] if keys is None else keys[-1]


def _check(what, tensor, shape, dtype, device):
    """Fails unless a tensor is of that shape, with heads side by side in a row of a multiple of 8 numbers."""
    if tuple(tensor.shape) != shape or tensor.dtype != dtype or tensor.device != device:
        found = f"{tuple(tensor.shape)} of {tensor.dtype} on {tensor.device}"
        raise ValueError(f"{what}: expected {shape} of {dtype} on {device}, found {found}")
    if tensor.stride(2) != 1 or tensor.stride(1) != shape[2]:
        raise ValueError(f"{what}: expected the heads of a row without gaps, found strides {tensor.stride()}")


if torch is not None:

    class _Attention(torch.autograd.Function):
        @staticmethod
        def _struct(tensors, bias, sequences, causal, softmax_scale):
            q, k, v, o, log_sum_exp = tensors
            _, heads, width = q.shape
            return AttentionStruct(
                sequences=sequences.address,
                q=q.data_ptr(),
                k=k.data_ptr(),
                v=v.data_ptr(),
                bias=0 if bias is None else bias.data_ptr(),
                o=o.data_ptr(),
                log_sum_exp=log_sum_exp.data_ptr(),
                q_stride=q.stride(0),
                kv_stride=k.stride(0),
                heads=heads,
                width=width,
                max_distance=0 if bias is None else bias.shape[1] // 2,
                causal=int(causal),
                precision=BF16 if q.dtype == torch.bfloat16 else F32,
                softmax_scale=softmax_scale,
            )

        @staticmethod
        def forward(ctx, q, k, v, bias, kernels, *settings):
            o = torch.empty(q.shape, dtype=q.dtype, device=q.device)
            log_sum_exp = torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)
            tensors = (q, k, v, o, log_sum_exp)
            struct = _Attention._struct(tensors, bias, *settings)
            kernels.call("attention_forward", ctypes.byref(struct))
            ctx.save_for_backward(*tensors, bias)
            ctx.kernels, ctx.settings = kernels, settings
            return o

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, d_o):
            *tensors, bias = ctx.saved_tensors
            q, k, v = tensors[:3]
            d_o, delta = d_o.contiguous(), torch.empty_like(tensors[4])
            # A gradient lies as its input does.
            gradients = [torch.empty_strided(one.shape, one.stride(), dtype=one.dtype, device=one.device) for one in (q, k, v)]
            struct = _Attention._struct(tensors, bias, *ctx.settings)
            addresses = [one.data_ptr() for one in (d_o, delta, *gradients)]
            gradient = AttentionGradientStruct(*addresses)
            ctx.kernels.call("attention_backward", ctypes.byref(struct), ctypes.byref(gradient))
            return (*gradients, None, None, None, None, None)

    def attention(kernels, sequences, q, k, v, bias=None, causal=False, softmax_scale=1.0):
        """softmax(softmax_scale q k^T + bias) v of packed sequences, with gradients of q, k and v. T5's scale is 1, that of most
        other models 1 / sqrt(width).

        q: [query rows, heads, width]; k and v: [key rows, heads, width], of bf16 or, to verify, float32. Columns of a packed qkv
        will do. bias: float32 [heads, 2 * max_distance + 1], without a gradient. The kernels' stream must be the current one.
        """
        rows, heads, width = q.shape
        device, dtype = q.device, q.dtype
        if dtype not in (torch.bfloat16, torch.float32):
            raise ValueError(f"q: expected torch.bfloat16 or torch.float32, found {dtype}")
        _check("q", q, (sequences.query_rows, heads, width), dtype, device)
        _check("k", k, (sequences.key_rows, heads, width), dtype, device)
        _check("v", v, (sequences.key_rows, heads, width), dtype, device)
        if k.stride(0) != v.stride(0):
            k, v = k.contiguous(), v.contiguous()
        if bias is not None:
            fits = bias.dim() == 2 and bias.shape[0] == heads and bias.shape[1] % 2 == 1
            if not (fits and bias.dtype == torch.float32 and bias.device == device and bias.is_contiguous()):
                found = f"{tuple(bias.shape)} of {bias.dtype} on {bias.device}"
                raise ValueError(f"bias: expected ({heads}, an odd number) of torch.float32 on {device}, found {found}")
            if bias.requires_grad:
                raise ValueError("bias: expected one that does not train, as it has no gradient here, found requires_grad")
        return _Attention.apply(q, k, v, bias, kernels, sequences, causal, softmax_scale)
