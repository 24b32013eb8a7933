"""Random reads of single sequences: our cache against h5py with one dataset a sequence.

The same embeddings lie on both sides (ours is written by `trainer embed` from a one-layer model of
that width, the peer's file is copied from it), float16, page cache warm. A pass reads --reads
sequences drawn with replacement; rates are by bytes, because the two sides draw for themselves.
Ours is the example `bench_cache_read`, which prints {"seconds": [one entry a pass of N reads, after
an untimed one], "bytes": bytes of embeddings read in one pass}.
"""

import tempfile
from pathlib import Path

from common import arguments, example, fail, header, json_line, measured, proteins, ratio, run, save, seconds
from common import write_fasta
from esm_embed import make_model, ours, read_cache

import h5py
import numpy as np

ASKED = {480: (20, 2.0), 64: (4, 3.0)}  # width: heads of the model that fills the cache, ratio asked for


def peer_pass(path, keys, reads, rng):
    """Opens once, then reads `reads` whole sequences; returns seconds and bytes."""
    total = 0
    with h5py.File(path) as file:
        order = [keys[i] for i in rng.integers(0, len(keys), reads)]

        def action():
            nonlocal total
            for key in order:
                total += file[key][:].nbytes

        taken, _ = seconds(action)
    return taken, total


def fill(work, records, width, peer_only):
    """id -> embedding: our cache of that width, or random values where our side is not measured."""
    if peer_only:
        rng = np.random.default_rng(0)
        return {k: rng.standard_normal((len(s), width), dtype=np.float32).astype(np.float16) for k, s in records}
    model = work / f"esm{width}"
    make_model(model, dict(num_hidden_layers=1, hidden_size=width, num_attention_heads=ASKED[width][0],
                           intermediate_size=2 * width))
    ours(work, work / "sequences.fasta", model, 8192, name=f"cache{width}")
    return read_cache(work / f"cache{width}")


def main():
    args = arguments(__doc__, repetitions=5, sequences=600, reads=4000)
    record = header("random reads of single sequences, page cache warm")
    records = proteins(args.sequences)
    with tempfile.TemporaryDirectory(prefix="bench-") as temporary:
        work = Path(temporary)
        write_fasta(work / "sequences.fasta", records)
        for width, (_, asked) in ASKED.items():
            found = fill(work, records, width, args.peer_only)
            if len(found) < len({k for k, _ in records}):
                fail(f"the cache of width {width} holds {len(found)} of {len(records)} sequences")
            path = work / f"peer{width}.h5"
            with h5py.File(path, "w") as file:
                for key, value in found.items():
                    file.create_dataset(key, data=value)
            keys = list(found)
            peer_pass(path, keys, args.reads, np.random.default_rng(1))
            theirs, mine = [], []
            for repetition in range(args.repetitions):
                theirs.append(peer_pass(path, keys, args.reads, np.random.default_rng(repetition)))
                if not args.peer_only:
                    command = [example("bench_cache_read"), str(work / f"cache{width}")]
                    command += ["--reads", str(args.reads), "--seed", str(repetition)]
                    said = json_line(run(command)[1], "seconds")
                    mine += [(s, said["bytes"]) for s in said["seconds"]]
            peer_s = report(record, f"h5py, D = {width}", theirs, args.reads)
            if not args.peer_only:
                our_s = report(record, f"ours, D = {width}", mine, args.reads)
                ratio(record, f"ours over h5py, D = {width}", peer_s / our_s, asked)
    save(record, "cache_read")


def report(record, name, passes, reads):
    """Median seconds a megabyte, printed with reads and bytes a second."""
    per_mb = measured(record, f"{name}, per MB", [s / b * 1e6 for s, b in passes], "MB", 1)
    each = sum(s for s, _ in passes) / (len(passes) * reads)
    print(f"   {each * 1e6:.1f} us a read, {1e-3 / per_mb:.2f} GB/s", flush=True)
    return per_mb


if __name__ == "__main__":
    main()
