#!/usr/bin/env bash
# From a fresh clone to a trained PTM-Mamba: sets everything up, makes a small synthetic data set, runs embeddings, training and
# evaluation on two MPI ranks, and checks the result. A few minutes after set-up; run it again for another run.
#
#   bash jobs/quickstart.sh [options of jobs/setup.sh]
set -euo pipefail

case ${1:-} in -h | --help) sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p;}' "${BASH_SOURCE[0]}"; exit 0 ;; esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash jobs/setup.sh "$@"
export PATH="$PWD/.venv/bin:$PATH"

start=$(date +%s)
[ -e data/ptm_mamba_small ] || trainer sample ptm_mamba data/ptm_mamba_small
code=0
bash jobs/mpirun.sh 2 configs/ptm_mamba_small.yaml || code=$?
if [ $code -eq 75 ]; then
    echo "quickstart: stopped, state saved; the same command goes on from there" >&2
fi
[ $code -eq 0 ] || exit $code

# The check: reads what the run wrote and nothing else.
python3 - "$start" <<'PY'
import collections, csv, glob, json, os, re, sys, time

start = int(sys.argv[1])
records = [path for path in glob.glob("outputs/ptm-mamba-small-*/metrics.json") if os.path.getmtime(path) >= start]
if not records:
    sys.exit("quickstart: the run wrote no outputs/ptm-mamba-small-*/metrics.json")
metrics = max(records, key=os.path.getmtime)
run = os.path.dirname(metrics)

with open(metrics) as file:
    validations = [entry for entry in json.load(file) if "avg_val_loss" in entry]
if len(validations) < 2:
    sys.exit(f"quickstart: {metrics} holds {len(validations)} validations; the check needs a first and a last")
first, last = validations[0]["avg_val_loss"], validations[-1]["avg_val_loss"]
accuracy = validations[-1]["avg_val_ptm_acc"]

# Guessing the commonest PTM token everywhere would be right this often.
with open(os.path.join(run, "config.yaml")) as file:
    data = re.search(r"^\s+dataset_location:\s*[\"']?(.*?)[\"']?\s*$", file.read(), re.MULTILINE).group(1)
if os.path.isdir(data):
    data = glob.glob(os.path.join(data, "*.csv"))[0]
with open(data, newline="") as file:
    tokens = collections.Counter(token for row in csv.DictReader(file) for token in re.findall(r"<[^<>]+>", row["ptm_seq"]))
(commonest, count), total = tokens.most_common(1)[0], sum(tokens.values())
share = count / total

def check(holds, text):
    print(("  ok      " if holds else "  FAILED  ") + text)
    return holds

print(f"\nquickstart: {time.time() - start:.0f} s after set-up")
good = check(last <= 0.8 * first, f"validation loss {first:.4f} -> {last:.4f}, ratio {last / first:.3f} (at most 0.8)")
good &= check(accuracy >= 2 * share, f"PTM accuracy {accuracy:.3f}, the commonest PTM token {commonest} is {share:.3f} of all (at least twice that)")
print(f"  results  {os.path.abspath(run)}")
sys.exit(0 if good else 1)
PY
