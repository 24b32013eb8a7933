#!/usr/bin/env bash
# Puts everything in place that `trainer` needs and builds it. Run it as often as you like: what is there already is kept.
#
#   bash jobs/setup.sh [--no-root] [--cuda] [--no-build] [--slurm-tests]
#
#   --no-root    install no system packages; build against the MPI whose mpicc is on PATH (clusters: load its module first)
#   --cuda       libtorch with all CUDA libraries (4.8 GB instead of 1.5); the default where an NVIDIA driver is seen
#   --no-build   stop before `cargo build`
#   --slurm-tests   also what tests/slurm and the MPICH stage of tests/run.sh need: a Slurm that they start and stop themselves, and
#                MPICH beside Open MPI. On Debian, as root; nobody else needs it
#   -h, --help   this text
#
# Read from the environment:
#   LIBTORCH     a libtorch 2.11 that you already have (the directory with lib/ and include/); nothing is downloaded then
#   PYTHON       the Python (3.10 to 3.14) that makes .venv
#   MPICC, CXX, LIBCLANG_PATH, CARGO_TARGET_DIR   as the build tools understand them
#
# What it makes, all in .venv (delete that folder to start afresh):
#   libtorch     link to the libtorch that is built against     bin/cmake     CMake 3.26 or newer, for HDF5
#   nccl/        libnccl.so, the name that the program asks for bin/trainer   link to the finished program
#   mpi.txt      the MPI that was built against
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV=$ROOT/.venv
STAMP=$VENV/setup.stamp        # which set of wheels is complete: "2.11.0 cpu" or "2.11.0 cuda"
UNFINISHED=$VENV/setup.running # there while the wheels are being installed: an interrupted installation is repeated
TORCH=2.11.0
# What libtorch_cpu.so is linked against, and NCCL; the rest of torch's requirements is needed on a GPU alone.
CPU_WHEELS="torch==$TORCH nvidia-cuda-runtime==13.0.96 nvidia-cuda-cupti==13.0.85 nvidia-nccl-cu13==2.28.9"
RUST=1.90
CMAKE_WHEEL='cmake>=3.26'

system=$(uname -s) root_allowed=yes cuda=auto build=yes slurm_tests=no

say() { printf '==> %s\n' "$*"; }
die() {
    printf 'setup: %s\n' "$1" >&2
    shift
    [ $# -eq 0 ] || printf '       %s\n' "$@" >&2
    exit 4
}
have() { command -v "$1" >/dev/null 2>&1; }
# at_least 1.95.0 1.90: is the first version not older than the second?
at_least() {
    local IFS=. i
    local -a a=(${1%%[-+ ]*}) b=($2)
    for i in 0 1 2; do
        [ "${a[i]:-0}" -eq "${b[i]:-0}" ] || { [ "${a[i]:-0}" -gt "${b[i]:-0}" ] && return 0 || return 1; }
    done
}

arguments() {
    while [ $# -gt 0 ]; do
        case $1 in
            --no-root) root_allowed=no ;;
            --cuda) cuda=yes ;;
            --no-build) build=no ;;
            --slurm-tests) slurm_tests=yes ;;
            -h | --help) sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p;}' "${BASH_SOURCE[0]}"; exit 0 ;;
            *) printf 'setup: unknown option %s (known: --no-root --cuda --no-build --slurm-tests --help)\n' "$1" >&2; exit 2 ;;
        esac
        shift
    done
    if [ "$cuda" = auto ]; then
        cuda=no
        [ ! -e /proc/driver/nvidia/version ] || cuda=yes
    fi
}

# ---------------------------------------------------------------- the system

on_debian() { [ -r /etc/os-release ] && have apt-get && grep -qE '^ID(_LIKE)?=.*debian' /etc/os-release; }
installed() { [ "$(dpkg-query -W -f='${Status}' "$1" 2>/dev/null)" = 'install ok installed' ]; }

