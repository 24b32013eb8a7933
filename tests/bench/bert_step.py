"""Fine-tuning steps of a RoBERTa, 768 wide, against transformers: padded to 512, and dynamically padded.

The texts are as long as those that `trainer prepare` makes of MPEA_dataset.csv, with facts about each
element (742 to 1,782 characters), four characters a token. Which tokens they are does not matter to the
time; they are drawn at random.

All sides go once over the same texts, some at a time, forward, squared error, backward, AdamW, dropout 0.1,
fp32. `padded` is upstream's way, every text as long as the longest allowed; `grouped` is
`group_by_length` of transformers' Trainer with padding to a batch's longest. Both use the Trainer's
optimiser, AdamW fused. Ours is the example `bench_bert_step`: batches by the program's own plan, and the last
layer computed at the first token alone, the only place where the head reads it.
"""

import csv
import json
import os
import random
import tempfile
from pathlib import Path

from common import (REPO, THREADS, arguments, example, fail, gemm_rate, header, json_line, measured, program,
                    ratio, run, save, seconds)

import torch
from transformers import RobertaConfig, RobertaForSequenceClassification
from transformers.trainer_pt_utils import LengthGroupedSampler

VOCAB, LONGEST, PAD, DROPOUT = 50265, 512, 1, 0.1
RATE, DECAY = 2e-5, 0.01


def token_counts():
    """Tokens of the texts that `trainer prepare` makes of the table's rows with a yield strength."""
    name = "MPEA_dataset.csv"
    path = Path(os.environ.get("TRAINER_DATA", REPO / "data")) / name
    if not path.exists():
        fail(f"{path} is not there; set TRAINER_DATA to the folder that holds {name}")
    with tempfile.TemporaryDirectory(prefix="bench-") as work:
        command = [program(), "prepare", str(REPO / "configs/alloy_regression_small.yaml")]
        for setting in (f"dataset.dataset_location={path}", f"dataset.prepared_dir={work}",
                        "dataset.target=all_data_YS", "text.element_facts=true"):
            command += ["--set", setting]
        run(command, cwd=REPO)
        with open(Path(work) / "all_data_YS/tr_all_data_YS_text.csv", newline="", encoding="utf-8") as file:
            lengths = [len(row["text"]) for row in csv.DictReader(file)]
    return [min(LONGEST, characters // 4 + 2) for characters in lengths]


def make_texts(count):
    """`count` texts as lists of ids between <s> and </s>, and a target each."""
    draw = random.Random(11)
    lengths = draw.sample(token_counts(), count)
    ids = [[0] + [draw.randrange(4, VOCAB - 1) for _ in range(n - 2)] + [2] for n in lengths]
    return {"ids": ids, "targets": [draw.gauss(0, 1) for _ in ids]}


def make_peer(layers):
    torch.manual_seed(0)
    config = RobertaConfig(vocab_size=VOCAB, hidden_size=768, num_hidden_layers=layers, num_attention_heads=12,
                           intermediate_size=3072, max_position_embeddings=LONGEST + 2, type_vocab_size=1,
                           layer_norm_eps=1e-5, hidden_dropout_prob=DROPOUT,
                           attention_probs_dropout_prob=DROPOUT, num_labels=1, problem_type="regression")
    model = RobertaForSequenceClassification(config).train()
    return model, torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY, fused=True)


def collate(texts, members, width):
    ids = torch.full((len(members), width), PAD)
    for row, member in enumerate(members):
        own = texts["ids"][member]
        ids[row, :len(own)] = torch.tensor(own)
    return ids, torch.tensor([texts["targets"][m] for m in members])


def peer_pass(model, optimiser, texts, batches, pad_to):
    for members in batches:
        longest = max(len(texts["ids"][m]) for m in members)
        ids, targets = collate(texts, members, pad_to or longest)
        loss = model(input_ids=ids, attention_mask=(ids != PAD).long(), labels=targets).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        assert loss.item() == loss.item(), "the peer's loss is not a number"


def cut(order, batch):
    return [order[i:i + batch] for i in range(0, len(order), batch)]


def padding(texts, batches, pad_to=None):
    """The share of padding in these batches."""
    lengths = [[len(texts["ids"][m]) for m in members] for members in batches]
    computed = sum((pad_to or max(own)) * len(own) for own in lengths)
    return 1 - sum(map(sum, lengths)) / computed


def ours(args, path):
    command = [example("bench_bert_step"), "--texts", path, "--layers", str(args.layers), "--max-samples",
               str(args.batch), "--threads", str(THREADS), "--dropout", str(DROPOUT)]
    said = json_line(run(command)[1], "seconds")
    assert said["loss"] == said["loss"], "our loss is not a number"
    print(f"# ours: {said['padding']:.1%} padding; " +
          ", ".join(f"{part} {said[part]:.2f} s" for part in ("forward", "backward", "update")))
    return said["seconds"]


def main():
    args = arguments(__doc__, repetitions=3, texts=96, layers=4, batch=8)
    texts = make_texts(args.texts)
    lengths = [len(ids) for ids in texts["ids"]]
    tokens = sum(lengths)
    record = header(f"RoBERTa fine-tuning, {args.layers} layers x 768, {args.texts} texts by {args.batch}")
    torch.set_num_threads(THREADS)
    print(f"# {min(lengths)}, {sorted(lengths)[len(lengths) // 2]}, {max(lengths)} tokens (least, median, most)")
    model, optimiser = make_peer(args.layers)
    shuffled = random.Random(3).sample(range(args.texts), args.texts)
    plain = cut(shuffled, args.batch)
    generator = torch.Generator().manual_seed(3)
    grouped = cut(list(LengthGroupedSampler(args.batch, lengths=lengths, generator=generator)), args.batch)
    print(f"# padded: {padding(texts, plain, LONGEST):.1%} padding; grouped: {padding(texts, grouped):.1%}")
    peer_pass(model, optimiser, texts, grouped[:1], None)
    padded_s, grouped_s, our_s, gemm = [], [], [], []
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "texts.json")
        Path(path).write_text(json.dumps(texts))
        for _ in range(args.repetitions):
            gemm.append(gemm_rate())
            padded_s.append(seconds(lambda: peer_pass(model, optimiser, texts, plain, LONGEST))[0])
            grouped_s.append(seconds(lambda: peer_pass(model, optimiser, texts, grouped, None))[0])
            if not args.peer_only:
                our_s.append(ours(args, path))
    print(f"GEMM, fp32 2048^3                  {sorted(gemm)[len(gemm) // 2] / 1e9:10.1f} GFLOP/s  "
          f"of {[round(g / 1e9) for g in gemm]}")
    record["gemm_flop_per_s"] = gemm
    padded = measured(record, "transformers, padded to 512", padded_s, "tokens", tokens)
    dynamic = measured(record, "transformers, grouped by length", grouped_s, "tokens", tokens)
    if not args.peer_only:
        mine = measured(record, "ours", our_s, "tokens", tokens)
        ratio(record, "ours over padded", padded / mine, 3.0)
        ratio(record, "ours over grouped", dynamic / mine, 1.15)
    save(record, "bert_step")


if __name__ == "__main__":
    main()
