"""Golden artefacts of PTM-Mamba, written from its description in plain PyTorch; no upstream code.

The reversal for the backward blocks is by true length: every row is reversed within its own length
and padding stays where it is, at the end. Blocks, scan and gate are spelt out as formulas below.
Parameter names are those of upstream's state dict.
"""

import json
import os
import sys

import torch
import torch.nn.functional as F
from torch import nn

here = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(here))
from common import adamw_steps, deterministic, deviation, gradients, store  # noqa: E402

CLS, PAD, EOS, MASK, FIRST_RESIDUE, FIRST_PTM, VOCAB = 0, 1, 2, 7, 8, 34, 59


class RMSNorm(nn.Module):
    def __init__(self, d, eps=1e-5):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(d)), eps

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


class Mixer(nn.Module):
    """The selective state space layer: one step of the recurrence after the other."""

    def __init__(self, d, state, conv, expand, unused):
        super().__init__()
        inner, rank = expand * d, -(-d // 16)
        self.rank, self.state, self.conv = rank, state, conv
        self.in_proj = nn.Linear(d, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, conv, groups=inner, padding=conv - 1)
        self.x_proj = nn.Linear(inner, rank + 2 * state, bias=False)
        self.dt_proj = nn.Linear(rank, inner)
        self.A_log = nn.Parameter(torch.zeros(inner, state))
        self.D = nn.Parameter(torch.zeros(inner))
        self.out_proj = nn.Linear(inner, d, bias=False)
        if unused:  # allocated upstream, never used
            self.A_b_log = nn.Parameter(torch.zeros(inner, state))
            self.conv1d_b = nn.Conv1d(inner, inner, conv, groups=inner, padding=conv - 1)
            self.x_proj_b = nn.Linear(inner, rank + 2 * state, bias=False)
            self.dt_proj_b = nn.Linear(rank, inner)
            self.D_b = nn.Parameter(torch.zeros(inner))

    def forward(self, h):
        length = h.shape[1]
        x, z = self.in_proj(h).chunk(2, dim=-1)
        x = F.silu(self.conv1d(x.transpose(1, 2))[..., :length].transpose(1, 2))
        dt, B, C = self.x_proj(x).split([self.rank, self.state, self.state], dim=-1)
        delta = F.softplus(self.dt_proj(dt))
        A = -torch.exp(self.A_log)
        s = torch.zeros(h.shape[0], *A.shape, dtype=h.dtype)
        ys = []
        for t in range(length):
            s = torch.exp(delta[:, t, :, None] * A) * s + (delta[:, t] * x[:, t])[..., None] * B[:, t, None, :]
            ys.append((s * C[:, t, None, :]).sum(-1))
        y = torch.stack(ys, dim=1) + self.D * x
        return self.out_proj(y * F.silu(z))


class Block(nn.Module):
    """Add, then norm, then mixer; returns (mixer output, residual)."""

    def __init__(self, d, **mixer):
        super().__init__()
        self.mixer, self.norm = Mixer(d, **mixer), RMSNorm(d)

    def forward(self, h, residual):
        residual = h if residual is None else h + residual
        return self.mixer(self.norm(residual)), residual


def reverse(x, lengths):
    """x [B, L, d] with the first lengths[b] positions of row b in reverse order."""
    if x is None:
        return None
    position = torch.arange(x.shape[1])[None, :]
    n = lengths[:, None]
    index = torch.where(position < n, n - 1 - position, position)
    return x.gather(1, index[..., None].expand_as(x))


class Stack(nn.Module):
    """model_type "mamba": the ESM side, where given, stands instead of the token embedding."""

    def __init__(self, d, layers, **mixer):
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, d)
        self.layers = nn.ModuleList([Block(d, **mixer) for _ in range(layers)])
        self.norm_f = RMSNorm(d)

    def forward(self, ids, e, lengths):
        h, residual = self.embedding(ids) if e is None else e, None
        for layer in self.layers:
            h, residual = layer(h, residual)
        return self.norm_f(h + residual)


