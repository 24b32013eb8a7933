#!/usr/bin/env bash
# Sets everything up and passes the tests, from a clean clone too. Ends with the first stage that fails, and with its exit code.
#
#   bash tests/run.sh [STAGE]      STAGE: scripts, fmt, setup, clippy, mpich or test; default: all, in this order
#                                  slurm: of the tests, those on a Slurm alone
#
# On Debian as root, set-up installs a Slurm and MPICH for the tests, and they must run. Elsewhere they are left out, loudly.
# Everything is built in the release profile, clippy included: it then shares the slow build scripts (HDF5, libtorch's bindings)
# with the build and the tests, and each is run once. What is cheap stands first.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
command -v cargo >/dev/null || PATH=$HOME/.cargo/bin:$PATH
# .cargo/config.toml says what is built against; jobs/setup.sh does the same, so nothing is built twice.
given_libtorch=${LIBTORCH:-}
unset LIBTORCH LIBTORCH_USE_PYTORCH LIBTORCH_LIB LIBTORCH_INCLUDE CMAKE

# Whether a private Slurm and a second MPI can be had here.
on_debian_as_root() { [ "$(id -u)" -eq 0 ] && grep -qsE '^ID(_LIKE)?=.*debian' /etc/os-release; }
if on_debian_as_root; then export TRAINER_REQUIRE_SLURM=1; fi

banner() {
    printf '%s\n' "################################################################################" "# $1" \
        "################################################################################"
}

real_data() {
    if [ -z "${TRAINER_DATA:-}" ] && [ -d ../shared/data ]; then
        TRAINER_DATA=$(cd ../shared/data && pwd)
        export TRAINER_DATA
    fi
    if [ -n "${TRAINER_DATA:-}" ]; then
        echo "real data: $TRAINER_DATA"
    else
        banner "NO REAL DATA: TRAINER_DATA is not set and ../shared/data is not there.
# The tests on real proteins are NOT run; the others use synthetic data."
    fi
}

# timed NAME COMMAND…: runs it within an hour and says how long it took. In the background, so that Ctrl-C can end it.
limit='timeout -k 30 3600'
command -v timeout >/dev/null || limit='' # macOS
child=''
trap '[ -z "$child" ] || kill -TERM "$child" 2>/dev/null; exit 130' INT TERM
timed() {
    local name=$1 begin=$SECONDS code=0 end=passed
    shift
    echo "=== $name"
    $limit "$@" &
    child=$!
    wait "$child" || code=$?
    child=''
    case $code in
        0) ;;
        124 | 137) end="FAILED, ended after an hour or killed (exit code $code)" ;;
        *) end="FAILED, exit code $code" ;;
    esac
    echo "=== $name: $end, $((SECONDS - begin)) s"
    return "$code"
}

stage() {
    case $1 in
        scripts) timed scripts bash -c 'for script; do [ ! -e "$script" ] || bash -n "$script" || exit 1; done' bash \
            jobs/*.sh jobs/*.sbatch tests/*.sh tests/*/*.sh .ci/run ;;
        fmt) timed fmt cargo fmt --check ;;
        setup)
            timed setup env ${given_libtorch:+"LIBTORCH=$given_libtorch"} bash jobs/setup.sh \
                $(! on_debian_as_root || echo --slurm-tests)
            ;;
        clippy) timed clippy cargo clippy --release --locked --all-targets -- -D warnings ;;
        mpich)
            if [ -n "${TRAINER_REQUIRE_SLURM:-}" ] || command -v mpicc.mpich >/dev/null; then
                timed mpich bash tests/mpich.sh
            else
                banner "NO MPICH (mpicc.mpich): the tests with a second MPI are NOT run."
            fi
            ;;
        slurm) timed slurm cargo test --release --locked --test slurm ;;
        # Unit, golden, command-line, MPI and Slurm tests are all Rust tests.
        test) timed test cargo test --release --locked ;;
    esac
}

case ${1:-all} in
    scripts | fmt | setup | clippy | mpich | slurm) stage "$1" ;;
    test)
        real_data
        stage test
        ;;
    all)
        real_data
        for name in scripts fmt setup clippy mpich test; do stage $name; done
        echo "=== all passed in $SECONDS s"
        ;;
    -h | --help) sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p;}' "${BASH_SOURCE[0]}" ;;
    *) echo "run.sh: unknown stage $1 (known: scripts fmt setup clippy mpich slurm test)" >&2; exit 2 ;;
esac
