"""The same ATTEMPT step in JAX, timed: jit, bf16 on a GPU, gradients of the trained numbers alone, AdamW.

  peer_step_jax.py --dims base --batch 32 --lengths FILE --target 2 --pad 64      one padded width, one compiled program
  peer_step_jax.py --fixture tests/fixtures/gpu                                   compare loss and gradients with PyTorch's
Options: --dtype bf16|f32 --reps 20 --prompt 100 --v11. Runs on JAX's default device; JAX_PLATFORMS=cpu chooses the CPU.
Prints one JSON line: median, min and max in ms of forward and of a whole step (forward, backward, AdamW), versions, device.
Layers are a Python loop that XLA sees whole. Scores, softmax, norms and the loss are computed in f32, as T5 in PyTorch does.
Needs jax; numpy and safetensors for --fixture.
"""

import argparse, functools, itertools, json, math, statistics, sys, time

import jax, jax.numpy as jnp, numpy as np

DIMS = {
    "small": dict(vocab_size=32128, d_model=512, d_kv=64, d_ff=2048, num_layers=6, num_heads=8),
    "base": dict(vocab_size=32128, d_model=768, d_kv=64, d_ff=3072, num_layers=12, num_heads=12),
}
BUCKETS, FARTHEST, EPSILON = 32, 128, 1e-6

ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
ap.add_argument("--dims", default="small", choices=sorted(DIMS))
ap.add_argument("--batch", type=int, default=8)
ap.add_argument("--source", type=int, default=128)
ap.add_argument("--target", type=int, default=8)
ap.add_argument("--prompt", type=int, default=100)
ap.add_argument("--lengths")
ap.add_argument("--pad", default="64", help="width that every batch is padded to")
ap.add_argument("--dtype", choices=["f32", "bf16"], help="bf16 on a GPU, f32 elsewhere")
ap.add_argument("--reps", type=int, default=9)
ap.add_argument("--v11", action="store_true")
ap.add_argument("--fixture")
a = ap.parse_args()


def norm(x, weight):
    r = jax.lax.rsqrt(jnp.mean(jnp.square(x.astype(jnp.float32)), -1, keepdims=True) + EPSILON)
    return weight * (x.astype(jnp.float32) * r).astype(x.dtype)


def buckets(queries, keys, causal):
    """T5's bucket of key - query for each pair."""
    relative = np.arange(keys)[None] - np.arange(queries)[:, None]
    count = BUCKETS if causal else BUCKETS // 2
    first = np.zeros_like(relative) if causal else (relative > 0) * count
    distance = -np.minimum(relative, 0) if causal else np.abs(relative)
    exact = count // 2
    far = np.log(np.maximum(distance, 1).astype(np.float32) / exact) / math.log(FARTHEST / exact) * (count - exact)
    return first + np.where(distance < exact, distance, np.minimum(exact + far.astype(np.int64), count - 1))


def attention(w, heads, x, source, bias):
    """softmax(q k^T + bias) v without scaling, as T5 has it."""
    split = lambda rows, name: (rows @ w[name]).reshape(*rows.shape[:2], heads, -1)
    q, k, v = split(x, "q"), split(source, "k"), split(source, "v")
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32) + bias
    p = jax.nn.softmax(scores, -1).astype(x.dtype)
    return jnp.einsum("bhqk,bkhd->bqhd", p, v).reshape(*x.shape[:2], -1) @ w["o"]


def feed_forward(w, x):
    if "wi" in w:
        return jax.nn.relu(x @ w["wi"]) @ w["wo"]
    return (jax.nn.gelu(x @ w["wi_0"], approximate=True) * (x @ w["wi_1"])) @ w["wo"]


def stack(w, heads, x, bias, source=None, source_bias=None):
    for layer in w["layers"]:
        h = norm(x, layer["norm"])
        x = x + attention(layer["self"], heads, h, h, bias)
        if source is not None:
            x = x + attention(layer["cross"], heads, norm(x, layer["cross_norm"]), source, source_bias)
        x = x + feed_forward(layer["ff"], norm(x, layer["ff_norm"]))
    return norm(x, w["norm"])