class BidirectionalStack(nn.Module):
    """model_type "bidirectional_mamba": gated input, then pairs of forward and backward blocks."""

    def __init__(self, d, layers, **mixer):
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, d)
        self.gate = nn.Linear(2 * d, 1)
        self.forward_layers = nn.ModuleList([Block(d, **mixer) for _ in range(layers)])
        self.backward_layers = nn.ModuleList([Block(d, **mixer) for _ in range(layers)])
        self.hidden_fc = nn.ModuleList([nn.Linear(2 * d, d) for _ in range(layers)])
        self.norm_f = RMSNorm(d)

    def forward(self, ids, e, lengths):
        h = self.embedding(ids)
        e = torch.zeros_like(h) if e is None else e
        g = torch.sigmoid(self.gate(torch.cat([h, e], dim=-1)))
        h, residual = g * h + (1 - g) * e, None
        for forward, backward, fc in zip(self.forward_layers, self.backward_layers, self.hidden_fc):
            hf, rf = forward(h, residual)
            hb, rb = backward(reverse(h, lengths), reverse(residual, lengths))
            h = fc(torch.cat([hf, reverse(hb, lengths)], dim=-1))
            residual = 0.5 * (rf + reverse(rb, lengths))
        return self.norm_f(h + residual)


class PtmMamba(nn.Module):
    def __init__(self, config, unused):
        super().__init__()
        stack = {"mamba": Stack, "bidirectional_mamba": BidirectionalStack}[config["model_type"]]
        ssm = config["ssm_cfg"]
        mixer = dict(state=ssm["d_state"], conv=ssm["d_conv"], expand=ssm["expand"], unused=unused)
        self.backbone = stack(config["d_model"], config["n_layer"], **mixer)
        self.lm_head = nn.Linear(config["d_model"], VOCAB, bias=False)
        self.lm_head.weight = self.backbone.embedding.weight
        self.esm_head = nn.Linear(config["esm_embed_dim"], config["d_model"], bias=False)

    def forward(self, ids, esm, lengths):
        hidden = self.backbone(ids, None if esm is None else self.esm_head(esm), lengths)
        return self.lm_head(hidden), hidden


def randomise(model, generator):
    """Ordinary sizes everywhere: norms around 1, biases away from 0, A between -0.5 and -8."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise, uniform = torch.randn(p.shape, generator=generator), torch.rand(p.shape, generator=generator)
            if "norm" in name:
                p.copy_(1.0 + 0.2 * noise)
            elif name.endswith("_log"):
                p.copy_(torch.log(0.5 + 7.5 * uniform))
            elif name.endswith((".D", ".D_b")):
                p.copy_(1.0 + 0.3 * noise)
            elif "dt_proj" in name and name.endswith("bias"):
                p.copy_(-3.0 + 2.0 * uniform)
            elif name.endswith("bias"):
                p.copy_(0.2 * noise)
            elif "embedding" in name:
                p.copy_(0.5 * noise)
            else:
                p.copy_(noise / (p[0].numel() ** 0.5))


def batch(lengths, esm_dim, generator):
    """Masked ids, targets, the mask of predicted positions, and ESM embeddings, zero at padding."""
    width = max(lengths)
    targets = torch.full((len(lengths), width), PAD)
    esm = torch.zeros(len(lengths), width, esm_dim)
    predict = torch.zeros(len(lengths), width, dtype=torch.bool)
    for row, n in enumerate(lengths):
        targets[row, 0], targets[row, n - 1] = CLS, EOS
        residues = torch.randint(FIRST_RESIDUE, FIRST_RESIDUE + 20, (n - 2,), generator=generator)
        ptm = torch.rand(n - 2, generator=generator) < 0.2
        residues[ptm] = torch.randint(FIRST_PTM, VOCAB, (int(ptm.sum()),), generator=generator)
        targets[row, 1 : n - 1] = residues
        predict[row, 1 : n - 1] = (torch.rand(n - 2, generator=generator) < 0.15) | ptm
        esm[row, :n] = torch.randn(n, esm_dim, generator=generator)
    predict[0, 1] = True
    return torch.where(predict, torch.tensor(MASK), targets), targets, predict, esm


def loss_of(model, inputs, targets, predict):
    logits, _ = model(*inputs)
    return F.cross_entropy(logits[predict], targets[predict])


def check_padding(model, ids, esm, lengths, logits):
    for row, n in enumerate(lengths.tolist()):
        row_esm = None if esm is None else esm[row : row + 1, :n]
        alone = model(ids[row : row + 1, :n], row_esm, lengths[row : row + 1])[0][0]
        assert (alone - logits[row, :n]).abs().max() < 2e-5 * logits.abs().max(), "padding is visible"


def check_against_transformers(model, config, ids, lengths):
    """The tokens-only plain stack is transformers' Mamba; an independent check of block and scan."""
    from transformers import MambaConfig, MambaForCausalLM

    ssm = config["ssm_cfg"]
    peer = MambaForCausalLM(MambaConfig(
        vocab_size=VOCAB, hidden_size=config["d_model"], num_hidden_layers=config["n_layer"], use_cache=False,
        state_size=ssm["d_state"], conv_kernel=ssm["d_conv"], expand=ssm["expand"], layer_norm_epsilon=1e-5,
    ))
    names = {n.replace("backbone.embedding.", "backbone.embeddings."): v for n, v in model.state_dict().items()}
    names.pop("esm_head.weight")
    peer.load_state_dict(names)
    ours, theirs = model(ids, None, lengths)[0], peer(input_ids=ids).logits
    assert (ours - theirs).abs().max() < 2e-5 * theirs.abs().max(), "differs from transformers' Mamba"


