"""Every kernel of the same ATTEMPT step in PyTorch + transformers, counted without running it: what scripts/predict-step
compares promptmix with.

  count_step.py [--out FILE]        t5-small and t5-base, B 32 and B 4, SST-2 lengths padded to the longest, bf16

The step (forward, backward, AdamW) runs eagerly on the meta device under a TorchDispatchMode, so shapes are real and
nothing is computed. An operator that is no view counts as one kernel, with the bytes of its inputs and outputs (what is
broadcast once; of a table that is looked up, the rows) and the multiply-adds of products. Attention counts as one fused
kernel forward and one backward, which is what a GPU runs at best. In PyTorch's favour: copies to the device, waits for
it, and the further kernels of composite operators are left out.
Writes, for each case, rows [operator, bytes, multiply-adds, how often]. Needs torch and transformers.
"""

import argparse, collections, json, os

import torch, transformers
from torch.utils._python_dispatch import TorchDispatchMode
from make_fixtures import Attempt, make_t5

HERE = os.path.dirname(os.path.abspath(__file__))
ap = argparse.ArgumentParser()
ap.add_argument("--out", default=os.path.join(HERE, "eager_step.json"))
a = ap.parse_args()
aten = torch.ops.aten
NO_KERNEL = {aten._unsafe_view, aten.lift_fresh, aten._local_scalar_dense, aten.empty, aten.empty_like, aten.new_empty,
             aten.empty_strided}
LOOKS_UP = {aten.embedding, aten.index, aten.index_select, aten.gather}


def size(t):
    """Bytes of a tensor in memory, what is broadcast once."""
    n = t.element_size()
    for length, stride in zip(t.shape, t.stride()):
        n *= length if stride else 1
    return n


def tensors(tree):
    return [t for t in torch.utils._pytree.tree_leaves(tree) if isinstance(t, torch.Tensor)]


class Count(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.rows = collections.Counter()

    def add(self, name, read, written, macs=0):
        self.rows[name, sum(map(size, read)) + sum(map(size, written)), macs] += 1

    def __torch_dispatch__(self, f, types, args=(), kwargs=None):
        if f is aten._local_scalar_dense.default and args[0].is_meta:
            return False  # "is nothing masked?"
        out = f(*args, **(kwargs or {}))
        op, read, written = f._overloadpacket, tensors((args, kwargs)), tensors(out)
        view = any(r.alias_info is not None and not r.alias_info.is_write for r in f._schema.returns)
        if view or op in NO_KERNEL or f.namespace != "aten" or not any(t.is_meta for t in read + written):
            return out
        if not written:  # foreach operators return nothing and write their first list
            written = tensors(args[0])
        if op in LOOKS_UP:
            read = [t for t in read if not t.is_floating_point()] + written
        macs = 0
        if op in (aten.mm, aten.bmm):
            macs = args[0].numel() * args[1].shape[-1]
        elif op in (aten.addmm, aten.baddbmm):
            macs = args[1].numel() * args[2].shape[-1]
        self.add(f._schema.name.removeprefix("aten::"), read, written, macs)
        return out


class Attention(torch.autograd.Function):
    """One fused kernel forward and one backward, which keeps log-sum-exp and draws the scores again."""

    @staticmethod
    def forward(ctx, q, k, v, bias, count):
        with torch.utils._python_dispatch._disable_current_modes():
            o, lse = torch.empty_like(q), q.new_empty(q.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(q, k, v, o, lse)
        ctx.bias, ctx.count = bias, count
        ctx.macs = q.numel() * k.shape[-2]
        count.add("fused attention", [q, k, v, bias], [o, lse], 2 * ctx.macs)
        return o

    @staticmethod
    def backward(ctx, d_o):
        q, k, v, o, lse = ctx.saved_tensors
        with torch.utils._python_dispatch._disable_current_modes():
            grads = [torch.empty_like(t) for t in (q, k, v)]
        ctx.count.add("fused attention backward", [q, k, v, o, lse, d_o, ctx.bias], grads, 5 * ctx.macs)
        return *grads, None, None


def case(dims, batch):
    t5 = make_t5(dims).bfloat16()
    net = Attempt(t5, m=100, pool_mask=True)
    for p in net.trainables().values():
        p.data = p.data.to(torch.bfloat16)
    net.sources = net.sources.to(torch.bfloat16)
    net = net.to("meta")
    lengths = [int(x) for x in open(os.path.join(HERE, "sst2_lengths.txt"))][:batch]
    longest = max(lengths)
    ids = torch.empty(batch, longest, dtype=torch.long, device="meta")
    labels = torch.empty(batch, 2, dtype=torch.long, device="meta")
    opt = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=1e-3, foreach=True)
    count = Count()
    attention = lambda q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, **_: Attention.apply(
        q, k, v, attn_mask, count
    )
    before, torch.nn.functional.scaled_dot_product_attention = (
        torch.nn.functional.scaled_dot_product_attention,
        attention,
    )
    try:
        with count:
            net(ids, torch.empty_like(ids), labels).backward()
            opt.step()
    finally:
        torch.nn.functional.scaled_dot_product_attention = before
    rows = [[*key, often] for key, often in sorted(count.rows.items())]
    return dict(dims="t5-" + dims, batch=batch, longest=longest, rows=rows)


cases = [case(dims, batch) for dims in ("small", "base") for batch in (32, 4)]
with open(a.out, "w") as f:
    f.write('{"torch": "%s", "transformers": "%s", "cases": [\n' % (torch.__version__, transformers.__version__))
    for i, c in enumerate(cases):
        rows = c.pop("rows")
        f.write(json.dumps(c)[:-1] + ', "rows": [\n' + ",\n".join(map(json.dumps, rows)) + "]}")
        f.write("]}\n" if i + 1 == len(cases) else ",\n")
for c, rows in zip(cases, [x["rows"] for x in json.load(open(a.out))["cases"]]):
    total = [sum(row[i] * row[3] for row in rows) for i in (1, 2)]
    print(c, "kernels", sum(r[3] for r in rows), "GB %.2f" % (total[0] / 1e9), "G multiply-adds %.1f" % (total[1] / 1e9), "rows", len(rows))
