"""Golden artefacts of Mamba from transformers' MambaForCausalLM on its plain path (no CUDA kernels).

a: state 4, dt_rank 2. b: state 16, dt_rank 1. Every parameter is random; the rows have different
lengths (right-padded), and a padded position takes no part in the loss.
"""

import os
import sys

import torch
import torch.nn.functional as F

here = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(here))
from common import adamw_steps, deterministic, deviation, gradients, store  # noqa: E402
from transformers import MambaConfig, MambaForCausalLM  # noqa: E402

PAD, VOCAB = 1, 59
CASES = {
    "a": dict(seed=30, lengths=[19, 7, 1], shape=dict(num_hidden_layers=2, hidden_size=20, state_size=4)),
    "b": dict(seed=31, lengths=[37, 13], shape=dict(num_hidden_layers=2, hidden_size=16, state_size=16)),
}


def randomise(model, generator):
    """Ordinary sizes everywhere: norms around 1, biases away from 0, A between -0.5 and -8."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            uniform = torch.rand(p.shape, generator=generator)
            if "norm" in name:
                p.copy_(1.0 + 0.2 * noise)
            elif name.endswith("A_log"):
                p.copy_(torch.log(0.5 + 7.5 * uniform))
            elif name.endswith(".D"):
                p.copy_(1.0 + 0.3 * noise)
            elif name.endswith("dt_proj.bias"):
                p.copy_(-3.0 + 2.0 * uniform)
            elif name.endswith("bias"):
                p.copy_(0.2 * noise)
            elif "embeddings" in name:
                p.copy_(0.5 * noise)
            else:
                p.copy_(noise / (p[0].numel() ** 0.5))


def loss_of(model, ids, targets):
    """Mean cross entropy of logits[b, t] against targets[b, t] (no shift here), -100 ignored."""
    logits = model(input_ids=ids, use_cache=False).logits
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100)


def make(name, seed, lengths, shape):
    generator = deterministic(seed)
    config = MambaConfig(
        vocab_size=VOCAB, expand=2, conv_kernel=4, use_bias=False, use_conv_bias=True, layer_norm_epsilon=1e-5,
        residual_in_fp32=True, pad_token_id=PAD, bos_token_id=0, eos_token_id=2, use_cache=False, **shape,
    )
    model = MambaForCausalLM(config)
    assert model.lm_head.weight is model.backbone.embeddings.weight, "the head is tied"
    randomise(model, generator)
    model.train()
    folder = os.path.join(here, name)
    model.save_pretrained(folder)
    os.chmod(os.path.join(folder, "model.safetensors"), 0o644)
    os.remove(os.path.join(folder, "generation_config.json"))

    width = max(lengths)
    ids, targets = torch.full((len(lengths), width), PAD), torch.full((len(lengths), width), -100)
    for row, n in enumerate(lengths):
        ids[row, :n] = torch.randint(8, VOCAB, (n,), generator=generator)
        targets[row, :n] = torch.randint(8, VOCAB, (n,), generator=generator)

    out = model(input_ids=ids, output_hidden_states=True, use_cache=False)
    for row, n in enumerate(lengths):
        alone = model(input_ids=ids[row : row + 1, :n], use_cache=False).logits[0]
        assert (alone - out.logits[row, :n]).abs().max() < 2e-5 * out.logits.abs().max(), "padding is visible"
    loss = loss_of(model, ids, targets)
    loss.backward()
    grads = gradients(model.named_parameters())
    assert len(grads) == len(list(model.named_parameters())), "every parameter has a gradient"
    case = {"input_ids": ids, "targets": targets, "lengths": torch.tensor(lengths), "logits": out.logits, "loss": loss}
    case["last_hidden_state"] = out.hidden_states[-1]
    start = {n: v.detach().clone() for n, v in model.state_dict().items()}
    grads = {n: g.clone() for n, g in grads.items()}
    ten = adamw_steps(model.named_parameters(), lambda: loss_of(model, ids, targets))
    store(os.path.join(folder, "case.safetensors"), case | grads | ten)

    model.double().load_state_dict({n: v.double() for n, v in start.items()})
    model.zero_grad(set_to_none=True)
    logits64 = model(input_ids=ids, use_cache=False).logits
    loss_of(model, ids, targets).backward()
    grads64 = {n: g.clone() for n, g in gradients(model.named_parameters()).items()}
    valid = (targets >= 0)[..., None]
    print(f"  {name}: float32 against float64, relative to each tensor's largest element:")
    print("   forward ", deviation({"logits": case["logits"] * valid}, {"logits": logits64 * valid}))
    print("   gradient", deviation(grads, grads64))
    print("   10 steps", deviation(ten, adamw_steps(model.named_parameters(), lambda: loss_of(model, ids, targets))))


if __name__ == "__main__":
    for name, case in CASES.items():
        make(name, **case)
