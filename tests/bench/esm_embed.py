"""`trainer embed` against transformers: ESM-2 35M shape, Swiss-Prot sequences, HDF5 written.

Peer A: fixed batches in file order. Peer B: length-sorted batches under a token budget. Both begin
with the model on disk and end with a closed HDF5 file (one float16 dataset a sequence); imports are
not charged to them. Ours is charged the whole process, from its start to its exit.
"""

import json
import shutil
import statistics
import tempfile
from pathlib import Path

from common import arguments, gemm_rate, header, json_line, measured, program, proteins, ratio, run, save, seconds
from common import THREADS, write_fasta

import h5py
import numpy as np
import torch
from transformers import EsmConfig, EsmModel, EsmTokenizer

ALPHABET = "<cls> <pad> <eos> <unk> L A G V S E R T I D P K Q N F Y M H W C X B U Z O . - <null_1> <mask>".split()
SHAPE = dict(num_hidden_layers=12, hidden_size=480, num_attention_heads=20, intermediate_size=1920)


def make_model(folder, shape, seed=0):
    """An ESM-2 of `shape` with random weights of ordinary size, as a Hugging Face directory."""
    torch.manual_seed(seed)
    config = EsmConfig(
        vocab_size=33, mask_token_id=32, pad_token_id=1, position_embedding_type="rotary", token_dropout=True,
        emb_layer_norm_before=False, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        max_position_embeddings=1026, layer_norm_eps=1e-5, **shape,
    )
    model = EsmModel(config, add_pooling_layer=False)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() == 2:
                p.normal_(std=0.3 if "embeddings" in name else 1.0 / p.shape[1] ** 0.5)
    model.save_pretrained(folder)
    (Path(folder) / "vocab.txt").write_text("\n".join(ALPHABET) + "\n")
    encoder = [p for n, p in model.named_parameters() if n.startswith("encoder.layer")]
    return sum(p.numel() for p in encoder)


def in_file_order(records, size):
    return [list(range(i, min(i + size, len(records)))) for i in range(0, len(records), size)]


def by_length(records, budget):
    """Longest first; a batch grows while its padded tokens, specials included, stay within `budget`."""
    batches, width = [], 0
    for i in sorted(range(len(records)), key=lambda i: -len(records[i][1])):
        if not batches or width * (len(batches[-1]) + 1) > budget:
            batches.append([])
            width = len(records[i][1]) + 2
        batches[-1].append(i)
    return batches


def peer(folder, records, batches, output):
    """transformers, start to closed file; returns its forward seconds and its padded share."""
    model = EsmModel.from_pretrained(folder, add_pooling_layer=False).eval()
    tokenizer = EsmTokenizer(str(Path(folder) / "vocab.txt"))
    forward, padded, real = 0.0, 0, 0
    with torch.inference_mode(), h5py.File(output, "w") as file:
        for batch in batches:
            inputs = tokenizer([records[i][1] for i in batch], return_tensors="pt", padding=True)
            taken, out = seconds(lambda: model(**inputs).last_hidden_state)
            forward += taken
            padded += inputs["input_ids"].numel()
            real += int(inputs["attention_mask"].sum())
            out = out.to(torch.float16).numpy()
            for row, i in enumerate(batch):
                file.create_dataset(records[i][0], data=out[row, 1 : 1 + len(records[i][1])])
    return forward, 1 - real / padded


def best_budget(folder, records, output, budgets=(2048, 4096, 8192)):
    """The token budget with which peer B is fastest on every fifth sequence: it gets its best."""
    part = records[::5]
    peer(folder, part[:2], [[0, 1]], output)
    taken = dict.fromkeys(budgets, float("inf"))
    for budget in 2 * budgets:
        taken[budget] = min(taken[budget], seconds(lambda: peer(folder, part, by_length(part, budget), output))[0])
    print("# peer B, seconds on a fifth by token budget: " + ", ".join(f"{b}: {t:.1f}" for b, t in taken.items()))
    return min(taken, key=taken.get)


def our_config(work, fasta, model, budget, name):
    """The same work as a configuration of ours."""
    text = {
        "recipe": "ptm_mamba",
        "run": {"name": name, "output_dir": str(work / "outputs"), "device": "cpu"},
        "dataset": {"dataset_location": str(fasta), "val_size": 0, "test_size": 0},
        "esm": {"model": str(model), "mask_policy": "unmasked", "dtype": "float16", "pooling": "none",
                "cache_dir": str(work / name), "max_length": 1022, "max_tokens_per_batch": budget},
        "distributed": {"threads_per_rank": THREADS},
    }
    path = work / f"{name}.yaml"
    path.write_text(json.dumps(text, indent=1) + "\n")  # JSON is YAML
    return path


def ours(work, fasta, model, budget, name="cache"):
    """One run of `trainer embed` into an empty cache: (wall seconds, its JSON line)."""
    shutil.rmtree(work / name, ignore_errors=True)
    wall, out = run([program(), "embed", str(our_config(work, fasta, model, budget, name))])
    return wall, json_line(out, "forward_seconds")


