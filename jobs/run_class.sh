#!/usr/bin/env bash
# A class for each alloy, from the raw table to predictions: samples, training, evaluation, whatever of these is not done yet.
#
#   bash jobs/run_class.sh [CONFIG] [N] [more trainer arguments]
#
#   CONFIG   default configs/alloy_classification.yaml, which starts from models/matscibert; configs/alloy_classification_small.yaml needs no
#            model
#   N        ranks; default 1. More of them need as many micro-batches: --set training.micro_batches_per_step=N
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
case ${1:-} in -h | --help) sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p;}' "${BASH_SOURCE[0]}"; exit 0 ;; esac

config=$here/../configs/alloy_classification.yaml ranks=1
case ${1:-} in '' | -* | *[!0-9]*) ;; *) set -- "$config" "$@" ;; esac # a number alone is N
case ${1:-} in '' | -*) ;; *) config=$1; shift ;; esac
case ${1:-} in '' | *[!0-9]*) ;; *) ranks=$1; shift ;; esac
exec bash "$here/mpirun.sh" "$ranks" "$config" "$@"
