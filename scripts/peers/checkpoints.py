"""Writes tests/fixtures/checkpoints.json: what transformers 4 and 5 write for T5s of each kind, and the losses they give.

Usage: python scripts/peers/checkpoints.py FOLDER, first where transformers 4 is installed, then where 5 is (PyTorch and
safetensors needed). 4 makes each model and saves it below FOLDER; 5 opens what 4 saved and saves it again, as users do.
Weights follow a formula on names and indices, so that the file holds configurations, which of the doubtful tensors are
stored, and one loss each: the mean cross entropy after a fixed soft prompt.
"""

import json
import pathlib
import sys

import numpy
import safetensors.torch
import torch
import transformers

GOLDEN = pathlib.Path(__file__).parents[2] / "tests" / "fixtures" / "checkpoints.json"
SIZES = dict(vocab_size=40, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_decoder_layers=1, num_heads=3)
COMMON = dict(SIZES, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1)
GATED = dict(COMMON, feed_forward_proj="gated-gelu")
# The keys of the published Flan models beside the sizes.
FLAN = dict(GATED, n_positions=512, output_past=True, initializer_factor=1.0, relative_attention_num_buckets=32)
BYTES = dict(GATED, vocab_size=384, tokenizer_class="ByT5Tokenizer")
KINDS = {
    "v1.0": ("t5", COMMON),
    "v1.1": ("t5", GATED),
    "flan": ("t5", FLAN),
    "mt5": ("mt5", GATED),
    "byt5": ("t5", BYTES),
}
# The output matrix is the embedding, or another one, or a second copy of the embedding under an untied configuration.
HEADS = ("tied", "own", "copy")
PROMPT_ROWS = 3
# Source and target ids of each example.
EXAMPLES = [([5, 17, 23, 9, 1], [31, 12, 1]), ([38, 6, 1], [7, 1])]
DOUBTFUL = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")


def values(name, shape):
    """Multiples of 1/256, which every format holds: a hash of the name (FNV-1a) and of the index."""
    seed = 2166136261
    for byte in name.encode():
        seed = ((seed ^ byte) * 16777619) % 2**32
    index = numpy.arange(int(numpy.prod(shape)), dtype=numpy.uint64)
    mixed = ((index * 2654435761 + seed) % 2**32 * 2246822519) % 2**32
    byte = (mixed >> 24).astype(numpy.float32) / 256
    if len(shape) == 1:
        numbers = byte + 0.5
    elif name in ("shared.weight", "prompt"):
        numbers = 4 * byte - 2
    else:
        numbers = byte - 0.5
    return torch.from_numpy(numbers.astype(numpy.float32).reshape(shape))


def fill(model, head):
    for name, parameter in model.named_parameters():
        parameter.data.copy_(values(name, parameter.shape))
    if head == "copy":
        model.lm_head.weight.data.copy_(model.shared.weight.data)


def loss(model):
    model = model.eval().double()
    prompt = values("prompt", (PROMPT_ROWS, SIZES["d_model"])).double()
    total, tokens = 0.0, 0
    with torch.no_grad():
        for source, target in EXAMPLES:
            embedded = torch.cat([prompt, model.shared(torch.tensor(source))])[None]
            out = model(inputs_embeds=embedded, labels=torch.tensor([target]), use_cache=False)
            total += float(out.loss) * len(target)
            tokens += len(target)
    return total / tokens


def classes(family):
    if family == "mt5":
        return transformers.MT5Config, transformers.MT5ForConditionalGeneration
    return transformers.T5Config, transformers.T5ForConditionalGeneration


def record(folder, model_class, entries, kind, head):
    stored = safetensors.torch.load_file(folder / "model.safetensors")
    for name, tensor in stored.items():
        expected = "shared.weight" if name in DOUBTFUL and not (name == "lm_head.weight" and head == "own") else name
        assert torch.equal(tensor, values(expected, tensor.shape)), f"{folder}: {name}"
    entries.append(
        {
            "kind": kind,
            "head": head,
            "saved_by": transformers.__version__,
            "loss": round(loss(model_class.from_pretrained(folder)), 7),
            "stored": [name for name in DOUBTFUL if name in stored],
            "config": json.loads((folder / "config.json").read_text()),
        }
    )


def main():
    work = pathlib.Path(sys.argv[1])
    major = int(transformers.__version__.split(".")[0])
    entries = []
    for kind, (family, settings) in KINDS.items():
        config_class, model_class = classes(family)
        for head in HEADS if kind in ("v1.0", "v1.1", "mt5") else ("own",):
            name = f"{kind}-{head}"
            saved = work / str(major) / name
            if major == 4:
                model = model_class(config_class(**settings, tie_word_embeddings=head == "tied"))
                fill(model, head)
                model.save_pretrained(saved)
            else:
                model_class.from_pretrained(work / "4" / name).save_pretrained(saved)
            record(saved, model_class, entries, kind, head)
    if major == 5:
        # What 4 had no configuration for: a scaled output whose matrix is not the embedding.
        model = transformers.T5ForConditionalGeneration.from_pretrained(work / "4" / "v1.0-own")
        model.config.scale_decoder_outputs = True
        model.save_pretrained(work / "5" / "v1.0-scaled")
        record(work / "5" / "v1.0-scaled", transformers.T5ForConditionalGeneration, entries, "v1.0 scaled", "own")
    (work / f"{major}.json").write_text(json.dumps(entries))
    if major == 5:
        lines = [json.dumps(entry) for entry in json.loads((work / "4.json").read_text()) + entries]
        GOLDEN.write_text("[\n" + ",\n".join(lines) + "\n]\n")


if __name__ == "__main__":
    main()
