"""What the drivers share: where things are, the machine, the GEMM rate, running our side, reporting.

Importing this sets the thread count before torch starts; drivers import it first.
"""

import argparse
import datetime
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPO = HERE.parent.parent
RESULTS = HERE / "results"
THREADS = int(os.environ.get("BENCH_THREADS", "2"))

os.environ.update(OMP_NUM_THREADS=str(THREADS), MKL_NUM_THREADS=str(THREADS))
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def fail(message):
    """Ends the driver as the program does when the environment is at fault."""
    print(f"bench: {message}", file=sys.stderr)
    sys.exit(4)


def arguments(description, **defaults):
    """--peer-only, --repetitions and whatever the driver adds (name=default)."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--peer-only", action="store_true", help="measure the peer alone, no ratio")
    for name, default in defaults.items():
        parser.add_argument("--" + name.replace("_", "-"), type=type(default), default=default)
    return parser.parse_args()


def program():
    """The program's binary: $TRAINER, else the release build of this checkout."""
    path = Path(os.environ.get("TRAINER", REPO / "target/release/trainer"))
    if not os.access(path, os.X_OK):
        fail(f"{path} is not there; build it (bash jobs/setup.sh), set TRAINER, or pass --peer-only")
    return str(path)


def example(name):
    """One of our measuring examples: $TRAINER_EXAMPLES/NAME, else the release build's."""
    path = Path(os.environ.get("TRAINER_EXAMPLES", REPO / "target/release/examples")) / name
    if not os.access(path, os.X_OK):
        fail(f"{path} is not there; cargo build --release --examples, set TRAINER_EXAMPLES, or pass --peer-only")
    return str(path)


def run(command, **options):
    """Runs a command to its end; returns (wall seconds, its standard output)."""
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, **options)
    wall = time.perf_counter() - start
    if done.returncode != 0:
        fail(f"{' '.join(map(str, command))} ended with {done.returncode}\n{done.stderr[-3000:]}")
    return wall, done.stdout


def mpirun(ranks, *options):
    """The launcher in front of a command for so many ranks, also as root."""
    root = ["--allow-run-as-root"] if os.geteuid() == 0 else []
    return ["mpirun", "-n", str(ranks), *root, *(options or ("--oversubscribe", "--bind-to", "none"))]


def pinned(ranks):
    """The same with each rank on a core of its own, where there are enough cores."""
    return mpirun(ranks, "--bind-to", "core", "--map-by", "core") if ranks <= os.cpu_count() else mpirun(ranks)


def json_line(text, key):
    """The last line of `text` that is a JSON object with `key`."""
    for line in reversed(text.splitlines()):
        if line.lstrip().startswith("{"):
            value = json.loads(line)
            if key in value:
                return value
    fail(f"our side printed no JSON line with {key!r}:\n{text[-2000:]}")


def seconds(action):
    """Wall seconds of one call, and its value."""
    start = time.perf_counter()
    value = action()
    return time.perf_counter() - start, value


def gemm_rate(size=2048, times=10):
    """fp32 multiply-adds of this machine now, FLOP/s: the median of `times` size^3 products."""
    import torch

    torch.set_num_threads(THREADS)
    a, b = torch.randn(size, size), torch.randn(size, size)
    torch.mm(a, b)
    taken = [seconds(lambda: torch.mm(a, b))[0] for _ in range(times)]
    return 2 * size**3 / statistics.median(taken)


def proteins(count, longest=1022, shortest=1, seed=7):
    """The first `count` of a seeded shuffle of the Swiss-Prot sequences of at most `longest` residues."""
    name = "swissprot_yeast_ecoli_bsub.fasta"
    path = Path(os.environ.get("TRAINER_DATA", REPO / "data")) / name
    if not path.exists():
        fail(f"{path} is not there; set TRAINER_DATA to the folder that holds {name}")
    records, key = [], None
    for line in path.read_text().splitlines():
        if line.startswith(">"):
            key = line[1:].split()[0]
            records.append([key, []])
        elif line:
            records[-1][1].append(line.strip())
    records = [(k, "".join(parts)) for k, parts in records]
    records = [(k, s) for k, s in records if shortest <= len(s) <= longest]
    random.Random(seed).shuffle(records)
    return records[:count]


def write_fasta(path, records):
    path.write_text("".join(f">{key}\n{sequence}\n" for key, sequence in records))


def cpu_model():
    try:
        for line in open("/proc/cpuinfo"):
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def header(work):
    """Says what is measured, where and when; returns the record that the driver fills."""
    from importlib.metadata import version

    record = {
        "work": work,
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "threads": THREADS,
        "load": round(os.getloadavg()[0], 2),
        "peers": {p: version(p) for p in ("torch", "transformers", "h5py", "accelerate", "peft")},
    }
    print(f"# {work}")
    print(f"# {record['date']}  {record['cpu']}, {record['cores']} cores, {THREADS} threads, load {record['load']}")
    print("# " + ", ".join(f"{k} {v}" for k, v in record["peers"].items()), flush=True)
    if record["load"] > 0.5:
        print(f"# others are at work on this machine (load {record['load']}): the figures are not to be published")
    return record


def measured(record, name, values, unit, work=None):
    """One line a measurement: the median, and every repetition. With `work` the rate is printed too."""
    median = statistics.median(values)
    rate = f"  {work / median:,.1f} {unit}/s" if work else ""
    print(f"{name:34s} {median:10.4g} s{rate}  of {[float(f'{v:.4g}') for v in values]}", flush=True)
    record[name] = {"median_s": median, "all_s": values, **({f"{unit}_per_s": work / median} if work else {})}
    return median


def ratio(record, name, value, least, stretch=None):
    """The line that counts: a ratio beside what was asked for."""
    goal = f"asked {least}" + (f", stretch {stretch}" if stretch else "")
    print(f"{name:34s} {value:10.3f}    {goal}  {'reached' if value >= least else 'MISSED'}", flush=True)
    record[name] = {"value": value, "asked": least, "stretch": stretch}


def at_most(record, name, value, most=None):
    """The same for a ratio that should be small; without a limit it is for information."""
    verdict = "for information" if most is None else f"at most {most}  {'reached' if value <= most else 'MISSED'}"
    print(f"{name:34s} {value:10.3f}    {verdict}", flush=True)
    record[name] = {"value": value, "at_most": most}


def save(record, name):
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