# The Debian packages that are missing. What the user brings otherwise (an MPI, a Python, a libclang) is left in peace.
missing_packages() {
    local wanted="build-essential pkg-config" package
    { have_mpi && have mpirun; } || wanted="$wanted libopenmpi-dev openmpi-bin"
    [ -n "${LIBCLANG_PATH:-}" ] || wanted="$wanted libclang-dev"
    find_python >/dev/null || wanted="$wanted python3 python3-venv"
    for package in $wanted; do installed "$package" || printf '%s ' "$package"; done
}

# Installs missing packages where that is possible; otherwise `check_tools` says what to do.
debian_packages() {
    local missing as_root=''
    missing=$(missing_packages)
    [ -n "$missing" ] || return 0
    if [ "$(id -u)" -ne 0 ]; then
        have sudo && { sudo -n true 2>/dev/null || [ -t 0 ]; } || return 0
        as_root=sudo
    fi
    apt_install "$missing" ||
        die "apt-get could not install: $missing" "Install them by hand, or use --no-root with an MPI of your own."
}

apt_install() {
    say "Debian packages: $1"
    # shellcheck disable=SC2086  # lists of words
    ${as_root:-} apt-get update -qq &&
        ${as_root:-} env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $1
}

# Slurm and a second MPI, for tests. The daemons are for the tests to start, not for the machine: a policy of "do not start" stands
# while they are installed. mpicc and mpirun stay what they were, whatever the alternatives system makes of the newcomer.
slurm_packages() {
    local package missing='' name policy=/usr/sbin/policy-rc.d
    local -A was=()
    { on_debian && [ "$(id -u)" -eq 0 ] && [ $root_allowed = yes ]; } || die "--slurm-tests installs packages: it needs Debian and root"
    for package in slurmctld slurmd slurm-client munge mpich libmpich-dev iproute2; do
        installed "$package" || missing="$missing$package "
    done
    [ -n "$missing" ] || return 0
    for name in mpicc mpirun; do was[$name]=$(readlink -f "$(command -v $name)"); done
    if [ ! -e $policy ]; then
        # shellcheck disable=SC2064  # the name as it is now
        trap "rm -f $policy" EXIT
        printf '#!/bin/sh\nexit 101\n' >$policy
        chmod 755 $policy
    fi
    apt_install "$missing" || die "apt-get could not install: $missing"
    # The alternative behind mpicc is called mpi.
    [ "$(readlink -f "$(command -v mpicc)")" = "${was[mpicc]}" ] || update-alternatives --set mpi /usr/bin/mpicc.openmpi
    [ "$(readlink -f "$(command -v mpirun)")" = "${was[mpirun]}" ] || update-alternatives --set mpirun /usr/bin/mpirun.openmpi
}

have_mpi() { [ -n "${MPI_PKG_CONFIG:-}${CRAY_MPICH_DIR:-}" ] || have "${MPICC:-mpicc}"; }

