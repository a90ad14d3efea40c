"""The same ATTEMPT step in PyTorch + transformers, timed: what promptmix is compared with.

  peer_step.py --dims small --batch 8 --source 128 --target 8                 equal shapes
  peer_step.py --dims small --batch 32 --lengths FILE --pad longest|256       real lengths, one integer a line
Options: --device cpu|cuda --dtype f32|bf16 --compile --compile-mode reduce-overhead --threads 2 --reps 9 --v11 --dropout P --no-gemm
--attention sdpa|eager (scaled_dot_product_attention with T5's bias as its mask, or products and a softmax)
--peft (PEFT prompt tuning instead)
Prints one JSON line: median, min and max in ms of forward and of a whole step (forward, backward, AdamW), tokens/s, counted
GFLOP, GFLOP/s, this machine's GEMM rate just before and after, peak memory in MiB, versions.
Needs torch, transformers, safetensors (and peft for --peft).
"""

import argparse, itertools, json, os, resource, statistics, sys, time

import torch, transformers
from make_fixtures import Attempt, make_t5, batch

ap = argparse.ArgumentParser()
ap.add_argument("--dims", default="small", choices=["small", "base"])
ap.add_argument("--batch", type=int, default=8)
ap.add_argument("--source", type=int, default=128)
ap.add_argument("--target", type=int, default=8)
ap.add_argument("--prompt", type=int, default=100)
ap.add_argument("--lengths")
ap.add_argument("--pad", default="longest")
ap.add_argument("--device", default="cpu")
ap.add_argument("--dtype", default="f32", choices=["f32", "bf16"])
ap.add_argument("--compile", action="store_true")
ap.add_argument("--compile-mode", default="default", choices=["default", "reduce-overhead"], help="reduce-overhead: CUDA graphs")
ap.add_argument("--threads", type=int, default=2)
ap.add_argument("--reps", type=int, default=9)
ap.add_argument("--attention", choices=["sdpa", "eager"], help="sdpa where this transformers has it for T5")
ap.add_argument("--v11", action="store_true")
ap.add_argument("--peft", action="store_true")
ap.add_argument("--dropout", type=float, default=0.0)
ap.add_argument("--no-gemm", action="store_true", help="skip the GEMM rate, so that peak memory is the step's alone")
a = ap.parse_args()
torch.set_num_threads(a.threads)
dev = torch.device(a.device)
cuda = dev.type == "cuda"

def sync():
    if cuda:
        torch.cuda.synchronize()

def gemm_rate(n=2048 if not cuda else 8192):
    dt = torch.bfloat16 if cuda else torch.float32
    x, y = torch.randn(n, n, device=dev, dtype=dt), torch.randn(n, n, device=dev, dtype=dt)
    best = 0
    for _ in range(4):
        sync()
        t = time.perf_counter()
        x @ y
        sync()
        best = max(best, 2 * n**3 / (time.perf_counter() - t) / 1e9)
    return best

has_sdpa = getattr(transformers.T5PreTrainedModel, "_supports_sdpa", False)
a.attention = a.attention or ("sdpa" if has_sdpa else "eager")
if a.attention == "sdpa" and not has_sdpa:
    sys.exit(f"transformers {transformers.__version__} has no SDPA for T5: take --attention eager, or transformers 5")
t5 = make_t5(a.dims, a.v11, attn=a.attention)
if a.dropout:
    for module in t5.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = a.dropout
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = a.dropout
    t5.train()
if a.dtype == "bf16":
    t5 = t5.bfloat16()
V = t5.config.vocab_size
if a.peft:
    from peft import PromptTuningConfig, TaskType, get_peft_model

    net = get_peft_model(
        t5,
        PromptTuningConfig(task_type=TaskType.SEQ_2_SEQ_LM, num_virtual_tokens=a.prompt, num_transformer_submodules=1),
    ).to(dev)
    loss_of = lambda i, m, l: net(input_ids=i, attention_mask=m, labels=l).loss
else:
    net = Attempt(t5, m=a.prompt, pool_mask=True).to(dev)
    for p in net.trainables().values():
        p.data = p.data.to(t5.dtype)
    net.sources = net.sources.to(t5.dtype)
    loss_of = lambda i, m, l: net(i, m, l)
opt = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=1e-3)
if a.compile:
    loss_of = torch.compile(loss_of, mode=a.compile_mode)

if a.lengths:
    ns = [int(x) for x in open(a.lengths)]

    def batches():
        for i in itertools.count(0, a.batch):
            l = [ns[(i + j) % len(ns)] for j in range(a.batch)]
            S = max(l) if a.pad == "longest" else int(a.pad)
            if max(l) > S:
                sys.exit(f"--pad {S} holds no source of {max(l)} tokens")
            g = torch.Generator().manual_seed(i)
            ids = torch.randint(2, V, (a.batch, S), generator=g)
            mask = (torch.arange(S)[None] < torch.tensor(l)[:, None]).long()
            yield ids * mask, mask, torch.randint(2, V, (a.batch, a.target), generator=g), sum(l)

else:

    def batches():
        for i in itertools.count():
            yield *batch(V, a.batch, a.source, a.target, seed=i), a.batch * a.source

def count(S):
    c = t5.config
    d, i, f, L, Ld, B, T = (
        c.d_model,
        c.num_heads * c.d_kv,
        c.d_ff,
        c.num_layers,
        c.num_decoder_layers,
        a.batch,
        a.target,
    )
    nff = 3 if c.is_gated_act else 2
    lin = (
        L * B * S * (8 * d * i + nff * 2 * d * f)
        + Ld * (B * T * (12 * d * i + nff * 2 * d * f) + B * S * 4 * d * i)
        + B * T * 2 * d * V
    )
    att = L * B * 4 * S * S * i + Ld * B * (4 * T * T * i + 4 * T * S * i)
    return lin + att, 2 * lin + 3 * att

def run(kind):
    times, tokens, flops = [], 0, 0
    src = batches()
    for r in range(a.reps + 2):
        ids, mask, lab, real = next(src)
        ids, mask, lab = ids.to(dev), mask.to(dev), lab.to(dev)
        sync()
        t = time.perf_counter()
        if kind == "forward":
            with torch.no_grad():
                loss_of(ids, mask, lab)
        else:
            opt.zero_grad(set_to_none=True)
            loss_of(ids, mask, lab).backward()
            opt.step()
        sync()
        dt = time.perf_counter() - t
        if r >= 2:
            times.append(dt)
            tokens += real + a.batch * a.target
            flops += count(ids.shape[1] + a.prompt)[0 if kind == "forward" else 1]
    s = sum(times)
    return dict(
        median_ms=statistics.median(times) * 1e3,
        min_ms=min(times) * 1e3,
        max_ms=max(times) * 1e3,
        mean_ms=s / len(times) * 1e3,
        tokens_per_s=tokens / s,
        counted_gflop=flops / len(times) / 1e9,
        gflop_per_s=flops / s / 1e9,
    )

g0 = 0 if a.no_gemm else gemm_rate()
out = dict(
    peer="peft prompt tuning" if a.peft else "attempt",
    args=vars(a),
    forward=run("forward"),
    step=run("step"),
    gemm_gflop_per_s=[g0, 0 if a.no_gemm else gemm_rate()],
    peak_mib=(
        (torch.cuda.max_memory_allocated() / 2**20)
        if cuda
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    ),
    torch=torch.__version__,
    transformers=transformers.__version__,
    device=torch.cuda.get_device_name() if cuda else "cpu",
)
print(json.dumps(out))
