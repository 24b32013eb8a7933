#!/usr/bin/env bash
# Makes tests/bench/.venv with the peers: torch, transformers, accelerate, peft, h5py, scikit-learn.
# The second call sees that nothing changed and ends at once. The program's own
# environment (.venv in the repository root) is another one and is not touched.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
venv=$here/.venv
wanted=$here/requirements.txt
stamp=$venv/requirements.installed

if [[ -x $venv/bin/python ]] && cmp -s "$wanted" "$stamp"; then
    echo "bench: peers are in place ($venv)"
    exit 0
fi
python=${PYTHON:-python3}
command -v "$python" >/dev/null || { echo "bench: no $python; install Python 3.10 or newer" >&2; exit 4; }
if [[ ! -x $venv/bin/python ]]; then
    "$python" -m venv "$venv" || {
        echo "bench: python -m venv failed; on Debian: apt-get install python3-venv" >&2
        exit 4
    }
fi
nice -n 10 "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$wanted"
"$venv/bin/python" -c 'import torch, transformers, accelerate, peft, h5py, numpy, safetensors, sklearn'
cp "$wanted" "$stamp"
echo "bench: peers are in place ($venv)"