# Where bindgen looks for libclang: LIBCLANG_PATH, llvm-config, LD_LIBRARY_PATH, the usual places.
have_libclang() {
    local IFS=: dir name
    for dir in ${LIBCLANG_PATH:-} "$(llvm-config --libdir 2>/dev/null || true)" ${LD_LIBRARY_PATH:-} /usr/local/lib* /usr/lib* \
        /usr/lib*/llvm*/lib* /usr/lib/*-linux-gnu* /Library/Developer/CommandLineTools/usr/lib /opt/homebrew/opt/llvm/lib; do
        for name in "$dir"/libclang.so* "$dir"/libclang-*.so* "$dir"/libclang.dylib; do
            [ ! -e "$name" ] || return 0
        done
        # LIBCLANG_PATH may name the file itself.
        case $dir in *libclang*.so* | *libclang.dylib) [ ! -f "$dir" ] || return 0 ;; esac
    done
    return 1
}

# The first Python that can make a venv with pip in it and for which torch has a wheel.
find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 /usr/bin/python3 python3.14 python3.13 python3.12 python3.11 python3.10}; do
        "$candidate" -c 'import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 14))' \
            2>/dev/null && { command -v "$candidate"; return 0; }
    done
    return 1
}

# Every tool that is missing, in one message, with what it is usually called.
check_tools() {
    local lack=() version cxx=${CXX:-c++}
    have_mpi || lack+=("MPI (no ${MPICC:-mpicc} on PATH): module openmpi, mpich, intel-mpi or cray-mpich; Debian libopenmpi-dev openmpi-bin")
    { have mpirun || have srun || have mpiexec; } || lack+=("an MPI launcher (mpirun, mpiexec or srun): comes with the MPI; Debian openmpi-bin")
    have_libclang || lack+=("libclang, which reads mpi.h: module llvm or clang, or LIBCLANG_PATH=its lib directory; Debian libclang-dev")
    have make || lack+=("make: Debian build-essential")
    if have "$cxx"; then
        version=$("$cxx" -dumpversion)
        [ "$system" = Darwin ] || at_least "$version" 10 ||
            lack+=("a C++20 compiler ($cxx is $version; GCC 10 or Clang 10 is the least): module gcc, then CC and CXX")
    else
        lack+=("a C++ compiler ($cxx): module gcc; Debian build-essential")
    fi
    [ -x "$VENV/bin/python" ] || find_python >/dev/null ||
        lack+=("Python 3.10 to 3.14 with venv and ensurepip: module python, or PYTHON=its path; Debian python3-venv")
    if have cargo && have rustc; then
        version=$(rustc --version | cut -d' ' -f2)
        at_least "$version" $RUST || lack+=("Rust $RUST or newer (found $version): rustup update stable")
    else
        lack+=("Rust $RUST or newer (no cargo on PATH): https://rustup.rs")
    fi
    [ ${#lack[@]} -gt 0 ] || return 0
    if on_debian && [ -n "$(missing_packages)" ]; then
        lack+=("" "On this machine, as root: apt-get install $(missing_packages)")
    elif [ "$system" = Darwin ]; then
        lack+=("" "With Homebrew: brew install open-mpi llvm python@3.12; C++: xcode-select --install")
    fi
    die "these are missing:" "${lack[@]}"
}

about_macos() {
    say "macOS: nothing of this program was ever tested here."
    printf '    %s\n' \
        "What should work: libtorch $TORCH from the wheel (Apple silicon only; CPU, and MPS as device), Open MPI from Homebrew, all recipes." \
        "What cannot: NCCL and CUDA. Intel Macs: torch has no $TORCH wheel for them; set LIBTORCH to one of your own."
    [ "$(uname -m)" = arm64 ] || [ -n "${LIBTORCH:-}" ] || die "an Intel Mac needs LIBTORCH, a libtorch 2.11 built by yourself"
}

# ---------------------------------------------------------------- .venv

site_packages() { "$VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }

# link TARGET NAME: a link NAME inside .venv; relative where the target lies in .venv too, so that the folder can be moved.
link() {
    local target=$1 up=''
    case $target in
        "$VENV"/*)
            case ${2#"$VENV/"} in */*) up=../ ;; esac
            target=$up${target#"$VENV/"}
            ;;
    esac
    [ "$(readlink "$2" 2>/dev/null)" = "$target" ] || ln -sfn "$target" "$2"
}

make_venv() {
    "$VENV/bin/python" -c 'import pip' 2>/dev/null && return 0
    local python
    python=$(find_python) || die "no Python 3.10 to 3.14 with venv and ensurepip (Debian: apt-get install python3-venv)"
    say ".venv with $("$python" --version)"
    "$python" -m venv "$VENV" || die "$python could not make $VENV"
}

pip_install() {
    "$VENV/bin/python" -m pip install --no-input --disable-pip-version-check "$@" ||
        die "pip could not install: $*" \
            "torch $TORCH has wheels for 64-bit Linux with glibc 2.28 or newer and for macOS on Apple silicon, Python 3.10 to 3.14." \
            "No network here? Run this on a login node, or set PIP_INDEX_URL or PIP_FIND_LINKS to a mirror, or LIBTORCH to a libtorch 2.11." \
            "A certificate that does not verify: set PIP_CERT to your site's bundle."
}

