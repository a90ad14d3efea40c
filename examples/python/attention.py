"""Self attention over packed sequences from Python, against sums by hand: with ctypes alone, and where PyTorch finds a GPU with
its tensors and its autograd too; then a product and a step of AdamW.

    cargo rustc --release --lib --crate-type cdylib --features capi
    promptmix kernels export kernels
    python examples/python/attention.py target/release/libpromptmix.so kernels
"""

import ctypes
import math
import random
import struct
import sys

import promptmix_kernels
from promptmix_kernels import (
    BF16,
    AdamWReport,
    AdamWSettings,
    AttentionGradientStruct,
    AttentionStruct,
    Handle,
    Kernels,
    Library,
    PromptmixError,
    Sequences,
)

ENDS, HEADS, WIDTH, MAX_DISTANCE = [0, 3, 25], 2, 8, 2
SOFTMAX_SCALE = WIDTH**-0.5
ROWS, TOTAL = ENDS[-1], HEADS * WIDTH


def to_bf16(number):
    """The nearest number of bf16, the even one of two, as bits."""
    (bits,) = struct.unpack("<I", struct.pack("<f", number))
    return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16


def from_bf16(bits):
    return struct.unpack("<f", struct.pack("<I", bits << 16))[0]


def numbers(count, key):
    """Numbers from -1 to 1 that bf16 has."""
    source = random.Random(key)
    return [from_bf16(to_bf16(source.uniform(-1.0, 1.0))) for _ in range(count)]


def near(what, found, expected, bound):
    """Fails on another length, NaN, zeros, and on what is farther off than so much of the largest."""
    largest = max(abs(number) for number in expected)
    off = max(abs(one - other) if one == one else math.inf for one, other in zip(found, expected))
    print(f"{what}: off by {off:.2g} of {largest:.2g}")
    if len(found) != len(expected) or not largest > 0.0 or not off <= bound * largest:
        sys.exit(f"{what}: expected {len(expected)} numbers, off by at most {bound * largest:g}")


def by_hand(q, k, v, bias, d_o):
    """o and the gradients of q, k and v, each a list of rows."""
    zeros = lambda: [[0.0] * TOTAL for _ in range(ROWS)]
    o, d_q, d_k, d_v = zeros(), zeros(), zeros(), zeros()
    for first, end in zip(ENDS, ENDS[1:]):
        for row in range(first, end):
            for head in range(HEADS):
                columns = range(head * WIDTH, (head + 1) * WIDTH)
                weights = []
                for key in range(first, end):
                    near_key = max(-MAX_DISTANCE, min(MAX_DISTANCE, key - row)) + MAX_DISTANCE
                    score = sum(q[row][c] * k[key][c] for c in columns)
                    weights.append(math.exp(SOFTMAX_SCALE * score + bias[head * (2 * MAX_DISTANCE + 1) + near_key]))
                weights = [weight / sum(weights) for weight in weights]
                for c in columns:
                    o[row][c] = sum(weight * v[first + j][c] for j, weight in enumerate(weights))
                delta = sum(o[row][c] * d_o[row][c] for c in columns)
                for key, weight in enumerate(weights, first):
                    d_score = SOFTMAX_SCALE * weight * (sum(d_o[row][c] * v[key][c] for c in columns) - delta)
                    for c in columns:
                        d_q[row][c] += d_score * k[key][c]
                        d_k[key][c] += d_score * q[row][c]
                        d_v[key][c] += weight * d_o[row][c]
    return o, d_q, d_k, d_v


class Driver:
    """As much of the CUDA driver as this needs: a context, a stream, memory and copies."""

    def __init__(self):
        self._cuda = ctypes.CDLL("libcuda.so.1")
        self.memory = []
        context, self.stream = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuInit", 0)
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), 0)
        self._call("cuCtxSetCurrent", context)
        self._call("cuStreamCreate", ctypes.byref(self.stream), 1)

    def _call(self, name, *arguments):
        code = getattr(self._cuda, name)(*arguments)
        if code != 0:
            sys.exit(f"{name}: error {code}")

    def upload(self, data):
        at = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(at), ctypes.c_size_t(len(data)))
        self._call("cuMemcpyHtoD_v2", at, ctypes.c_char_p(data), ctypes.c_size_t(len(data)))
        self.memory.append(at)
        return at.value

    def bf16(self, values):
        return self.upload(struct.pack(f"<{len(values)}H", *map(to_bf16, values)))

    def floats(self, values):
        return self.upload(struct.pack(f"<{len(values)}f", *values))

    def poison(self, size):
        """Memory full of NaN: what is not written is found."""
        return self.upload(b"\xff" * size)

    def _read(self, at, size):
        data = ctypes.create_string_buffer(size)
        self._call("cuStreamSynchronize", self.stream)
        self._call("cuMemcpyDtoH_v2", data, ctypes.c_uint64(at), ctypes.c_size_t(size))
        return data.raw

    def read_bf16(self, at, count):
        return [from_bf16(bits) for bits in struct.unpack(f"<{count}H", self._read(at, 2 * count))]

    def read_floats(self, at, count):
        return list(struct.unpack(f"<{count}f", self._read(at, 4 * count)))

    def close(self):
        for at in self.memory:
            self._call("cuMemFree_v2", at)
        self._call("cuStreamDestroy_v2", self.stream)
        self._call("cuDevicePrimaryCtxRelease_v2", 0)


