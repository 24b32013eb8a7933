#!/usr/bin/env bash
# Checks on a machine with GPUs what no other machine can: the models, the kernels, training and NCCL on real devices.
#
#   bash tests/gpu.sh pack DIR           here: builds everything and gathers it in DIR (trainer-gpu.tar.gz and this script)
#   bash DIR/gpu.sh run DIR [--cpu]      there: runs the checks, without cargo or network; needs python3 with torch 2.11
#
#   --cpu      the same checks on the CPU, as far as they go there: to test this script where there is no GPU
#   --keep D   work in D and leave it there
#
# `run` takes libtorch from python3 (PYTHON=another one, or LIBTORCH=its folder). It ends with 0 where every check passed, with 1
# where one failed, and with 4 where there is no GPU.
set -euo pipefail

die() { printf 'gpu.sh: %s\n' "$*" >&2; exit 4; }
usage() { sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p;}' "${BASH_SOURCE[0]}"; }

# ---------------------------------------------------------------------------------------------------------------------- pack

# The executables that cargo made, one a line: KIND NAME PATH.
executables() {
    cargo "$@" --release --locked --message-format=json-render-diagnostics | .venv/bin/python -c '
import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if message.get("reason") == "compiler-artifact" and message.get("executable"):
        print(message["target"]["kind"][0], message["target"]["name"], message["executable"])'
}

# What a program needs beside libtorch and the C library.
libraries_of() {
    ldd "$@" | sed -n 's/^[[:space:]]*\([^ ]*\) => \(\/[^ ]*\) (0x.*/\1 \2/p' | sort -u |
        grep -vE '^(lib(c|m|dl|rt|pthread|util|gcc_s|stdc\+\+|gomp|torch|torch_cpu|c10|cudart|cupti)[.-]|libcudart|libcupti|ld-linux)' || true
}

pack() {
    local out=$1 root stage kind name path plugins
    root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
    mkdir -p "$out"
    out=$(cd "$out" && pwd)
    cd "$root"
    command -v cargo >/dev/null || PATH=$HOME/.cargo/bin:$PATH
    unset LIBTORCH LIBTORCH_USE_PYTORCH LIBTORCH_LIB LIBTORCH_INCLUDE CMAKE
    stage=$(mktemp -d)
    # shellcheck disable=SC2064  # the folder of now
    trap "rm -rf '$stage'" EXIT
    mkdir -p "$stage/bin" "$stage/lib" "$stage/tests"
    {
        executables build --bins --example bench_mamba_step
        executables test --no-run --lib --test golden
    } >"$stage/list"
    while read -r kind name path; do
        case $kind-$name in
            bin-trainer | example-bench_mamba_step | test-golden) strip -o "$stage/bin/$name" "$path" ;;
            lib-trainer) strip -o "$stage/bin/unit" "$path" ;;
        esac
    done <"$stage/list"
    rm "$stage/list"
    for name in trainer bench_mamba_step golden unit; do
        [ -x "$stage/bin/$name" ] || die "cargo made no $name"
    done

    # Open MPI: its launcher, libraries, plugins and help texts, as far as it is the MPI that was built with.
    plugins=''
    if command -v ompi_info >/dev/null && command -v orterun >/dev/null; then
        plugins=$(ompi_info --path pkglibdir --parsable | sed 's/^path:pkglibdir://')
        cp -L "$(command -v orterun)" "$stage/bin/orterun"
        mkdir -p "$stage/lib/openmpi3" "$stage/share"
        # Those of one machine: no fabrics, no batch systems.
        find "$plugins" -name '*.so' | grep -vE '(ucx|psm|ofi|usnic|openib|portals|mtl_|slurm|tm|gridengine|lsf|alps|cuda|fs_|fbtl_|fcoll_|sharedfp_|io_|vprotocol|crs_|topo_treematch|_monitoring)' |
            while read -r path; do cp -L "$path" "$stage/lib/openmpi3/"; done
        cp -rL "$(ompi_info --path pkgdatadir --parsable | sed 's/^path:pkgdatadir://')" "$stage/share/openmpi"
        # Debian's PMIx, through which launcher and ranks talk, has plugins of its own.
        for path in /usr/lib/*-linux-gnu/pmix2; do
            [ -d "$path/lib/pmix" ] || continue
            mkdir -p "$stage/pmix2/lib"
            cp -rL "$path/lib/pmix" "$stage/pmix2/lib/pmix"
            cp -rL "$path/share" "$stage/pmix2/share"
        done
    fi
    libraries_of "$stage"/bin/* $(find "$stage/lib" -name '*.so') | while read -r name path; do
        [ -e "$stage/lib/$name" ] || cp -L "$path" "$stage/lib/$name"
    done
    find "$stage/lib" -name '*.so*' -exec strip --strip-unneeded {} + 2>/dev/null || true
    cp -r tests/golden "$stage/tests/golden"
    find "$stage/tests" -name __pycache__ -prune -exec rm -rf {} +
    cp -r configs "$stage/configs"
    git rev-parse --short HEAD >"$stage/commit" 2>/dev/null || echo unknown >"$stage/commit"
    tar -C "$stage" -czf "$out/trainer-gpu.tar.gz" .
    cp "$root/tests/gpu.sh" "$out/gpu.sh"
    ls -l "$out/trainer-gpu.tar.gz"
    [ "$(stat -c %s "$out/trainer-gpu.tar.gz")" -le 60000000 ] || die "the package is larger than 60 MB"
}

# ----------------------------------------------------------------------------------------------------------------------- run

passed=0 failed=0 worlds=''
ok() { passed=$((passed + 1)); printf '  ok      %s\n' "$*"; }
bad() { failed=$((failed + 1)); printf '  FAILED  %s\n' "$*"; }

# check WHAT COMMAND…: passes where the command does; its output is shown where it fails.
check() {
    local what=$1 code=0
    shift
    "$@" >"$work/out" 2>&1 || code=$?
    if [ $code -eq 0 ]; then ok "$what"; else
        bad "$what (exit code $code)"
        sed 's/^/          | /' "$work/out" | tail -n 25
    fi
    return 0
}

# tests WHAT BINARY ARGUMENTS…: Rust tests, of which at least one must run.
tests() {
    local what=$1 code=0 count
    shift
    timeout -k 5 900 "$@" >"$work/out" 2>&1 || code=$?
    count=$(sed -n 's/^test result: .* \([0-9]*\) passed.*/\1/p' "$work/out" | head -n 1)
    if [ "$device" = cuda ] && grep -q 'NOT RUN' "$work/out"; then
        bad "$what: some were not run"
    elif [ $code -eq 0 ] && [ "${count:-0}" -gt 0 ]; then ok "$what: $count tests"; else
        bad "$what (exit code $code)"
        grep -E 'panicked|^test .*FAILED|error|: .*at most' "$work/out" | head -n 25 | sed 's/^/          | /' || true
    fi
    grep -h 'NOT RUN' "$work/out" | sed 's/^/          | /' || true
}

