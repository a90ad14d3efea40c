"""Attention in PyTorch at the shapes of `promptmix bench kernels`, for its --peer:

  kernel_peers.py --shapes t5-base --json peers.json
  promptmix bench kernels --shapes t5-base --device cuda --peer peers.json --json kernels.json

Options: --shapes t5-small,t5-base,t5-large,t5-3b or a TOML file of shapes, --repeats 20, --json FILE.
Peers, in bf16: scaled_dot_product_attention with T5's position bias as its mask, on a batch padded to its longest row;
flex_attention, compiled, with the bias as its score_mod and block masks for the lengths; flash_attn_varlen_func of
flash-attn where it is installed, on packed rows and without the bias, which it does not take. Cross attention is the peers'
alone, from projected keys and values, without the projections that ours absorbs.
Backward is the gradient with respect to q, k and v; each bias is frozen. Cold passes follow a write of twice the level-2
cache, warm ones a pass of the same; times are of CUDA events, p20, p50 and p80 in microseconds.
Without a GPU it says what it lacks and writes nothing. Needs torch with CUDA, and Python 3.11 or newer.
"""

import argparse, json, os, sys, tempfile, tomllib

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PRESETS = os.path.join(ROOT, "src/bench/presets.toml")
MAX_DISTANCE = 127

ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
ap.add_argument("--shapes", default="t5-base")
ap.add_argument("--repeats", type=int, default=20)
ap.add_argument("--json", required=True)
a = ap.parse_args()
if a.repeats < 1:
    sys.exit(f"--repeats: expected at least 1, found {a.repeats}")


def shapes(named):
    presets = tomllib.load(open(PRESETS, "rb"))["shape"]
    chosen = [shape for shape in presets if shape["name"] == named]
    if chosen:
        return chosen
    if not os.path.exists(named):
        sys.exit(f"--shapes: expected {', '.join(shape['name'] for shape in presets)}, or a TOML file, found {named}")
    return tomllib.load(open(named, "rb"))["shape"]


chosen = [shape for named in a.shapes.split(",") for shape in shapes(named)]
try:
    import torch
except ImportError as error:
    sys.exit(f"no peers: {error}; install torch with CUDA")
if not torch.cuda.is_available():
    sys.exit(f"no peers: torch {torch.__version__} finds no GPU; run it on a machine with one, with a torch that is built for CUDA")

missing = []
try:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    flex = torch.compile(flex_attention)
except ImportError as error:
    flex = None
    missing.append(f"flex_attention: {error}")
try:
    import flash_attn
    from flash_attn import flash_attn_varlen_func
except ImportError as error:
    flash_attn = None
    missing.append(f"flash-attn: {error}")

device = torch.device("cuda")
flush = torch.empty(2 * torch.cuda.get_device_properties(device).L2_cache_size, dtype=torch.uint8, device=device)
SDPA = f"torch {torch.__version__} SDPA"


def spread(times):
    times = sorted(times)
    at = lambda part: times[int((len(times) - 1) * part + 0.5)]
    return {"p20": at(0.2), "p50": at(0.5), "p80": at(0.8)}


def measure(work):
    """Cold and warm passes of work, which launches and waits for nothing."""
    for _ in range(3):
        work()
    cold, warm = [], []
    for _ in range(a.repeats):
        events = [torch.cuda.Event(enable_timing=True) for _ in range(3)]
        # The device is at these while the host issues what is timed.
        for _ in range(4):
            flush.zero_()
        events[0].record()
        work()
        events[1].record()
        work()
        events[2].record()
        torch.cuda.synchronize()
        cold.append(1e3 * events[0].elapsed_time(events[1]))
        warm.append(1e3 * events[1].elapsed_time(events[2]))
    return {"cold_us": spread(cold), "warm_us": spread(warm)}


found = []