def rows_of(values):
    return [values[row * TOTAL : (row + 1) * TOTAL] for row in range(ROWS)]


def flat(rows):
    return [number for row in rows for number in row]


def with_ctypes(library, inputs, expected):
    q, k, v, bias, d_o = inputs
    driver = Driver()
    kernels = Kernels(library, driver.stream.value)
    sequences = Sequences(kernels, ENDS)
    size = 2 * ROWS * TOTAL
    attention = AttentionStruct(
        sequences=sequences.address,
        q=driver.bf16(q),
        k=driver.bf16(k),
        v=driver.bf16(v),
        bias=driver.floats(bias),
        o=driver.poison(size),
        log_sum_exp=driver.poison(4 * ROWS * HEADS),
        q_stride=TOTAL,
        kv_stride=TOTAL,
        heads=HEADS,
        width=WIDTH,
        max_distance=MAX_DISTANCE,
        precision=BF16,
        softmax_scale=SOFTMAX_SCALE,
    )
    gradient = AttentionGradientStruct(
        driver.bf16(d_o), driver.poison(4 * ROWS * HEADS), *(driver.poison(size) for _ in range(3))
    )
    kernels.call("attention_forward", ctypes.byref(attention))
    kernels.call("attention_backward", ctypes.byref(attention), ctypes.byref(gradient))
    places = [attention.o, gradient.d_q, gradient.d_k, gradient.d_v]
    # A result is rounded to bf16, by up to 1 / 256 of itself, and so are the weights that its sum is of; a gradient's sum is of two
    # such products.
    for name, place, rows, roundings in zip(("o", "d_q", "d_k", "d_v"), places, expected, (2, 4, 4, 4)):
        near(name, driver.read_bf16(place, ROWS * TOTAL), flat(rows), roundings / 256)

    attention.q += 2
    try:
        kernels.call("attention_forward", ctypes.byref(attention))
    except PromptmixError as error:
        print(f"refused: {error}")
    else:
        sys.exit("an address that is off by one number was taken")

    product(driver, library, kernels)
    loss(driver, library, kernels)
    step(driver, library, kernels)
    # Handles end before their stream and context.
    del sequences, kernels
    driver.close()


def product(driver, library, kernels):
    rows, out, width = 5, 16, 24
    a, weight, d_z = numbers(rows * width, 7), numbers(out * width, 8), numbers(rows * out, 9)
    linear = Handle(library, "linear", kernels.address, rows, out, width)
    z, d_a, at_weight = driver.poison(4 * rows * out), driver.poison(2 * rows * width), driver.bf16(weight)
    kernels.call("linear_forward", linear.address, driver.bf16(a), at_weight, z, promptmix_kernels.F32)
    kernels.call("linear_backward", linear.address, driver.bf16(d_z), at_weight, d_a)
    dot = lambda i, j: sum(a[i * width + c] * weight[j * width + c] for c in range(width))
    # Sums of 24 products in f32, each of which is exact.
    near("z", driver.read_floats(z, rows * out), [dot(i, j) for i in range(rows) for j in range(out)], 24 * 2**-23)
    dot = lambda i, c: sum(d_z[i * out + j] * weight[j * width + c] for j in range(out))
    near("d_a", driver.read_bf16(d_a, rows * width), [dot(i, c) for i in range(rows) for c in range(width)], 1 / 256)