trainer() { timeout -k 5 600 "$package/bin/trainer" "$@"; }

# train OUT STEPS SETTINGS…: a run in $work/OUT up to that step, goes on where there is one.
train() {
    local out=$1 steps=$2 setting options=()
    shift 2
    for setting in "run.device=$device" "run.output_dir=$work/$out" "dataset.dataset_location=$work/data/ptm.csv" \
        "esm.cache_dir=$work/cache" "training.max_steps=$steps" training.eval_steps=$half training.save_steps=$half \
        training.lr_scheduler_type=constant training.warmup_steps=0 training.lr=2e-3 training.logging_steps=1 "$@"; do
        options+=(--set "$setting")
    done
    ${launcher:-} timeout -k 5 600 "$package/bin/trainer" train "$package/configs/ptm_mamba_small.yaml" "${options[@]}"
}

# checkpoint OUT STEP: the folder of that checkpoint.
checkpoint() { printf '%s' "$work/$1"/*/checkpoints/step_"$(printf %08d "$2")"; }
same() {
    local file
    for file in model optimizer; do
        cmp "$(checkpoint "$1" "$3")/$file.safetensors" "$(checkpoint "$2" "$3")/$file.safetensors" || return 1
    done
}

# learns OUT: the losses of its steps are finite, and the last ones below the first.
learns() {
    "$python" - "$work/$1" <<'PY'
import glob, json, math, sys
steps = [json.loads(line) for line in open(glob.glob(sys.argv[1] + "/*/metrics.jsonl")[0])]
losses = [s["loss"] for s in steps if s["kind"] == "train"]
assert len(losses) >= 4 and all(x is not None and math.isfinite(x) for x in losses), losses
first, last = losses[0], sum(losses[-3:]) / 3
print(f"loss {first:.4f} -> {last:.4f}")
assert last < first, (first, last)
PY
}

