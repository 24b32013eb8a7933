#!/usr/bin/env bash
# PTM-Mamba from proteins to a trained model: embeddings, training, evaluation, whatever of these is not done yet.
#
#   bash jobs/ptm_mamba.sh [CONFIG] [N] [more trainer arguments]
#
#   CONFIG   default configs/ptm_mamba.yaml
#   N        ranks; default: the GPUs that CUDA_VISIBLE_DEVICES leaves, all GPUs where it is not set, without a GPU the cores.
#            The default stops at 8, the micro-batches of a step in the configurations here; more ranks need more of those.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
case ${1:-} in -h | --help) sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p;}' "${BASH_SOURCE[0]}"; exit 0 ;; esac

config=$here/../configs/ptm_mamba.yaml ranks=''
case ${1:-} in '' | -* | *[!0-9]*) ;; *) set -- "$config" "$@" ;; esac # a number alone is N
case ${1:-} in '' | -*) ;; *) config=$1; shift ;; esac
case ${1:-} in '' | *[!0-9]*) ;; *) ranks=$1; shift ;; esac

gpus() {
    if [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then
        printf '%s' "$CUDA_VISIBLE_DEVICES" | tr ',' '\n' | grep -c '^[[:space:]]*[^-[:space:]]' || true
    else
        { nvidia-smi -L 2>/dev/null || true; } | grep -c '^GPU' || true
    fi
}
if [ -z "$ranks" ]; then
    ranks=$(gpus) what=GPUs
    [ "$ranks" -gt 0 ] || { ranks=$(getconf _NPROCESSORS_ONLN) && what=cores; }
    [ "$ranks" -le 8 ] || ranks=8
    echo "ptm_mamba.sh: $ranks ranks, from the $what seen; another number: bash jobs/ptm_mamba.sh CONFIG N" >&2
fi
exec bash "$here/mpirun.sh" "$ranks" "$config" "$@"