CONFIG = {"vocab_size": VOCAB, "rms_norm": True, "residual_in_fp32": True, "fused_add_norm": True, "esm_embed_dim": 12}
CASES = {
    # lengths count <cls> and <eos>. `unused` stores the *_b parameters and the tied head as upstream does.
    "bidirectional": dict(seed=40, lengths=[24, 9, 17, 4], unused=True, model_type="bidirectional_mamba",
                          d_model=24, n_layer=2, ssm_cfg={"d_state": 16, "d_conv": 4, "expand": 2}),
    "mamba": dict(seed=41, lengths=[21, 12, 3], unused=False, model_type="mamba",
                  d_model=16, n_layer=2, ssm_cfg={"d_state": 8, "d_conv": 4, "expand": 2}),
}


def make(name, seed, lengths, unused, **config):
    generator = deterministic(seed)
    config = {**config, **CONFIG}
    folder = os.path.join(here, name)
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "config.json"), "w") as f:
        json.dump(config, f, indent=2)
        f.write("\n")
    model = PtmMamba(config, unused)
    randomise(model, generator)
    start = {n: v.detach().clone() for n, v in model.state_dict().items()}
    store(os.path.join(folder, "weights.safetensors"),
          {n: v for n, v in start.items() if unused or n != "lm_head.weight"})
    ids, targets, predict, esm = batch(lengths, config["esm_embed_dim"], generator)
    lengths = torch.tensor(lengths)
    if config["model_type"] == "mamba":
        check_against_transformers(model, config, ids, lengths)

    for variant, given in (("esm", esm), ("tokens", None)):
        model.float().load_state_dict(start)
        results = evaluate(model, (ids, given, lengths), targets, predict)
        logits = results["logits"]
        model.load_state_dict(start)
        check_padding(model, ids, given, lengths, logits)
        case = {"input_ids": ids, "targets": targets, "prediction_mask": predict, "lengths": lengths}
        case |= {} if given is None else {"esm_embeddings": given}
        store(os.path.join(folder, f"{variant}.safetensors"), case | results)

        model.double()
        wide = evaluate(model, (ids, None if given is None else given.double(), lengths), targets, predict)
        print(f"  {name}/{variant}: loss {results['loss']:.4f} -> {results['losses'][-1]:.4f};"
              " float32 against float64, relative to each tensor's largest element:")
        valid = (targets != PAD)[..., None]
        print("   forward ", deviation({"logits": logits * valid}, {"logits": wide["logits"] * valid}))
        for part in ("grad.", "after.", "losses"):
            pick = [{n: v for n, v in r.items() if n.startswith(part)} for r in (results, wide)]
            print("  ", part, deviation(*pick))


def evaluate(model, inputs, targets, predict):
    """Logits, loss, gradients, then ten steps of AdamW; leaves the model trained."""
    model.zero_grad(set_to_none=True)
    logits, hidden = model(*inputs)
    loss = F.cross_entropy(logits[predict], targets[predict])
    loss.backward()
    grads = {n: g.clone() for n, g in gradients(model.named_parameters()).items()}
    used = [(n, p) for n, p in model.named_parameters() if "grad." + n in grads]
    ten = adamw_steps(used, lambda: loss_of(model, inputs, targets, predict))
    return {"logits": logits.detach(), "hidden_states": hidden.detach(), "loss": loss.detach(), **grads, **ten}


if __name__ == "__main__":
    for name, case in CASES.items():
        make(name, **case)
