"""Golden artefacts of BERT and RoBERTa from transformers' own classes, at two tiny shapes.

Each shape under three heads: masked LM (tied decoder), regression (one number, squared error) and
classification (three classes, cross-entropy). Every folder is what `save_pretrained` of transformers
wrote, plus `case.safetensors`. The activation differs by case; RoBERTa's masked-LM head has its own,
whatever the configuration says. Dropout is 0.1 in the configurations and the models are in `eval` mode.

`published.json`: names and shapes of the published models, from their real configurations, without
their weights (meta device).
"""

import json
import os
import re
import sys

import torch
import torch.nn.functional as F

here = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(here))
from common import adamw_steps, deterministic, deviation, gradients, store  # noqa: E402
from transformers import (  # noqa: E402
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaForSequenceClassification,
)

FAMILIES = {
    "bert": dict(
        config=BertConfig, mlm=BertForMaskedLM, sequence=BertForSequenceClassification,
        cls=2, sep=3, mask=4, lengths=[17, 5, 40, 9],
        shape=dict(vocab_size=37, hidden_size=24, num_attention_heads=2, intermediate_size=36,
                   max_position_embeddings=40, type_vocab_size=2, layer_norm_eps=1e-12, pad_token_id=0),
        activations=dict(mlm="gelu_new", regression="gelu", classification="relu"),
    ),
    "roberta": dict(
        config=RobertaConfig, mlm=RobertaForMaskedLM, sequence=RobertaForSequenceClassification,
        cls=0, sep=2, mask=40, lengths=[12, 32, 3, 21],
        shape=dict(vocab_size=41, hidden_size=30, num_attention_heads=3, intermediate_size=44,
                   max_position_embeddings=34, type_vocab_size=1, layer_norm_eps=1e-5, pad_token_id=1,
                   bos_token_id=0, eos_token_id=2),
        activations=dict(mlm="relu", regression="gelu", classification="gelu_new"),
    ),
}
KEY_BIAS = ".attention.self.key.bias"
LABELS = {"mlm": None, "regression": 1, "classification": 3}

# The configurations of FacebookAI/roberta-base and m3rg-iitd/matscibert, as far as they shape the model.
PUBLISHED = {
    "roberta-base": ("roberta", dict(
        vocab_size=50265, hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072,
        max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5, pad_token_id=1, bos_token_id=0,
        eos_token_id=2)),
    "matscibert": ("bert", dict(
        vocab_size=31090, hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072,
        max_position_embeddings=512, type_vocab_size=2, layer_norm_eps=1e-12, pad_token_id=0)),
}


def randomise(model, generator):
    """Weights of ordinary size; norm weights around 1, every bias away from 0, padding rows too."""
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


def batch(family, generator):
    """Random texts between their specials, right-padded; the first one has a padding token within."""
    lengths, shape = family["lengths"], family["shape"]
    ids = torch.full((len(lengths), max(lengths)), shape["pad_token_id"])
    for row, n in enumerate(lengths):
        ids[row, :n] = torch.randint(5, shape["vocab_size"] - 1, (n,), generator=generator)
        ids[row, 0], ids[row, n - 1] = family["cls"], family["sep"]
    ids[0, 4] = shape["pad_token_id"]
    mask = (torch.arange(ids.shape[1])[None] < torch.tensor(lengths)[:, None]).long()
    return ids, mask


def hide(family, ids, mask, generator):
    """Masked ids and labels: about a fifth of the tokens, some masked, some replaced, some as they were."""
    chosen = (torch.rand(ids.shape, generator=generator) < 0.2) & mask.bool()
    chosen[1, 0] = True
    how = torch.rand(ids.shape, generator=generator)
    other = torch.randint(5, family["shape"]["vocab_size"] - 1, ids.shape, generator=generator)
    labels = torch.where(chosen, ids, -100)
    ids = torch.where(chosen & (how < 0.8), family["mask"], ids)
    return torch.where(chosen & (how > 0.9), other, ids), labels


def loss_of(head, out, target):
    """The same as transformers' own loss, checked below."""
    if head == "regression":
        return F.mse_loss(out.logits[:, 0], target)
    return F.cross_entropy(out.logits.flatten(0, -2), target.flatten())


