"""Golden artefacts of ESM-2 from transformers' own EsmModel, at two tiny configurations.

a: EsmModel as `save_pretrained` of transformers 5.17.0 writes it (bare names, `LayerNorm.gamma` and
`.beta`, one `inv_freq` under a literal `*`), head size 24. b: EsmForMaskedLM under the names of the
published files (`esm.` prefix, `LayerNorm.weight`, per-layer `inv_freq`, unused absolute positions,
a head that the program skips), head size 8. Weights are random everywhere, LayerNorms included,
so that no parameter can be forgotten unseen.
"""

import os
import sys

import torch

here = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(here))
from common import adamw_steps, deterministic, deviation, gradients, store  # noqa: E402
from transformers import EsmConfig, EsmForMaskedLM, EsmModel  # noqa: E402

CLS, PAD, EOS, MASK = 0, 1, 2, 32
FIRST_RESIDUE, LAST_RESIDUE = 4, 23

CASES = {
    # lengths count residues; masks are positions of <mask> among them, one list a row.
    "a": dict(
        seed=20, prefixed=False, lengths=[11, 70, 3, 33], masks=[[2, 5], [0, 7, 8, 41, 69], [], [13]],
        shape=dict(num_hidden_layers=2, hidden_size=48, num_attention_heads=2, intermediate_size=96),
    ),
    "b": dict(
        seed=21, prefixed=True, lengths=[26, 9, 17, 1], masks=[[25], [], [1, 2, 3, 4, 5, 6], [0]],
        shape=dict(num_hidden_layers=3, hidden_size=40, num_attention_heads=5, intermediate_size=100),
    ),
}


def randomise(model, generator):
    """Weights of ordinary size; LayerNorm weights around 1, every bias away from 0."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            norm = "layer_norm" in name.lower() or "layernorm" in name.lower()
            if norm and name.endswith("weight"):
                p.copy_(1.0 + 0.2 * noise)
            elif p.dim() < 2:
                p.copy_(0.1 * noise)
            elif "embeddings" in name:
                p.copy_(0.7 * noise)
            else:
                p.copy_(noise * 1.2 / p.shape[1] ** 0.5)


def published_names(model):
    """The tensors under the names of facebook/esm2_*: what older transformers saved."""
    tensors = {n: p for n, p in model.state_dict().items() if not n.startswith("lm_head.decoder")}
    inv_freq = tensors.pop("esm.rotary_embeddings.inv_freq")
    for i in range(model.config.num_hidden_layers):
        tensors[f"esm.encoder.layer.{i}.attention.self.rotary_embeddings.inv_freq"] = inv_freq
    positions = model.config.max_position_embeddings
    tensors["esm.embeddings.position_ids"] = torch.arange(positions)[None]
    tensors["esm.embeddings.position_embeddings.weight"] = torch.zeros(positions, model.config.hidden_size)
    return tensors


def batch(lengths, masks, generator):
    """<cls> residues <eos>, right-padded with <pad>; some residues replaced by <mask>."""
    width = max(lengths) + 2
    ids = torch.full((len(lengths), width), PAD)
    for row, (n, masked) in enumerate(zip(lengths, masks)):
        ids[row, 0], ids[row, n + 1] = CLS, EOS
        ids[row, 1 : n + 1] = torch.randint(FIRST_RESIDUE, LAST_RESIDUE + 1, (n,), generator=generator)
        ids[row, [1 + m for m in masked]] = MASK
    return ids, (ids != PAD).long()


def run(model, ids, mask, cotangent):
    """Forward and backward; returns every hidden state and the gradients."""
    model.zero_grad(set_to_none=True)
    out = model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
    (out.last_hidden_state * cotangent * mask[..., None]).sum().backward()
    return out, gradients(model.named_parameters())


def check(model, ids, mask, hidden):
    """A row alone, without padding, gives what it gives in the batch; token dropout is in force."""
    for row in range(ids.shape[0]):
        n = int(mask[row].sum())
        alone = model(input_ids=ids[row : row + 1, :n], attention_mask=mask[row : row + 1, :n]).last_hidden_state
        assert (alone[0] - hidden[row, :n]).abs().max() < 2e-5 * hidden.abs().max(), f"padding is visible in row {row}"
    plain = ids[mask.bool()].clone()
    first = model.embeddings(input_ids=ids, attention_mask=mask)[0, 1]
    assert plain[1] != MASK
    observed = (ids[0] == MASK).sum() / mask[0].sum()
    expected = model.embeddings.word_embeddings.weight[plain[1]] * (1 - 0.15 * 0.8) / (1 - observed)
    assert torch.allclose(first, expected, rtol=1e-5, atol=1e-6), "token dropout is not what UPSTREAM says"


def make(name, seed, prefixed, lengths, masks, shape):
    generator = deterministic(seed)
    config = EsmConfig(
        vocab_size=33, mask_token_id=MASK, pad_token_id=PAD, position_embedding_type="rotary", token_dropout=True,
        emb_layer_norm_before=False, hidden_act="gelu", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        max_position_embeddings=74, layer_norm_eps=1e-5, attn_implementation="eager", **shape,
    )
    whole = EsmForMaskedLM(config) if prefixed else EsmModel(config, add_pooling_layer=False)
    randomise(whole, generator)
    whole.eval()
    model = whole.esm if prefixed else whole
    folder = os.path.join(here, name)
    whole.save_pretrained(folder)
    if prefixed:
        store(os.path.join(folder, "model.safetensors"), published_names(whole))
    os.chmod(os.path.join(folder, "model.safetensors"), 0o644)

    ids, mask = batch(lengths, masks, generator)
    cotangent = torch.randn(*ids.shape, shape["hidden_size"], generator=generator) / float(mask.sum())
    out, grads = run(model, ids, mask, cotangent)
    check(model, ids, mask, out.last_hidden_state)
    again = type(whole).from_pretrained(folder, attn_implementation="eager").eval()
    again = (again.esm if prefixed else again)(input_ids=ids, attention_mask=mask).last_hidden_state
    assert torch.equal(again, out.last_hidden_state), f"{folder} does not load as it was saved"
    case = {"input_ids": ids, "attention_mask": mask, "cotangent": cotangent}
    case["last_hidden_state"] = out.last_hidden_state
    if name == "b":
        case |= {f"hidden_states.{i}": h for i, h in enumerate(out.hidden_states)}
    store(os.path.join(folder, "case.safetensors"), case)
    store(os.path.join(folder, "grads.safetensors"), grads)

    def loss():
        return (model(input_ids=ids, attention_mask=mask).last_hidden_state * cotangent * mask[..., None]).sum()

    start = {n: p.detach().clone() for n, p in whole.named_parameters()}
    ten = adamw_steps(trained(model, grads), loss)
    store(os.path.join(folder, "ten_steps.safetensors"), ten)

    double = whole.double()
    double.load_state_dict({n: v.double() for n, v in start.items()}, strict=False)
    cotangent = cotangent.double()
    out64, grads64 = run(model, ids, mask, cotangent)
    valid = mask[..., None]
    print(f"  {name}: float32 against float64, relative to each tensor's largest element:")
    print("   forward ", deviation({"h": case["last_hidden_state"] * valid}, {"h": out64.last_hidden_state * valid}))
    print("   gradient", deviation(grads, grads64))
    print("   10 steps", deviation(ten, adamw_steps(trained(model, grads), loss)))


def trained(model, grads):
    """The parameters that receive a gradient; contact_head and lm_head do not."""
    return [(n, p) for n, p in model.named_parameters() if "grad." + n in grads]


if __name__ == "__main__":
    for name, case in CASES.items():
        make(name, **case)