# torch_version DIR: of a plain libtorch (build-version) or of a Python package (version.py).
torch_version() {
    cat "$1/build-version" 2>/dev/null || sed -n "s/^__version__ = '\(.*\)'/\1/p" "$1/version.py" 2>/dev/null
}

check_libtorch() {
    local dir=$1 version
    version=$(torch_version "$dir") || true
    case $version in
        2.11.*) ;;
        '') die "$dir is not a libtorch: no build-version or version.py in it" ;;
        *) die "$dir is libtorch $version; this program needs 2.11" "Unset LIBTORCH to let set-up install $TORCH." ;;
    esac
    [ -d "$dir/include/torch" ] || die "$dir has no include/torch: the headers are needed too"
    [ "$system" = Linux ] || return 0
    local lost
    lost=$(ldd "$dir/lib/libtorch_cpu.so" | sed -n 's/^[[:space:]]*\(.*\) => not found/\1/p' | tr '\n' ' ') || true
    [ -z "$lost" ] || die "$dir/lib/libtorch_cpu.so does not find: $lost" "Try --cuda, which installs everything that torch asks for."
}

wheels() {
    local set=cpu again=''
    [ "$cuda" = no ] || set=cuda
    if [ -e "$UNFINISHED" ]; then
        again=--force-reinstall
    else
        case "$(cat "$STAMP" 2>/dev/null)" in "$TORCH $set" | "$TORCH cuda") return 0 ;; esac
    fi
    say "libtorch $TORCH, $set (1.5 GB for cpu, 4.8 GB for cuda; once)"
    : >"$UNFINISHED"
    # shellcheck disable=SC2086  # lists of words
    if [ "$system" = Darwin ]; then
        pip_install --no-deps $again "torch==$TORCH"
    elif [ $set = cuda ]; then
        pip_install $again "torch==$TORCH"
    else
        pip_install --no-deps $again $CPU_WHEELS
    fi
    echo "$TORCH $set" >"$STAMP"
    rm "$UNFINISHED"
}