find_libtorch() {
    python=${PYTHON:-python3}
    command -v "$python" >/dev/null || die "no $python; set PYTHON to the one that has torch 2.11"
    local root=${LIBTORCH:-}
    [ -n "$root" ] || root=$("$python" -c 'import importlib.util as u; print(u.find_spec("torch").submodule_search_locations[0])' 2>/dev/null) ||
        die "$python has no torch; set PYTHON or LIBTORCH"
    root=$(cd "$root" && pwd -P)
    [ -e "$root/lib/libtorch_cpu.so" ] || die "no libtorch_cpu.so in $root/lib"
    local version
    version=$(sed -n "s/^__version__ = '\(.*\)'/\1/p" "$root/version.py" 2>/dev/null || true)
    case $version in 2.11.*) ;; *) die "torch in $root is ${version:-of an unknown version}; 2.11 is wanted" ;; esac
    # The program asks for libnccl.so, wheels have libnccl.so.2.
    local nccl
    mkdir -p "$work/nccl"
    for nccl in "$root/lib" "$root/../nvidia/nccl/lib" /usr/lib/*-linux-gnu; do
        if [ -e "$nccl/libnccl.so.2" ] && [ ! -e "$work/nccl/libnccl.so" ]; then ln -s "$nccl/libnccl.so.2" "$work/nccl/libnccl.so"; fi
    done
    local path=$root/lib dir
    for dir in "$root"/../nvidia/*/lib; do [ ! -d "$dir" ] || path=$path:$(cd "$dir" && pwd); done
    export LD_LIBRARY_PATH=$path:$work/nccl:$package/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
    echo "libtorch $version in $root, $("$python" --version)"
}

gpus_here() { if command -v nvidia-smi >/dev/null; then nvidia-smi -L 2>/dev/null | grep -c '^GPU' || true; else echo 0; fi; }

embed() {
    trainer embed "$package/configs/ptm_mamba_small.yaml" --set "run.device=$device" --set "dataset.dataset_location=$work/data/ptm.csv" \
        --set "esm.cache_dir=$work/$1"
}
doctor() {
    trainer doctor
    trainer doctor 2>&1 | grep -i 'NVIDIA'
}
resume() {
    train resumed "$half"
    train resumed "$steps"
    same straight resumed "$steps"
}

checks_of_training() {
    echo "training"
    check "synthetic data" trainer sample ptm_mamba "$work/data"
    check "an embedding cache" embed cache
    check "the same cache again" embed again
    check "both caches have the same bytes" diff -r "$work/cache" "$work/again"
    check "$steps steps" train straight "$steps"
    check "the loss falls" learns straight
    check "$steps steps again" train repeated "$steps"
    check "two runs give the same bytes" same straight repeated "$steps"
    check "$half steps and the rest give the same bytes" resume
    check "$steps steps in bf16" train bf16 "$steps" training.precision=bf16
    check "the loss falls in bf16" learns bf16
    [ "$device" = cpu ] || {
        check "$steps steps in fp16" train fp16 "$steps" training.precision=fp16
        check "the loss falls in fp16" learns fp16
    }
    check "ESM-2 within the step" train online "$half" training.use_precomputed_embeddings=false
}

# on_ranks N: as many ranks under the packed Open MPI.
on_ranks() {
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
    export OPAL_PREFIX=$package OMPI_MCA_mca_base_component_path=$package/lib/openmpi3
    [ ! -d "$package/pmix2" ] ||
        export PMIX_PREFIX=$package/pmix2 PMIX_MCA_mca_base_component_path=$package/pmix2/lib/pmix
    launcher="timeout -k 5 600 $package/bin/orterun --oversubscribe --bind-to none -n $1"
}

checks_of_ranks() {
    local n backend=$1
    shift
    echo "ranks over $backend"
    for n in "$@"; do
        launcher=''
        on_ranks "$n"
        check "$n ranks, $backend" train "$backend-$n" "$steps" "distributed.backend=$backend"
        if [ "$backend" = nccl ]; then
            if grep -q 'gradients go through NCCL' "$work/out"; then ok "gradients went through NCCL"; else bad "gradients did not go through NCCL"; fi
            check "$n ranks, nccl, reduce: fast" train "fast-$n" "$steps" distributed.backend=nccl distributed.reduce=fast
            check "the loss falls" learns "fast-$n"
        fi
        if same straight "$backend-$n" "$steps" >/dev/null 2>&1; then
            ok "$n ranks over $backend give one process's bytes"
            worlds="$worlds $backend:$n"
        else
            bad "$n ranks over $backend give other bytes than one process"
        fi
    done
    launcher=''
    if [ "$device" = cuda ] && [ "$backend" = mpi ]; then
        # As many ranks as GPUs and one more: refused with exit code 4.
        on_ranks $((gpus + 1))
        local code=0
        train refused 2 distributed.backend=auto >"$work/out" 2>&1 || code=$?
        if [ $code -ne 0 ] && grep -q 'same GPU' "$work/out"; then ok "$((gpus + 1)) ranks on $gpus GPUs are refused"; else
            bad "$((gpus + 1)) ranks on $gpus GPUs are not refused (exit code $code)"
        fi
        check "$((gpus + 1)) ranks on $gpus GPUs with share_gpus, over MPI" train shared "$half" distributed.share_gpus=true
        launcher=''
    fi
}