def both(shape, kernel, peer, forward, inputs):
    """Measures forward and backward of forward(*inputs)."""
    try:
        with torch.no_grad():
            times = measure(lambda: forward(*inputs))
        found.append({"shape": shape, "kernel": f"{kernel}/forward", "peer": peer, **times})
        inputs = [x.detach().requires_grad_() for x in inputs]
        out = forward(*inputs)
        d_out = torch.randn_like(out)
        times = measure(lambda: torch.autograd.grad(out, inputs, d_out, retain_graph=True))
        found.append({"shape": shape, "kernel": f"{kernel}/backward", "peer": peer, **times})
        print(f"{shape} {kernel}: {peer}", file=sys.stderr, flush=True)
    except Exception as error:  # what a peer cannot do is said, and the others go on
        missing.append(f"{peer} for {kernel} of {shape}: {str(error).splitlines()[0]}")
        print(missing[-1], file=sys.stderr, flush=True)


def attention(shape, kernel, queries, keys, bias, causal):
    """Attention of examples with so many queries and keys each; bias [H, 2·MAX_DISTANCE + 1], or none."""
    heads, width, examples = shape["heads"], shape["head-width"], len(queries)
    longest = [max(queries), max(keys)]
    random = lambda *size: torch.randn(*size, device=device, dtype=torch.bfloat16) * width**-0.25
    padded = [random(examples, heads, rows, width) for rows in (longest[0], longest[1], longest[1])]
    lengths = torch.tensor(keys, device=device)
    places = [torch.arange(rows, device=device) for rows in longest]
    distance = (places[1][None, :] - places[0][:, None]).clamp(-MAX_DISTANCE, MAX_DISTANCE) + MAX_DISTANCE
    mask = torch.zeros(examples, 1, 1, longest[1], device=device)
    mask.masked_fill_(places[1] >= lengths[:, None, None, None], float("-inf"))
    if bias is not None:
        mask = mask + bias[:, distance][None]
    if causal:
        mask = mask.masked_fill(places[1][None, :] > places[0][:, None], float("-inf"))
    mask = mask.expand(examples, -1, longest[0], -1).to(torch.bfloat16).contiguous()
    sdpa = lambda q, k, v: torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)
    both(shape["name"], kernel, SDPA, sdpa, padded)
    if flex:
        score = None
        if bias is not None:
            score = lambda s, b, h, q, k: s + bias[h, (k - q).clamp(-MAX_DISTANCE, MAX_DISTANCE) + MAX_DISTANCE]
        inside = lambda b, h, q, k: (k < lengths[b]) & ((k <= q) if causal else (k >= 0))
        block = create_block_mask(inside, examples, None, longest[0], longest[1], device=device)
        both(shape["name"], kernel, f"torch {torch.__version__} flex_attention",
             lambda q, k, v: flex(q, k, v, score_mod=score, block_mask=block, scale=1.0), padded)
    if flash_attn:
        packed = [random(sum(rows), heads, width) for rows in (queries, keys, keys)]
        starts = [torch.tensor([0, *rows], device=device).cumsum(0).to(torch.int32) for rows in (queries, keys)]
        both(shape["name"], kernel, f"flash-attn {flash_attn.__version__}" + (" without bias" if bias is not None else ""),
             lambda q, k, v: flash_attn_varlen_func(q, k, v, *starts, *longest, softmax_scale=1.0, causal=causal), packed)


for shape in chosen:
    sources = shape["source-lengths"]
    encoder = [shape["prompt-length"] + sources[i % len(sources)] for i in range(shape["examples"])]
    decoder = [shape["target-length"]] * shape["examples"]
    bias = torch.randn(shape["heads"], 2 * MAX_DISTANCE + 1, device=device)
    attention(shape, "encoder_attention", encoder, encoder, bias, False)
    attention(shape, "decoder_attention", decoder, decoder, bias, True)
    attention(shape, "cross_attention", decoder, encoder, None, False)

report = {"schema": "promptmix kernel peers 1", "device": torch.cuda.get_device_name(device), "missing": missing, "kernels": found}
folder = os.path.dirname(os.path.abspath(a.json))
with tempfile.NamedTemporaryFile("w", dir=folder, prefix=".promptmix-", delete=False) as file:
    json.dump(report, file, indent=1)
os.replace(file.name, a.json)
for line in missing:
    print(f"no peer: {line}")