def mix(trained, sources, temperature, embedded, mask):
    x_hat = jnp.where(mask[..., None], embedded, -jnp.inf).max(1)
    prompts = jnp.concatenate([sources, trained["p_target"][None]])
    h = jax.nn.silu(x_hat @ trained["w_down"].T) @ trained["w_up"].T
    centred = h - h.mean(-1, keepdims=True)
    h = centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), -1, keepdims=True) + 1e-5)
    h = h * trained["ln_g"] + trained["ln_b"]
    weights = jax.nn.softmax(h @ prompts.max(1).T / temperature, -1)
    return trained["p_target"] + jnp.einsum("bn,nmd->bmd", weights, prompts)


def loss(trained, frozen, sources, ids, mask, labels, heads, temperature, tied):
    dtype, table = frozen["shared"].dtype, frozen["shared"]
    embedded = table[ids]
    # The mixture in f32, whatever the frozen model is in.
    prompt = mix(trained, sources, temperature, embedded.astype(jnp.float32), mask)
    x = jnp.concatenate([prompt.astype(dtype), embedded], 1)
    seen = jnp.concatenate([jnp.ones((ids.shape[0], prompt.shape[1]), bool), mask], 1)
    hidden = jnp.where(seen, 0.0, jnp.finfo(jnp.float32).min)[:, None, None]
    rows, targets = x.shape[1], labels.shape[1]
    bias_of = lambda side, n, causal: frozen[side]["bias"].astype(jnp.float32)[buckets(n, n, causal)].transpose(2, 0, 1)
    source = stack(frozen["encoder"], heads, x, bias_of("encoder", rows, False) + hidden)
    shifted = jnp.concatenate([jnp.zeros_like(labels[:, :1]), jnp.maximum(labels[:, :-1], 0)], 1)
    later = jnp.where(np.tril(np.ones((targets, targets), bool)), 0.0, jnp.finfo(jnp.float32).min)
    y = stack(frozen["decoder"], heads, table[shifted], bias_of("decoder", targets, True) + later, source, hidden)
    y, head = (y * y.shape[-1] ** -0.5, table) if tied else (y, frozen["lm_head"])
    logits = jnp.einsum("btd,vd->btv", y, head, preferred_element_type=jnp.float32)
    log_p = jax.nn.log_softmax(logits, -1)
    chosen = jnp.take_along_axis(log_p, jnp.maximum(labels, 0)[..., None], -1)[..., 0]
    counted = labels >= 0
    return -(chosen * counted).sum() / counted.sum()


def adamw(trained, moments, gradients, step, rate=1e-3, decay=0.01):
    first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, moments[0], gradients)
    second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, moments[1], gradients)
    unbias = lambda beta: 1 - beta**step
    new = lambda p, m, v: p * (1 - rate * decay) - rate * (m / unbias(0.9)) / (jnp.sqrt(v / unbias(0.999)) + 1e-8)
    return jax.tree.map(new, trained, first, second), (first, second)


def named(tensors, layers, gated):
    """Weights by role, matrices as [in, out], from a checkpoint's names."""
    def take(name):
        return jnp.asarray(tensors[name])

    def side(of, cross):
        out = []
        for i in range(layers):
            block = f"{of}.block.{i}.layer"
            kind = lambda at, name: {k: take(f"{block}.{at}.{name}.{k}.weight").T for k in "qkvo"}
            last = 2 if cross else 1
            inner = ("wi_0", "wi_1", "wo") if gated else ("wi", "wo")
            layer = {
                "norm": take(f"{block}.0.layer_norm.weight"),
                "self": kind(0, "SelfAttention"),
                "ff_norm": take(f"{block}.{last}.layer_norm.weight"),
                "ff": {k: take(f"{block}.{last}.DenseReluDense.{k}.weight").T for k in inner},
            }
            if cross:
                layer.update(cross_norm=take(f"{block}.1.layer_norm.weight"), cross=kind(1, "EncDecAttention"))
            out.append(layer)
        bias = take(f"{of}.block.0.layer.0.SelfAttention.relative_attention_bias.weight")
        return {"layers": out, "bias": bias, "norm": take(f"{of}.final_layer_norm.weight")}

    frozen = {"shared": take("shared.weight"), "encoder": side("encoder", False), "decoder": side("decoder", True)}
    if "lm_head.weight" in tensors:
        frozen["lm_head"] = take("lm_head.weight")
    return frozen


