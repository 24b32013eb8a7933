"""How much of the time for summing gradients over two ranks is hidden behind backward.

The example `bench_overlap` takes steps of PTM-Mamba in turn: without any sum over ranks, with one
after backward (`distributed.overlap: false`), with one during backward. The hidden share is
(after - during) / (after - none), of the medians. Every rank has one core and one thread.
"""

from pathlib import Path

from common import arguments, example, header, json_line, measured, pinned, ratio, run, save


def main():
    args = arguments(__doc__, repetitions=15, layers=4, d_model=768, batch=2, length=128, micro_batches=1)
    if args.peer_only:
        return print(f"# {Path(__file__).stem}: nothing to measure without our build")
    record = header("sum of gradients during backward, 2 ranks")
    for kind in ("exact", "fast"):
        command = [*pinned(2), example("bench_overlap"), "--repeats", str(args.repetitions)]
        for key in ("layers", "d_model", "batch", "length", "micro_batches"):
            command += ["--" + key.replace("_", "-"), str(getattr(args, key))]
        said = json_line(run(command + (["--fast"] if kind == "fast" else []))[1], "during")
        print(f"# {said['gradient_bytes'] / 2**20:.0f} MB of gradient")
        none, after, during = (
            measured(record, f"{kind}: {what}", said[key], "steps", 1)
            for what, key in (("no sum", "none"), ("sum after backward", "after"), ("sum during backward", "during"))
        )
        ratio(record, f"{kind}: hidden share", (after - during) / (after - none), 1 / 3)
    save(record, "overlap")


if __name__ == "__main__":
    main()
