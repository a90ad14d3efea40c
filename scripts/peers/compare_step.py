"""promptmix's training step against the same step in PyTorch, in turn, as ratios of medians.

Usage: compare_step.py [PEER_STEP.py] [--rounds 3] [--promptmix target/release/promptmix] [--lengths FILE]
PEER_STEP.py times the PyTorch step and prints one JSON line. Needs torch, transformers, safetensors. Rounds alternate
between the two, so that a machine whose speed drifts drifts for both.
"""

import argparse, json, pathlib, statistics, subprocess, sys

parser = argparse.ArgumentParser()
parser.add_argument("peer", nargs="?", default=str(pathlib.Path(__file__).with_name("peer_step.py")))
parser.add_argument("--promptmix", default="target/release/promptmix")
parser.add_argument("--lengths")
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--repeats", type=int, default=5)
arguments = parser.parse_args()


def last_json(command):
    output = subprocess.run(command, capture_output=True, text=True)
    if output.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{output.stderr}")
    return json.loads(output.stdout.strip().splitlines()[-1])


def ours(*flags):
    return last_json([arguments.promptmix, "bench", "step", "--json", "--repeats", str(arguments.repeats), *flags])


def theirs(*flags):
    return last_json([sys.executable, arguments.peer, "--reps", str(arguments.repeats), *flags])


def compare(name, our_flags, their_flags, kinds=("forward", "step")):
    rounds = [(ours(*our_flags), theirs(*their_flags)) for _ in range(arguments.rounds)]
    for kind in kinds:
        ratios = [mine[kind]["mean_ms"] / peer[kind]["mean_ms"] for mine, peer in rounds]
        fastest = min(m[kind]["min_ms"] for m, _ in rounds) / min(p[kind]["min_ms"] for _, p in rounds)
        medians = [statistics.median(side[kind]["median_ms"] for side in sides) for sides in zip(*rounds)]
        print(
            f"{name} {kind}: promptmix {medians[0]:.0f} ms, PyTorch {medians[1]:.0f} ms, ratio of medians "
            f"{medians[0] / medians[1]:.3f}, of means by round {', '.join(f'{r:.3f}' for r in ratios)}, of fastest {fastest:.3f}",
            flush=True,
        )
    return rounds


equal = ["--batch-size", "8", "--source-lengths", "128", "--target-length", "8"]
for dropout in ("0", "0.1"):
    compare(f"equal shapes, dropout {dropout}", [*equal, "--dropout", dropout], ["--dropout", dropout])
if arguments.lengths:
    ragged = ["--batch-size", "32", "--source-lengths", arguments.lengths, "--target-length", "2"]
    for pad in ("longest", "256"):
        flags = ["--batch", "32", "--lengths", arguments.lengths, "--pad", pad, "--target", "2"]
        compare(f"real lengths, PyTorch padded to {pad}", ragged, flags, kinds=("step",))
mine, peer = ours(*equal, "--no-product"), theirs("--no-gemm")
print(
    f"peak memory: promptmix {mine['peak_mib']:.0f} MiB ({mine['idle_mib']:.0f} idle, {mine['loaded_mib']:.0f} with the model), "
    f"PyTorch {peer['peak_mib']:.0f} MiB, ratio {mine['peak_mib'] / peer['peak_mib']:.3f}"
)
print(f"start to the end of the first step: {mine['seconds_to_first_step']:.2f} s")
print(f"share of this machine's product rate: {ours(*equal)['share_of_product_rate']:.2f}")
