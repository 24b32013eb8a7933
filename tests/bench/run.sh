#!/usr/bin/env bash
# Runs every benchmark of this folder, one after the other, peer and program in one go.
# Arguments go to every driver: `run.sh --peer-only` needs no build of ours,
# `run.sh --repetitions 5` takes medians of five.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
bash "$here/setup.sh"
failed=()
for driver in start launch cache_read mamba_step bert_step esm_embed allreduce overlap scaling prepare_table; do
    "$here/.venv/bin/python" "$here/$driver.py" "$@" || failed+=("$driver")
    echo
done
if ((${#failed[@]})); then
    echo "bench: did not finish: ${failed[*]}" >&2
    exit 1
fi
