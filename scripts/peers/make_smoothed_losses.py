"""Writes tests/ops/smoothed_losses.json: PyTorch's cross entropy with label smoothing, and z-loss on top.

    python scripts/peers/make_smoothed_losses.py > tests/ops/smoothed_losses.json

In f64, of f32 operands. The file names the version that made it.
"""

import json

import torch

ROWS, WORDS, WIDTH = 5, 37, 8
torch.manual_seed(11)
hidden = torch.randn(ROWS, WIDTH).mul(0.9).float()
head = torch.randn(WORDS, WIDTH).float()
# Not centred, so that the mean of the head's rows is not near zero.
head += 0.2
labels = torch.tensor([0, 36, 7, 7, 20])
cases = []
for smoothing, z_loss in [(0.0, 0.0), (0.1, 0.0), (0.0, 0.01), (0.25, 0.05)]:
    h = hidden.double().requires_grad_()
    logits = h @ head.double().T
    losses = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none")
    losses = losses + z_loss * torch.logsumexp(logits, -1) ** 2
    losses.sum().backward()
    cases.append({
        "label_smoothing": smoothing,
        "z_loss": z_loss,
        "losses": losses.tolist(),
        "d_hidden": h.grad.flatten().tolist(),
    })
print(json.dumps({
    "torch": torch.__version__,
    "width": WIDTH,
    "hidden": hidden.flatten().tolist(),
    "head": head.flatten().tolist(),
    "labels": labels.tolist(),
    "cases": cases,
}))
