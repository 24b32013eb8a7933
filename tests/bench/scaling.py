"""Training steps of PTM-Mamba on one rank and on two: the same steps, one thread and one core a rank.

Both run the same configuration (small's data and ESM-2, a larger model) from the beginning, so they
take the same steps on the same micro-batches and must end with the same weights, which is checked.
The first run finds out how many steps take --seconds on one rank. Then the two take turns
--repetitions times. A run's time is the sum of its steps' seconds without the first two, waiting for
data included, evaluation and saving not. The efficiency is the median of t(1) / (2 t(2)) over the
pairs.
"""

import json
import statistics
import tempfile
from pathlib import Path

from common import REPO, arguments, fail, header, measured, pinned, program, ratio, run, save

SKIPPED = 2


def train(config, work, ranks, name, steps):
    """Runs `steps` steps; returns the seconds of each and the bytes of the weights."""
    out = work / name
    settings = [f"run.output_dir={out}", f"training.max_steps={steps}", *config]
    command = [*pinned(ranks), program(), "train", str(REPO / "configs/ptm_mamba_small.yaml"), "--new"]
    for setting in settings:
        command += ["--set", setting]
    run(command, cwd=REPO)
    (made,) = out.iterdir()
    records = [json.loads(line) for line in (made / "metrics.jsonl").read_text().splitlines()]
    seconds = [r["seconds"] for r in records if r["kind"] == "train"]
    if len(seconds) != steps:
        fail(f"{made} holds {len(seconds)} steps, not {steps}")
    return seconds, (made / "last.ckpt/model.safetensors").read_bytes()


def main():
    args = arguments(__doc__, repetitions=7, seconds=60, d_model=192, layers=4, tokens=2048)
    if args.peer_only:
        return print(f"# {Path(__file__).stem}: nothing to measure without our build")
    record = header("scaling from 1 to 2 ranks, PTM-Mamba steps")
    with tempfile.TemporaryDirectory(prefix="bench-") as temporary:
        work = Path(temporary)
        data, cache = work / "data", work / "cache"
        run([program(), "sample", "ptm_mamba", str(data)], cwd=REPO)
        config = [f"dataset.dataset_location={data}/ptm.csv", f"esm.cache_dir={cache}",
                  f"model.d_model={args.d_model}", f"model.n_layer={args.layers}",
                  f"training.max_tokens_per_batch={args.tokens}", "training.num_train_epochs=100000",
                  "training.eval_steps=1000000", "training.logging_steps=1", "training.report_to=[]"]
        embed = [program(), "embed", str(REPO / "configs/ptm_mamba_small.yaml")]
        run(embed + [word for setting in config for word in ("--set", setting)], cwd=REPO)
        pilot, _ = train(config, work, 1, "pilot", 6)
        steps = SKIPPED + max(4, round(args.seconds / statistics.median(pilot[SKIPPED:])))
        print(f"# {steps} steps a run, the first {SKIPPED} not counted", flush=True)
        one, two, efficiency = [], [], []
        for repetition in range(args.repetitions):
            first, weights = train(config, work, 1, f"one{repetition}", steps)
            second, others = train(config, work, 2, f"two{repetition}", steps)
            if weights != others:
                fail("one rank and two do not end with the same weights")
            one.append(sum(first[SKIPPED:]))
            two.append(sum(second[SKIPPED:]))
            efficiency.append(one[-1] / two[-1] / 2)
        measured(record, "1 rank", one, "steps", steps - SKIPPED)
        measured(record, "2 ranks", two, "steps", steps - SKIPPED)
        print(f"efficiency of each pair: {[round(e, 3) for e in efficiency]}")
        ratio(record, "efficiency, 1 to 2 ranks", statistics.median(efficiency), 0.94)
    save(record, "scaling")


if __name__ == "__main__":
    main()