def random_weights(c, gated, random):
    """A checkpoint of such dimensions with made-up numbers."""
    d, inner, f = c["d_model"], c["num_heads"] * c["d_kv"], c["d_ff"]
    matrix = lambda out, width: (random.standard_normal((out, width)) * width**-0.5).astype(np.float32)
    tensors = {"shared.weight": random.standard_normal((c["vocab_size"], d)).astype(np.float32)}
    if gated:
        tensors["lm_head.weight"] = matrix(c["vocab_size"], d)
    for of, last, kinds in [("encoder", 1, ["SelfAttention"]), ("decoder", 2, ["SelfAttention", "EncDecAttention"])]:
        for i in range(c["num_layers"]):
            block = f"{of}.block.{i}.layer"
            for at, kind in enumerate(kinds):
                tensors |= {f"{block}.{at}.{kind}.{k}.weight": matrix(inner, d) for k in "qkv"}
                tensors[f"{block}.{at}.{kind}.o.weight"] = matrix(d, inner)
            for k in ("wi_0", "wi_1") if gated else ("wi",):
                tensors[f"{block}.{last}.DenseReluDense.{k}.weight"] = matrix(f, d)
            tensors[f"{block}.{last}.DenseReluDense.wo.weight"] = matrix(d, f)
            tensors |= {f"{block}.{at}.layer_norm.weight": np.ones(d, np.float32) for at in range(last + 1)}
        bias = random.standard_normal((BUCKETS, c["num_heads"])).astype(np.float32)
        tensors[f"{of}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] = bias
        tensors[f"{of}.final_layer_norm.weight"] = np.ones(d, np.float32)
    return tensors


def check(folder):
    """Loss and gradients against a fixture of PyTorch's, in f32."""
    from safetensors.numpy import load_file

    jax.config.update("jax_default_matmul_precision", "highest")
    fixture, weights = load_file(f"{folder}/fixture.safetensors"), load_file(f"{folder}/model.safetensors")
    config, attempt = json.load(open(f"{folder}/config.json")), json.load(open(f"{folder}/attempt.json"))
    if not attempt["pool_mask"]:
        sys.exit(f"{folder} pools over padding as well, which this peer does not: take tests/fixtures/gpu or gpu_v11")
    gated, tied = config["is_gated_act"], config["tie_word_embeddings"]
    frozen = named(weights, config["num_layers"], gated)
    trained = {k.removeprefix("param."): jnp.asarray(v) for k, v in fixture.items() if k.startswith("param.")}
    of = functools.partial(loss, heads=config["num_heads"], temperature=attempt["temperature"], tied=tied)
    ids, mask, labels = (jnp.asarray(fixture[f"in.{k}"]) for k in ("ids", "mask", "labels"))
    found, gradients = jax.jit(jax.value_and_grad(of))(trained, frozen, jnp.asarray(fixture["sources"]), ids, mask > 0, labels)
    expected = float(fixture["out.loss"])
    apart = {"loss": abs(float(found) - expected) / abs(expected)}
    for k, g in gradients.items():
        e = fixture[f"grad.{k}"]
        apart[k] = float(np.abs(np.asarray(g) - e).max() / np.abs(e).max())
    print(json.dumps(dict(fixture=folder, loss=float(found), expected=expected, apart=apart, jax=jax.__version__)))
    # f32 sums in other orders: 1e-4 of the largest is far beyond them and far below any mistake. NaN fails.
    if not all(value <= 1e-4 for value in apart.values()):
        sys.exit("loss or gradients differ from PyTorch's")


def measure():
    c = DIMS[a.dims] | (dict(small=dict(d_ff=1024, num_layers=8, num_heads=6), base=dict(d_ff=2048))[a.dims] if a.v11 else {})
    random, d = np.random.default_rng(0), c["d_model"]
    platform = jax.default_backend()
    dtype = dict(f32=jnp.float32, bf16=jnp.bfloat16)[a.dtype or ("bf16" if platform == "gpu" else "f32")]
    frozen = jax.tree.map(lambda w: w.astype(dtype), named(random_weights(c, a.v11, random), c["num_layers"], a.v11))
    normal = lambda *shape: jnp.asarray(random.standard_normal(shape).astype(np.float32))
    sources = normal(6, a.prompt, d)
    trained = {
        "p_target": normal(a.prompt, d),
        "w_down": normal(100, d) * d**-0.5,
        "w_up": normal(d, 100) * 0.1,
        "ln_g": jnp.ones(d),
        "ln_b": jnp.zeros(d),
    }
    of = functools.partial(loss, heads=c["num_heads"], temperature=d * math.e, tied=not a.v11)
    lengths = [int(line) for line in open(a.lengths)] if a.lengths else [a.source]
    width = int(a.pad) if a.lengths else a.source

    def batches():
        for i in itertools.count(0, a.batch):
            l = np.array([lengths[(i + j) % len(lengths)] for j in range(a.batch)])
            if l.max() > width:
                sys.exit(f"--pad {width} holds no source of {l.max()} tokens")
            mask = np.arange(width)[None] < l[:, None]
            ids = random.integers(2, c["vocab_size"], (a.batch, width)) * mask
            yield ids, mask, random.integers(2, c["vocab_size"], (a.batch, a.target)), int(l.sum()) + a.batch * a.target

    forward = jax.jit(of)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(trained, moments, count, frozen, sources, ids, mask, labels):
        value, gradients = jax.value_and_grad(of)(trained, frozen, sources, ids, mask, labels)
        return *adamw(trained, moments, gradients, count), value

    def run(kind):
        mine, times, tokens = jax.tree.map(jnp.copy, trained), [], 0
        moments = (jax.tree.map(jnp.zeros_like, mine), jax.tree.map(jnp.zeros_like, mine))
        source = batches()
        for repeat in range(a.reps + 2):
            ids, mask, labels, real = next(source)
            ids, mask, labels = jax.block_until_ready(jax.device_put((ids, mask, labels)))
            begun = time.perf_counter()
            if kind == "forward":
                value = forward(mine, frozen, sources, ids, mask, labels)
            else:
                mine, moments, value = step(mine, moments, jnp.float32(repeat + 1), frozen, sources, ids, mask, labels)
            jax.block_until_ready((mine, value))
            took = time.perf_counter() - begun
            if not math.isfinite(float(value)):
                sys.exit(f"the loss of {kind} {repeat} is {float(value)}")
            if repeat >= 2:
                times.append(took)
                tokens += real
        middle, total = statistics.median(times), sum(times)
        return dict(
            median_ms=middle * 1e3,
            min_ms=min(times) * 1e3,
            max_ms=max(times) * 1e3,
            mean_ms=total / len(times) * 1e3,
            tokens_per_s=tokens / total,
        )

    out = dict(peer="attempt in jax", args=vars(a), dtype=jnp.dtype(dtype).name, forward=run("forward"), step=run("step"))
    print(json.dumps(out | dict(jax=jax.__version__, device=jax.devices()[0].device_kind, platform=platform)))


check(a.fixture) if a.fixture else measure()
