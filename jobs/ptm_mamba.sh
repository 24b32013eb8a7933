#!/usr/bin/env bash
# PTM-Mamba from proteins to a trained model: embeddings, training, evaluation, whatever of these is not done yet.
#
#   bash jobs/ptm_mamba.sh [CONFIG] [N] [more trainer arguments]
#
#   CONFIG   default configs/ptm_mamba.yaml
#   N        ranks; default: the cores, at most 8, the micro-batches of a step in the configurations here. GPUs are not
#            counted: where there are some, say as many
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
case ${1:-} in -h | --help) sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p;}' "${BASH_SOURCE[0]}"; exit 0 ;; esac

config=$here/../configs/ptm_mamba.yaml ranks=''
case ${1:-} in '' | -* | *[!0-9]*) ;; *) set -- "$config" "$@" ;; esac # a number alone is N
case ${1:-} in '' | -*) ;; *) config=$1; shift ;; esac
case ${1:-} in '' | *[!0-9]*) ;; *) ranks=$1; shift ;; esac

if [ -z "$ranks" ]; then
    ranks=$(getconf _NPROCESSORS_ONLN)
    [ "$ranks" -le 8 ] || ranks=8
    echo "ptm_mamba.sh: $ranks ranks, one a core; another number: bash jobs/ptm_mamba.sh CONFIG N" >&2
fi
exec bash "$here/mpirun.sh" "$ranks" "$config" "$@"
