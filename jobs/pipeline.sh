#!/usr/bin/env bash
# Submits two jobs: the embeddings, and a training that starts when they are complete. Prints their numbers.
#
#   bash jobs/pipeline.sh CONFIG [more trainer arguments, for both]
#
# Read from the environment:
#   PARTS           embed by an array of so many tasks                    [1: one job, no array]
#   TRAIN           the training's job file                               [train.sbatch; or train_multinode.sbatch]
#   EMBED_OPTIONS, TRAIN_OPTIONS   options of sbatch, cut at spaces: TRAIN_OPTIONS="--partition=gpu --time=8:00:00"
# and what jobs/slurm.sh reads. If embedding fails for good, the training is taken out of the queue.
set -euo pipefail

usage() { sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p;}' "${BASH_SOURCE[0]}"; }
case ${1:-} in
    -h | --help) usage; exit 0 ;;
    '' | -*) usage >&2; exit 2 ;;
esac
case ${PARTS:=1} in *[!0-9]* | 0*) echo "pipeline.sh: PARTS=$PARTS is no number of tasks" >&2; exit 2 ;; esac
command -v sbatch >/dev/null || { echo "pipeline.sh: no sbatch here; without Slurm: bash jobs/mpirun.sh N CONFIG" >&2; exit 4; }

jobs=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export TRAINER_HOME=${TRAINER_HOME:-$(dirname "$jobs")}

# submit JOB_FILE OPTIONS CONFIG…: its number (on several clusters it is followed by the cluster's name).
submit() {
    local file=$1 options=$2 id
    shift 2
    # shellcheck disable=SC2086  # a list of words
    id=$(sbatch --parsable $options "$jobs/$file" "$@") || return
    echo "${id%%;*}"
}

if [ "$PARTS" -gt 1 ]; then
    embed=$(submit embed_array.sbatch "${EMBED_OPTIONS:-} --array=0-$((PARTS - 1))" "$@")
else
    embed=$(submit embed.sbatch "${EMBED_OPTIONS:-}" "$@")
fi
echo "embed: $embed"
train=$(submit "${TRAIN:-train.sbatch}" "${TRAIN_OPTIONS:-} --dependency=afterok:$embed --kill-on-invalid-dep=yes" "$@") ||
    { echo "pipeline.sh: no training was submitted; the embeddings of job $embed go on" >&2; exit 4; }
echo "train: $train"
