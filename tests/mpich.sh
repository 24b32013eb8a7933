#!/usr/bin/env bash
# The same program built against MPICH: the tests of tests/mpi under mpiexec.hydra, and under srun --mpi=pmi2 the same
# bits and the end of a dead rank's job.
#
#   bash tests/mpich.sh
#
# It has a build folder of its own, target/mpich. What knows nothing of MPI (HDF5, libtorch's bindings, the kernels) is copied there
# from the other build, once.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
other=${CARGO_TARGET_DIR:-$PWD/target}
export CARGO_TARGET_DIR=$other/mpich MPICC=${MPICC:-mpicc.mpich} TRAINER_MPIEXEC=${TRAINER_MPIEXEC:-mpiexec.hydra}
command -v "$MPICC" >/dev/null && command -v "${TRAINER_MPIEXEC%% *}" >/dev/null ||
    { echo "mpich.sh: no $MPICC or no ${TRAINER_MPIEXEC%% *}: bash jobs/setup.sh --slurm-tests" >&2; exit 4; }

if [ ! -e "$CARGO_TARGET_DIR/release" ] && [ -e "$other/release/.fingerprint" ]; then
    new=$CARGO_TARGET_DIR/copy
    rm -rf "$new"
    mkdir -p "$new/deps"
    # With times: cargo goes by them.
    cp -a "$other/release/.fingerprint" "$other/release/build" "$new"
    find "$other/release/deps" -type f \( -name '*.rlib' -o -name '*.rmeta' -o -name '*.so' -o -name '*.d' \) -exec cp -a -t "$new/deps" {} +
    rm -rf "$new"/.fingerprint/mpi-sys-* "$new"/build/mpi-sys-* "$new"/deps/libtrainer-*
    mv "$new" "$CARGO_TARGET_DIR/release"
fi

# What becomes of a rank that hangs or dies is told by Open MPI's tests: hydra kills the others before they can say who it was.
cargo test --release --locked --test mpi -- --skip watchdog::
cargo test --release --locked --test slurm -- the_same_bits a_dead_rank
ldd "$CARGO_TARGET_DIR/release/trainer" | grep -q libmpich || { echo "mpich.sh: this program is not built against MPICH" >&2; exit 1; }
