"""What the generators of the golden artefacts share: determinism, random weights, ten AdamW steps.

Run a generator with the peers' Python: `tests/bench/.venv/bin/python tests/golden/esm2/generate.py`.
Nothing here knows the program under test.
"""

import hashlib
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import torch
from safetensors.torch import save_file

LIMIT_BYTES = 500_000
LR, BETAS, EPS, WEIGHT_DECAY = 4e-4, (0.9, 0.98), 1e-8, 0.01


def deterministic(seed):
    """One thread, float32, deterministic algorithms; returns a seeded generator."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(seed)
    return torch.Generator().manual_seed(seed)


def store(path, tensors):
    """Writes contiguous copies in safetensors (metadata as transformers writes it), at most 500 KB."""
    save_file({k: v.detach().clone().contiguous() for k, v in tensors.items()}, path, {"format": "pt"})
    os.chmod(path, 0o644)
    size = os.path.getsize(path)
    assert size < LIMIT_BYTES, f"{path}: {size} bytes, the limit is {LIMIT_BYTES}"
    digest = hashlib.sha256(open(path, "rb").read()).hexdigest()[:16]
    print(f"{os.path.relpath(path)}  {size} bytes  {digest}")


def gradients(named_parameters, prefix="grad."):
    """Every gradient under its parameter's name; a parameter that took no part has none."""
    return {prefix + n: p.grad for n, p in named_parameters if p.grad is not None}


def adamw_steps(named_parameters, loss_of, steps=10, clip=1.0, lr=LR):
    """`steps` steps of torch.optim.AdamW on one batch, decay on every parameter.

    Returns the losses before each step, the gradient norms before clipping, and the weights after
    the last step. The per-tensor implementation is used: the fused one may round otherwise.
    """
    named = list(named_parameters)
    optimiser = torch.optim.AdamW(
        [p for _, p in named], lr=lr, betas=BETAS, eps=EPS, weight_decay=WEIGHT_DECAY, foreach=False, fused=False
    )
    losses, norms = [], []
    for _ in range(steps):
        optimiser.zero_grad(set_to_none=True)
        loss = loss_of()
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_([p for _, p in named], clip))
        optimiser.step()
        losses.append(loss.detach())
    out = {"after." + n: p.detach().clone() for n, p in named}
    out["losses"] = torch.stack(losses)
    out["grad_norms"] = torch.stack([n.detach() for n in norms])
    return out


def deviation(small, large):
    """Largest |float32 - float64| over the largest |float64|, tensor by tensor; the worst and its name."""
    worst = (0.0, "")
    for name, value in large.items():
        scale = value.double().abs().max().clamp_min(1e-30)
        worst = max(worst, (((small[name].double() - value.double()).abs().max() / scale).item(), name))
    return worst