def loss(driver, library, kernels):
    rows, vocabulary, width, labels, weights = 3, 20, 16, [4, 19, 0], [1.0, 0.5, 2.0]
    hidden, head = numbers(rows * width, 20), numbers(vocabulary * width, 21)
    cross_entropy = Handle(
        library,
        "cross_entropy",
        kernels.address,
        (ctypes.c_uint32 * rows)(*labels),
        (ctypes.c_float * rows)(*weights),
        rows,
        vocabulary,
        width,
    )
    places = [driver.poison(4 * rows), driver.poison(4 * rows), driver.poison(4 * rows * width)]
    kernels.call("cross_entropy_launch", cross_entropy.address, driver.bf16(hidden), driver.bf16(head), *places)
    losses, d_hidden = [], []
    for row, (label, weight) in enumerate(zip(labels, weights)):
        logits = [sum(hidden[row * width + c] * head[word * width + c] for c in range(width)) for word in range(vocabulary)]
        whole = sum(math.exp(logit) for logit in logits)
        losses.append(math.log(whole) - logits[label])
        p = [math.exp(logit) / whole - (word == label) for word, logit in enumerate(logits)]
        d_hidden += [weight * sum(p[word] * head[word * width + c] for word in range(vocabulary)) for c in range(width)]
    # f32 sums of 16 and of 20 terms; the gradient's weights are rounded to bf16.
    near("loss", driver.read_floats(places[0], rows), losses, 40 * 2**-23)
    near("d_hidden", driver.read_floats(places[2], rows * width), d_hidden, 2 / 256)


def step(driver, library, kernels):
    count, rate = 100, 0.25
    start, gradient = numbers(count, 10), [number or 1.0 for number in numbers(count, 11)]
    adamw = Handle(library, "adamw", kernels.address, count)
    settings = AdamWSettings(rate, 0.0, 0.9, 0.999, 1e-8, math.inf)
    kernels.call("adamw_schedule", adamw.address, ctypes.byref(settings))
    values, zeros = driver.floats(start), [driver.floats([0.0] * count) for _ in range(2)]
    kernels.call("adamw_step", adamw.address, values, driver.floats(gradient), *zeros)
    reports, found = (AdamWReport * 64)(), ctypes.c_int32()
    kernels.call("adamw_reports", adamw.address, reports, 64, ctypes.byref(found))
    if found.value != 1 or reports[0].applied != 1:
        sys.exit(f"expected one step that was applied, found {found.value}")
    near("the gradient's norm", [reports[0].gradient_norm], [math.sqrt(sum(g * g for g in gradient))], 1e-6)
    # The first step moves by the rate, against the gradient, whatever its size.
    near("a step", driver.read_floats(values, count), [s - math.copysign(rate, g) for s, g in zip(start, gradient)], 1e-5)


def with_torch(library, inputs, expected):
    torch = promptmix_kernels.torch
    make = lambda values: torch.tensor(values, dtype=torch.bfloat16, device="cuda").view(ROWS, HEADS, WIDTH)
    q, k, v, bias, d_o = inputs
    q, k, v = (make(values).requires_grad_() for values in (q, k, v))
    bias = torch.tensor(bias, dtype=torch.float32, device="cuda").view(HEADS, -1)
    kernels = Kernels(library, torch.cuda.current_stream().cuda_stream)
    o = promptmix_kernels.attention(kernels, Sequences(kernels, ENDS), q, k, v, bias, softmax_scale=SOFTMAX_SCALE)
    o.backward(make(d_o))
    for name, tensor, rows, roundings in zip(("o", "d_q", "d_k", "d_v"), (o, q.grad, k.grad, v.grad), expected, (2, 4, 4, 4)):
        near(f"torch's {name}", tensor.detach().float().flatten().tolist(), flat(rows), roundings / 256)


def main():
    if len(sys.argv) != 3:
        sys.exit("usage: attention.py LIBRARY FOLDER: libpromptmix.so, and what `promptmix kernels export FOLDER` has written")
    library = Library(sys.argv[1], sys.argv[2])
    q, k, v, d_o = (numbers(ROWS * TOTAL, key) for key in range(4))
    bias = numbers(HEADS * (2 * MAX_DISTANCE + 1), 4)
    inputs, expected = (q, k, v, bias, d_o), by_hand(*map(rows_of, (q, k, v)), bias, rows_of(d_o))
    with_ctypes(library, inputs, expected)
    torch = promptmix_kernels.torch
    if torch is None or not torch.cuda.is_available():
        print("skipped: tensors of PyTorch, which is not installed or finds no GPU")
    else:
        with_torch(library, inputs, expected)
    print("all as by hand")


if __name__ == "__main__":
    main()