speed() {
    local options=(--device "$device" --threads 2 --repeats 5)
    if [ "$device" = cuda ]; then options+=(--layers 24 --d-model 768 --batch 16 --length 1024); else options+=(--layers 2 --d-model 64 --batch 2 --length 128); fi
    echo "speed: Mamba, forward, backward and AdamW"
    local precision
    for precision in '' --bf16; do
        # shellcheck disable=SC2086  # an empty word is none
        check "a training step ${precision:-fp32}" timeout -k 5 600 "$package/bin/bench_mamba_step" "${options[@]}" $precision
        sed 's/^/          | /' "$work/out" | tail -n 1
    done
    check "the scan and the convolution alone" timeout -k 5 600 "$package/bin/bench_mamba_step" "${options[@]}" --kernels
    sed 's/^/          | /' "$work/out" | tail -n 1
    check "100 steps of the small configuration" train long 100
    grep -h 'tok/s' "$work/out" | tail -n 2 | sed 's/^/          | /' || true
}

run() {
    local kept=''
    package='' device=cuda launcher='' steps=8 half=4
    while [ $# -gt 0 ]; do
        case $1 in
            --cpu) device=cpu ;;
            --keep) shift; kept=${1:?--keep wants a folder} ;;
            -*) usage >&2; exit 2 ;;
            *) package=$1 ;;
        esac
        shift
    done
    [ -e "$package/trainer-gpu.tar.gz" ] || die "no trainer-gpu.tar.gz in ${package:-the folder that was not named}; make it with: bash tests/gpu.sh pack DIR"
    if [ -n "$kept" ]; then mkdir -p "$kept"; work=$(cd "$kept" && pwd); else work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; fi
    mkdir -p "$work/package"
    tar -C "$work/package" -xzf "$package/trainer-gpu.tar.gz"
    package=$work/package
    gpus=$(gpus_here)
    if [ "$device" = cuda ] && [ "${gpus:-0}" -eq 0 ]; then
        echo "################################################################################"
        echo "# NO GPU HERE: nothing was checked. (nvidia-smi lists none; --cpu tests this   #"
        echo "# script itself.)                                                              #"
        echo "################################################################################"
        exit 4
    fi
    find_libtorch
    export CUBLAS_WORKSPACE_CONFIG=:4096:8 TRAINER_TEST_DEVICE=$device TRAINER_TEST_ROOT=$package
    echo "trainer $(cat "$package/commit") on $device, $gpus GPUs"
    [ "$device" = cpu ] || nvidia-smi --query-gpu=name,uuid,memory.total,driver_version --format=csv,noheader | sed 's/^/  /'

    echo "the machine"
    if [ "$device" = cuda ]; then check "doctor sees the GPU" doctor; else check "doctor" trainer doctor; fi
    sed -n 's/^/          | /p' "$work/out"
    echo "models and kernels"
    tests "golden numbers on $device" "$package/bin/golden"
    tests "the scan and the convolution against their definitions on $device" "$package/bin/unit" nn::scan
    tests "kernels compile" "$package/bin/unit" cuda::launch
    checks_of_training
    if [ -x "$package/bin/orterun" ]; then
        if [ "$device" = cuda ]; then
            local ranks=1
            local list=()
            while [ $ranks -le "$gpus" ]; do list+=($ranks); ranks=$((ranks * 2)); done
            [ "${list[-1]}" -eq "$gpus" ] || list+=("$gpus")
            checks_of_ranks nccl "${list[@]}"
            checks_of_ranks mpi "${list[@]}"
        else
            checks_of_ranks mpi 1 2
        fi
    fi
    speed
    echo "worlds that gave one process's bytes:${worlds:- none}"
    echo "gpu.sh: $passed checks passed, $failed failed, on $device with $gpus GPUs"
    [ $failed -eq 0 ]
}

case ${1:-} in
    pack) pack "${2:?pack wants a folder}" ;;
    run) shift; run "$@" ;;
    -h | --help) usage ;;
    *) usage >&2; exit 2 ;;
esac