# Links .venv/libtorch to the libtorch that the user gave, now or in an earlier run (a link that leads out of .venv), or to the wheel's.
libtorch() {
    local dir=${LIBTORCH:-}
    [ -n "$dir" ] || dir=$(readlink "$VENV/libtorch" 2>/dev/null | grep '^/') || dir=''
    if [ -n "$dir" ]; then
        dir=$(cd "$dir" 2>/dev/null && pwd -P) ||
            die "no libtorch at ${LIBTORCH:-$(readlink "$VENV/libtorch")}" "To let set-up install $TORCH: unset LIBTORCH; rm -f .venv/libtorch"
    fi
    case $dir in
        '' | "$(cd "$VENV" && pwd -P)"/*)
            wheels
            dir=$(site_packages)/torch
            check_libtorch "$dir"
            ;;
        *)
            check_libtorch "$dir"
            say "libtorch $(torch_version "$dir") in $dir, given by you (to let set-up install its own: unset LIBTORCH; rm .venv/libtorch)"
            ;;
    esac
    link "$dir" "$VENV/libtorch"
}

# The loader of NCCL asks for libnccl.so and never for libnccl.so.2, which is what wheels and Debian have.
nccl() {
    [ "$system" = Linux ] || return 0
    local at torch lib=''
    torch=$(cd "$VENV/libtorch" && pwd -P)
    for at in "$torch/lib" "$torch/../nvidia/nccl/lib" "$(site_packages)/nvidia/nccl/lib" /usr/lib/*-linux-gnu /usr/lib64 /usr/local/lib; do
        [ -z "$lib" ] && [ -e "$at/libnccl.so.2" ] || continue
        lib=$(cd "$at" && pwd)/libnccl.so.2
    done
    [ ! -L "$VENV/nccl" ] || rm "$VENV/nccl"
    mkdir -p "$VENV/nccl"
    if [ -n "$lib" ]; then
        link "$lib" "$VENV/nccl/libnccl.so"
    else
        say "no libnccl.so.2 found: all but training on several GPUs works (for that: .venv/bin/python -m pip install nvidia-nccl-cu13==2.28.9)"
    fi
}

# CMake 3.26 or newer, for HDF5: the one here already, the one on PATH, or the wheel's.
cmake_new_enough() { at_least "$("$1" --version 2>/dev/null | sed -n 's/^cmake version //p')" 3.26; }

cmake_link() {
    local other
    if cmake_new_enough "$VENV/bin/cmake"; then return 0; fi
    other=$(command -v cmake || true)
    if [ -n "$other" ] && [ "$other" != "$VENV/bin/cmake" ] && cmake_new_enough "$other"; then
        ln -sfn "$other" "$VENV/bin/cmake"
    else
        say "CMake 3.26 or newer"
        # --force-reinstall: a .venv that was copied or moved has a bin/cmake that points to its old place.
        pip_install --no-deps --force-reinstall "$CMAKE_WHEEL"
    fi
}

# ---------------------------------------------------------------- the build

# Writes .venv/mpi.txt. The MPI bindings do not notice another MPI by themselves: they are built anew when it changed.
record_mpi() {
    local mpicc=${MPICC:-mpicc} old=''
    [ ! -e "$VENV/mpi.txt" ] || old=$(cat "$VENV/mpi.txt")
    {
        if [ -n "${MPI_PKG_CONFIG:-}${CRAY_MPICH_DIR:-}" ]; then
            echo "found by: MPI_PKG_CONFIG=${MPI_PKG_CONFIG:-} CRAY_MPICH_DIR=${CRAY_MPICH_DIR:-}"
        else
            echo "mpicc:    $(command -v "$mpicc")"
            echo "compiles: $("$mpicc" --showme 2>/dev/null || "$mpicc" -show)"
        fi
        echo "launcher: $(command -v mpirun || command -v mpiexec || command -v srun)"
        echo "version:  $({ mpirun --version || mpiexec --version || srun --version; } 2>/dev/null | sed -n '/./{p;q;}')"
    } >"$VENV/mpi.txt.new"
    mv "$VENV/mpi.txt.new" "$VENV/mpi.txt"
    if [ "$old" != "$(cat "$VENV/mpi.txt")" ]; then
        say "MPI, recorded in .venv/mpi.txt"
        sed 's/^/    /' "$VENV/mpi.txt"
        # The only profile that set-up and tests use is release.
        [ -z "$old" ] || (cd "$ROOT" && cargo clean --release --quiet -p mpi-sys -p mpi)
    fi
}

build() {
    say "cargo build --release (the first time this takes many minutes: HDF5 is built too)"
    cd "$ROOT"
    # .cargo/config.toml names .venv/libtorch and .venv/bin/cmake; the same environment every time means no needless rebuild.
    unset LIBTORCH LIBTORCH_USE_PYTORCH LIBTORCH_LIB LIBTORCH_INCLUDE CMAKE
    cargo build --release --locked
    local target
    target=$(cargo metadata --format-version 1 --no-deps --locked |
        "$VENV/bin/python" -c 'import json, sys; print(json.load(sys.stdin)["target_directory"])')
    [ -x "$target/release/trainer" ] || die "cargo made no $target/release/trainer"
    ln -sfn "$target/release/trainer" "$VENV/bin/trainer"
}

main() {
    arguments "$@"
    have cargo || PATH=$HOME/.cargo/bin:$PATH # a shell that was open before Rust came does not have it
    [ "$system" != Darwin ] || about_macos
    case $system in
        Linux | Darwin) ;;
        *) die "$system: only Linux is supported (and macOS, untested)" ;;
    esac
    if [ $root_allowed = yes ] && on_debian; then debian_packages; fi
    check_tools
    if [ $slurm_tests = yes ]; then slurm_packages; fi
    make_venv
    libtorch
    nccl
    cmake_link
    record_mpi
    if [ $build = yes ]; then build; fi
    say "ready. To have trainer on the command line:"
    printf '    export PATH="%s/bin:$PATH"\n' "$VENV"
}

main "$@"