def evaluate(model, head, ids, mask, target):
    """Hidden states, logits, loss, gradients, then ten steps of AdamW; leaves the model trained."""
    model.zero_grad(set_to_none=True)
    pooled = []
    layer = model.bert.pooler if getattr(model, "bert", None) else getattr(model.roberta, "pooler", None)
    if layer is None and head != "mlm":
        layer = model.classifier.dense
    hook = layer.register_forward_hook(lambda _m, _i, o: pooled.append(o)) if layer is not None else None
    out = model(input_ids=ids, attention_mask=mask, labels=target, output_hidden_states=True)
    if hook is not None:
        hook.remove()
    loss = loss_of(head, out, target)
    assert torch.equal(loss, out.loss), "transformers has another loss"
    loss.backward()
    results = {f"hidden_states.{i}": h for i, h in enumerate(out.hidden_states)}
    results |= {"logits": out.logits, "loss": loss}
    if pooled:
        results["pooled"] = pooled[0] if model.config.model_type == "bert" else torch.tanh(pooled[0])
    results = {n: v.detach().clone() for n, v in results.items()}
    grads = {n: g.clone() for n, g in gradients(model.named_parameters()).items()}
    # A key's bias adds the same to all scores of a query, so softmax does not see it: its gradient is
    # rounding alone, which AdamW would blow up. It takes no part in the steps.
    largest = max(g.abs().max() for g in grads.values())
    idle = [n for n in grads if n.endswith(KEY_BIAS)]
    assert len(idle) == model.config.num_hidden_layers
    assert all(grads.pop(n).abs().max() < 1e-6 * largest for n in idle), "a key's bias matters"
    results |= grads
    named = [(n, p) for n, p in model.named_parameters() if not n.endswith(KEY_BIAS)]
    assert all("grad." + n in results for n, _ in named), "a parameter takes no part"
    return results | adamw_steps(named, lambda: loss_of(head, model(input_ids=ids, attention_mask=mask), target))


def check_padding(model, ids, mask, logits):
    """A row alone, without padding, gives what it gives in the batch."""
    for row in range(ids.shape[0]):
        n = int(mask[row].sum())
        alone = model(input_ids=ids[row : row + 1, :n], attention_mask=mask[row : row + 1, :n]).logits[0]
        there = logits[row, :n] if logits.dim() == 3 else logits[row]
        assert (alone - there).abs().max() < 2e-5 * logits.abs().max(), f"padding is visible in row {row}"


def make(family_name, head, seed):
    family = FAMILIES[family_name]
    generator = deterministic(seed)
    labels = {} if head == "mlm" else {"num_labels": LABELS[head]}
    config = family["config"](
        num_hidden_layers=2, hidden_act=family["activations"][head], hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1, attn_implementation="eager", **family["shape"], **labels)
    model = family["mlm" if head == "mlm" else "sequence"](config)
    randomise(model, generator)
    model.eval()
    folder = os.path.join(here, family_name, head)
    model.save_pretrained(folder)
    os.chmod(os.path.join(folder, "model.safetensors"), 0o644)

    ids, mask = batch(family, generator)
    if head == "mlm":
        ids, target = hide(family, ids, mask, generator)
    elif head == "regression":
        target = torch.randn(len(ids), generator=generator)
    else:
        target = torch.tensor([2, 0, 1, 2])
    start = {n: v.detach().clone() for n, v in model.named_parameters()}
    results = evaluate(model, head, ids, mask, target)
    case = {"input_ids": ids, "lengths": mask.sum(1), "target": target}
    store(os.path.join(folder, "case.safetensors"), case | results)

    auto = AutoModelForMaskedLM if head == "mlm" else AutoModelForSequenceClassification
    again = auto.from_pretrained(folder, attn_implementation="eager").eval()
    logits = again(input_ids=ids, attention_mask=mask).logits
    assert torch.equal(logits, results["logits"]), f"{folder} does not load as it was saved"
    check_padding(again, ids, mask, logits)

    model.double().load_state_dict({n: v.double() for n, v in start.items()}, strict=False)
    target = target.double() if head == "regression" else target
    wide = evaluate(model, head, ids, mask, target)
    print(f"  {family_name}/{head}: loss {results['loss']:.4f} -> {results['losses'][-1]:.4f};"
          " float32 against float64, relative to each tensor's largest element:")
    shown = mask[..., None]
    for part in ("hidden_states", "logits", "pooled", "grad.", "after.", "losses"):
        pick = [{n: v * shown if n.startswith("hidden") or (n == "logits" and v.dim() == 3) else v
                 for n, v in r.items() if n.startswith(part)} for r in (results, wide)]
        if pick[1]:
            print("  ", part, deviation(*pick))


def published():
    """Names and shapes, tied weights once, under the name that transformers stores."""
    table = {}
    for name, (family, shape) in PUBLISHED.items():
        family = FAMILIES[family]
        entry = {"config": family["config"](**shape).to_dict()}
        for head in ("mlm", "sequence"):
            with torch.device("meta"):
                model = family[head](family["config"](**shape, **({} if head == "mlm" else {"num_labels": 3})))
            model.tie_weights()
            entry[head] = {n: list(p.shape) for n, p in model.named_parameters()}
        table[name] = entry
    path = os.path.join(here, "published.json")
    text = json.dumps(table, indent=1, sort_keys=True)
    with open(path, "w") as f:
        # A shape on one line.
        f.write(re.sub(r"\[\s+(\d[\d,\s]*?)\s+\]", lambda m: "[" + " ".join(m[1].split()) + "]", text) + "\n")
    print(f"{os.path.relpath(path)}  {os.path.getsize(path)} bytes")


if __name__ == "__main__":
    for i, family in enumerate(FAMILIES):
        for j, head in enumerate(LABELS):
            make(family, head, seed=60 + 3 * i + j)
    published()
