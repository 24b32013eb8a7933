"""Golden artefacts of torch.optim.AdamW itself: given tensors, given gradients, ten steps.

Sizes are odd on purpose (1, 7, 64, 129, 1003). Among the gradients: a whole tensor of zeros at one
step, single zeros, values of 1e-12 and of 1e3, and one tensor that never has a gradient but zeros.
"""

import os
import sys

import torch

here = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(here))
from common import deterministic, deviation, store  # noqa: E402

SIZES, STEPS = [1, 7, 64, 129, 1003], 10
CASES = {
    # as PTM-Mamba trains
    "constant": dict(betas=(0.9, 0.98), eps=1e-8, weight_decay=0.01, lr=[4e-4] * STEPS, clip=None),
    # torch's defaults but no decay, a warm-up and a decline, clipping to norm 1 over all tensors
    "schedule": dict(betas=(0.9, 0.999), eps=1e-6, weight_decay=0.0, clip=1.0,
                     lr=[1e-3 * min((k + 1) / 4, (STEPS - k) / 7) for k in range(STEPS)]),
}


def inputs(generator):
    params = [torch.randn(n, generator=generator) for n in SIZES]
    grads = [torch.randn(STEPS, n, generator=generator) * 0.1 for n in SIZES]
    grads[1].zero_()
    grads[2][3].zero_()
    grads[3][:, ::5] = 0.0
    grads[3][:, 1::5] *= 1e-11
    grads[4][:, ::7] *= 1e4
    return params, grads


def run(params, grads, betas, eps, weight_decay, lr, clip):
    """The weights and moments after each step."""
    params = [torch.nn.Parameter(p.clone()) for p in params]
    optimiser = torch.optim.AdamW(params, lr=lr[0], betas=betas, eps=eps, weight_decay=weight_decay,
                                  foreach=False, fused=False)
    out, norms = {}, []
    for step in range(STEPS):
        for p, g in zip(params, grads):
            p.grad = g[step].clone()
        norms.append(torch.nn.utils.clip_grad_norm_(params, clip if clip else float("inf")))
        optimiser.param_groups[0]["lr"] = lr[step]
        optimiser.step()
        if step in (0, STEPS - 1):
            for i, p in enumerate(params):
                out[f"step{step + 1}.param.{i}"] = p.detach().clone()
                out[f"step{step + 1}.exp_avg.{i}"] = optimiser.state[p]["exp_avg"].clone()
                out[f"step{step + 1}.exp_avg_sq.{i}"] = optimiser.state[p]["exp_avg_sq"].clone()
    return out | {"grad_norms": torch.stack(norms)}


if __name__ == "__main__":
    params, grads = inputs(deterministic(50))
    given = {f"param.{i}": p for i, p in enumerate(params)} | {f"grad.{i}": g for i, g in enumerate(grads)}
    store(os.path.join(here, "inputs.safetensors"), given)
    for name, case in CASES.items():
        result = run(params, grads, **case)
        numbers = {"lr": torch.tensor(case["lr"], dtype=torch.float64)}
        numbers["hyper"] = torch.tensor([*case["betas"], case["eps"], case["weight_decay"], case["clip"] or 0.0],
                                        dtype=torch.float64)
        store(os.path.join(here, f"{name}.safetensors"), numbers | result)
        wide = run([p.double() for p in params], [g.double() for g in grads], **case)
        print(f"  {name}: float32 against float64, relative to each tensor's largest element:", deviation(result, wide))
