"""Opens in transformers what the program saved, compares its outputs, and saves it again.

`tests/golden.rs` writes DIR/NAME/{config.json, model.safetensors, case.safetensors} (`input_ids`,
`lengths`, and `logits` as the program computed them) and calls this with the peers' Python:
`roundtrip.py DIR`. What transformers saves is put into DIR/NAME/again, for the way back.
"""

import os
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import torch
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification

TOLERANCE = 2e-5


def check(folder):
    case = load_file(os.path.join(folder, "case.safetensors"))
    auto = AutoModelForMaskedLM if case["logits"].dim() == 3 else AutoModelForSequenceClassification
    model, info = auto.from_pretrained(folder, output_loading_info=True)
    wrong = {key: value for key, value in info.items() if value}
    assert not wrong, f"{folder}: {wrong}"
    assert type(model).__name__ == model.config.architectures[0], f"{folder}: opened as {type(model).__name__}"
    model.eval()
    ids, lengths = case["input_ids"].long(), case["lengths"].long()
    mask = (torch.arange(ids.shape[1])[None] < lengths[:, None]).long()
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask).logits
    if logits.dim() == 3:
        logits, case["logits"] = (t * mask[..., None] for t in (logits, case["logits"]))
    worst = ((logits - case["logits"]).abs().max() / case["logits"].abs().max()).item()
    assert worst < TOLERANCE, f"{folder}: outputs differ by {worst:.1e} of the largest"
    model.save_pretrained(os.path.join(folder, "again"))
    labels = getattr(model.config, "id2label", None)
    print(f"{os.path.basename(folder)}: {type(model).__name__}, labels {labels}, {worst:.1e} of the largest")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for entry in sorted(os.scandir(sys.argv[1]), key=lambda e: e.name):
        check(entry.path)
