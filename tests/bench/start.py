"""From `mpirun -n 2` to the first training step, against the imports a Python trainer begins with.

The configuration (default configs/ptm_mamba_small.yaml) is embedded once, untimed. Then each
repetition starts a new run and stops the clock at the first line on standard error or output that
reports a step and a loss; max_steps is 1, so the run ends by itself.
"""

import os
import re
import subprocess
import sys
import tempfile
import time

from common import REPO, arguments, fail, header, measured, program, ratio, run, save

IMPORTS = "import torch, accelerate, transformers, peft"
STEP_LINE = re.compile(r"\bstep\b\W*0*[1-9].*\bloss\b", re.IGNORECASE)
MPIRUN = ["mpirun", "-n", "2", "--oversubscribe", "--bind-to", "none"]


def first_step(command):
    """Seconds from launch to the first step line; waits for a clean end."""
    start = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=REPO)
    taken, seen = None, []
    for line in child.stdout:
        seen.append(line)
        if taken is None and STEP_LINE.search(line):
            taken = time.perf_counter() - start
    code = child.wait()
    if code != 0 or taken is None:
        said = "".join(seen)[-3000:]
        fail(f"{' '.join(command)} ended with {code}, step line {'seen' if taken else 'not seen'}\n{said}")
    return taken


def main():
    args = arguments(__doc__, repetitions=5, config=str(REPO / "configs/ptm_mamba_small.yaml"))
    record = header("start: mpirun -n 2 to the first training step, small configuration")
    root = ["--allow-run-as-root"] if os.geteuid() == 0 else []
    theirs, mine = [], []
    run([sys.executable, "-c", IMPORTS])  # byte-compiles and warms the page cache
    with tempfile.TemporaryDirectory(prefix="bench-") as work:
        if not args.peer_only:
            small = [args.config, "--set", f"run.output_dir={work}", "--set", f"esm.cache_dir={work}/cache"]
            run([program(), "embed", *small], cwd=REPO)
            command = [*MPIRUN, *root, program(), "train", *small, "--new", "--set", "training.max_steps=1"]
            first_step(command)
        for _ in range(args.repetitions):
            theirs.append(run([sys.executable, "-c", IMPORTS])[0])
            if not args.peer_only:
                mine.append(first_step(command))
    peer_s = measured(record, IMPORTS, theirs, "starts")
    if not args.peer_only:
        ratio(record, "imports over ours", peer_s / measured(record, "ours, 2 ranks, first step", mine, "starts"), 3.0)
    save(record, "start")


if __name__ == "__main__":
    main()