def read_cache(cache):
    """id -> [L, D] float16 of every record in a cache of ours."""
    found = {}
    for shard in sorted(Path(cache).glob("shard-*.h5")):
        with h5py.File(shard) as file:
            offsets, ids, data = file["offsets"][:], file["ids"][:], file["embeddings"]
            for i, key in enumerate(ids):
                found[key.decode() if isinstance(key, bytes) else key] = data[offsets[i] : offsets[i + 1]]
    return found


def agreement(cache, folder, records, count=24):
    """Compares with transformers, each sequence alone: the worst difference in units of what float16
    storage and fp32 arithmetic allow (half a unit in the last place plus 2e-5 of the largest element),
    and the share of equal float16 elements."""
    model = EsmModel.from_pretrained(folder, add_pooling_layer=False).eval()
    tokenizer = EsmTokenizer(str(Path(folder) / "vocab.txt"))
    found, worst, equal, total = read_cache(cache), 0.0, 0, 0
    assert len(found) == len({k for k, _ in records}), f"{len(found)} records in the cache, {len(records)} given"
    step = max(1, len(records) // count)
    with torch.inference_mode():
        for key, sequence in records[::step]:
            hidden = model(**tokenizer([sequence], return_tensors="pt")).last_hidden_state[0, 1:-1].numpy()
            stored = found[key]
            is_like = stored.shape == hidden.shape and stored.dtype == np.float16
            assert is_like, f"{key}: {stored.shape} {stored.dtype}"
            allowed = np.maximum(np.abs(hidden) * 2.0**-11, 2.0**-25) + 2e-5 * np.abs(hidden).max()
            worst = max(worst, float((np.abs(stored.astype(np.float32) - hidden) / allowed).max()))
            equal += int((stored == hidden.astype(np.float16)).sum())
            total += stored.size
    return worst, equal / total


def main():
    args = arguments(__doc__, repetitions=3, sequences=300, fixed=8, budget=0, our_budget=0)
    record = header("embed, ESM-2 35M shape, 1 rank, write included")
    torch.set_num_threads(THREADS)
    records = proteins(args.sequences)
    residues = sum(len(s) for _, s in records)
    with tempfile.TemporaryDirectory(prefix="bench-") as temporary:
        work = Path(temporary)
        parameters = make_model(work / "esm", SHAPE)
        write_fasta(work / "sequences.fasta", records)
        lengths = [len(s) + 2 for _, s in records]
        flop = 2 * parameters * sum(lengths)
        flop += 4 * SHAPE["hidden_size"] * SHAPE["num_hidden_layers"] * sum(n * n for n in lengths)
        print(f"# {len(records)} sequences, {residues} residues; layers: {parameters} parameters, {flop:.4g} FLOP")
        budget = args.budget or best_budget(work / "esm", records, work / "peer.h5")
        plans = {"A": in_file_order(records, args.fixed), "B": by_length(records, budget)}
        walls, forwards, shares = ({"A": [], "B": [], "ours": []} for _ in range(3))
        padding, gemm = {}, []
        for _ in range(args.repetitions):
            for name, batches in plans.items():
                gemm.append(gemm_rate())
                wall, (forward, padding[name]) = seconds(lambda: peer(work / "esm", records, batches, work / "peer.h5"))
                walls[name].append(wall)
                forwards[name].append(forward)
                shares[name].append(flop / forward / gemm[-1])
            if not args.peer_only:
                gemm.append(gemm_rate())
                wall, said = ours(work, work / "sequences.fasta", work / "esm", args.our_budget or budget)
                assert said["residues"] == residues, f"ours embedded {said['residues']} residues of {residues}"
                walls["ours"].append(wall)
                forwards["ours"].append(said["forward_seconds"])
                shares["ours"].append(flop / said["forward_seconds"] / gemm[-1])
        rate = statistics.median(gemm)
        print(f"GEMM, fp32 2048^3                  {rate / 1e9:10.1f} GFLOP/s  of {[round(g / 1e9) for g in gemm]}")
        record["gemm_flop_per_s"] = {"median": rate, "all": gemm}
        titles = {"A": f"A: transformers, batches of {args.fixed}", "B": f"B: transformers, sorted, {budget}"}
        medians = {n: measured(record, f"{titles[n]}", walls[n], "residues", residues) for n in plans}
        for name in plans:
            print(f"   {name}: padding {padding[name]:.1%}, forward {statistics.median(forwards[name]):.2f} s,"
                  f" {statistics.median(shares[name]):.1%} of the GEMM rate")
        if not args.peer_only:
            ours_s = measured(record, "ours, whole process", walls["ours"], "residues", residues)
            measured(record, "ours, forward alone", forwards["ours"], "residues", residues)
            ratio(record, "ours over A", medians["A"] / ours_s, 3.8)
            ratio(record, "ours over B", medians["B"] / ours_s, 1.3, 1.5)
            ratio(record, "share of the GEMM rate", statistics.median(shares["ours"]), 0.68, 0.79)
            worst, equal = agreement(work / "cache", work / "esm", records)
            print(f"{'agreement with transformers':34s} {worst:10.3f} of what float16 allows, {equal:.2%} equal")
            record["agreement"] = {"worst_of_allowed": worst, "equal_share": equal}
            if worst > 1.0:
                raise SystemExit("bench: the cache does not agree with transformers to float16")
    save(record, "esm_embed")


if __name__ == "__main__":
    main()
