"""Writes tests/fixtures/torch: small files as PyTorch saves them, which the tests of the reader open.

Usage: python scripts/peers/torch_files.py (PyTorch 2 needed). The numbers follow tests/pretrained/tiny_checkpoint.rs.
"""

import collections
import os
import pathlib

import torch

FOLDER = pathlib.Path(__file__).parents[2] / "tests" / "fixtures" / "torch"
VOCABULARY, WIDTH, HEAD, FEED_FORWARD, HEADS, BUCKETS = 24, 8, 3, 10, 5, 6
ENCODER_LAYERS, DECODER_LAYERS = 2, 1


def shapes():
    """Names and shapes in the order of the model's computation."""
    attention = HEADS * HEAD
    yield "shared.weight", (VOCABULARY, WIDTH)
    for stack, layers in (("encoder", ENCODER_LAYERS), ("decoder", DECODER_LAYERS)):
        kinds = ["SelfAttention"] if stack == "encoder" else ["SelfAttention", "EncDecAttention"]
        for block in range(layers):
            for index, kind in enumerate(kinds):
                layer = f"{stack}.block.{block}.layer.{index}"
                yield f"{layer}.layer_norm.weight", (WIDTH,)
                for projection in "qkv":
                    yield f"{layer}.{kind}.{projection}.weight", (attention, WIDTH)
                yield f"{layer}.{kind}.o.weight", (WIDTH, attention)
                if block == 0 and index == 0:
                    yield f"{layer}.{kind}.relative_attention_bias.weight", (BUCKETS, HEADS)
            layer = f"{stack}.block.{block}.layer.{len(kinds)}"
            yield f"{layer}.layer_norm.weight", (WIDTH,)
            yield f"{layer}.DenseReluDense.wi.weight", (FEED_FORWARD, WIDTH)
            yield f"{layer}.DenseReluDense.wo.weight", (WIDTH, FEED_FORWARD)
        yield f"{stack}.final_layer_norm.weight", (WIDTH,)


def values(number, shape):
    """What tiny_checkpoint::value gives for tensor `number`."""
    count = int(torch.tensor(shape).prod())
    index = torch.arange(count)
    return (((number * 31 + index * 7) % 255) / 64.0 - 2.0).reshape(shape)


def state_dict(dtype):
    """As a T5 gives it: the embedding under three names in one storage, attributes beside the items."""
    state = collections.OrderedDict()
    for number, (name, shape) in enumerate(shapes()):
        tensor = values(number, shape).to(dtype)
        if name.endswith("wo.weight"):
            # As checkpoints converted from TensorFlow have it: the transposed view of a contiguous matrix.
            tensor = tensor.t().contiguous().t()
        state[name] = tensor
        if name == "shared.weight":
            state["encoder.embed_tokens.weight"] = tensor
            state["decoder.embed_tokens.weight"] = tensor
    state._metadata = collections.OrderedDict({"": {"version": 1}})
    return state


class Command:
    """Unpickled by Python this would run a command."""

    def __reduce__(self):
        return os.system, ("echo executed",)


def main():
    FOLDER.mkdir(parents=True, exist_ok=True)
    for dtype, name in ((torch.float32, "f32"), (torch.bfloat16, "bf16"), (torch.float16, "f16")):
        torch.save(state_dict(dtype), FOLDER / f"state_dict_{name}.bin")
    legacy = {"prompt": values(1, (3, 4))}
    torch.save(legacy, FOLDER / "before_1_6.bin", _use_new_zipfile_serialization=False)
    bare = values(2, (5, 4))
    torch.save(bare, FOLDER / "bare.pt")
    torch.save(torch.nn.Parameter(bare), FOLDER / "parameter.pt")
    torch.save(bare, FOLDER / "bare_protocol_4.pt", pickle_protocol=4)
    torch.save(bare.double(), FOLDER / "double.pt")
    torch.save(bare[None], FOLDER / "batch_of_one.pt")
    torch.save(torch.stack([bare, bare]), FOLDER / "batch_of_two.pt")
    # Rows 1 to 4, every second column: neither contiguous nor dense.
    torch.save(values(3, (6, 8))[1:5, ::2], FOLDER / "slice.pt")
    torch.save(torch.ones(1).expand(1000, 1000), FOLDER / "repeated.pt")
    torch.save(torch.arange(6), FOLDER / "integers.pt")
    torch.save({"epoch": 3, "state_dict": {"prompt": bare}, "arguments": Command()}, FOLDER / "nested.pt")
    torch.save(Command(), FOLDER / "command.pt")
    torch.save(torch.nn.Linear(2, 2), FOLDER / "module.pt")
    torch.save([bare, bare], FOLDER / "list.pt")
    torch.jit.script(torch.nn.Linear(2, 2)).save(FOLDER / "script.pt")


if __name__ == "__main__":
    main()
