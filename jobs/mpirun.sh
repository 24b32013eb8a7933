#!/usr/bin/env bash
# Starts a run on several ranks of this machine, and stops it gently.
#
#   bash jobs/mpirun.sh N CONFIG [more trainer arguments]
#
# is `mpirun -n N trainer run CONFIG …` with the options that a small box needs, and one thing more. mpirun turns INT and TERM into
# a kill of all ranks within a second; USR1 it hands on and leaves them time. So INT (Ctrl-C) and TERM sent to this script reach the
# ranks as USR1: they save, and the exit code is 75 (run it again and it goes on). A second Ctrl-C within 5 seconds ends it at once: 130.
set -euo pipefail

usage() { sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p;}' "${BASH_SOURCE[0]}"; }
case ${1:-} in
    -h | --help) usage; exit 0 ;;
    '' | *[!0-9]* | 0) usage >&2; exit 2 ;;
esac
[ $# -ge 2 ] || { usage >&2; exit 2; }
ranks=$1
shift

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
trainer=$root/.venv/bin/trainer
[ -x "$trainer" ] || trainer=$(command -v trainer) || { echo "mpirun.sh: no trainer; run: bash jobs/setup.sh" >&2; exit 4; }
command -v mpirun >/dev/null || { echo "mpirun.sh: no mpirun on PATH; load the MPI in .venv/mpi.txt, or run: bash jobs/setup.sh" >&2; exit 4; }

options=(-n "$ranks")
# Read as a whole first: a reader that stops early would make mpirun fail on its pipe.
version=$(mpirun --version 2>/dev/null || true)
case $version in
    *'Open MPI'* | *OpenRTE* | *prte*)
        # More ranks than cores are allowed, and ranks may move between cores: threads are the program's own business.
        options+=(--oversubscribe --bind-to none)
        [ "$(id -u)" -ne 0 ] || options+=(--allow-run-as-root)
        ;;
    *HYDRA*) options+=(-bind-to none) ;;
esac

# With job control mpirun gets a process group of its own: a Ctrl-C on the terminal comes to this script alone.
set -m
mpirun "${options[@]}" "$trainer" run "$@" </dev/null &
job=$!

# Whom USR1 goes to. MPICH's mpiexec hands it on as well, but then its exit code is sometimes 0 instead of 75; so there the ranks on
# this machine get it, and the others follow them.
receivers() {
    case $version in *HYDRA*) ;; *) echo "$job"; return ;; esac
    local open=("$job") pid
    while [ ${#open[@]} -gt 0 ]; do
        pid=${open[0]}
        # shellcheck disable=SC2207  # numbers
        open=("${open[@]:1}" $(cat "/proc/$pid/task/"*/children 2>/dev/null || true))
        [ "$(cat "/proc/$pid/comm" 2>/dev/null)" != "${trainer##*/}" ] || echo "$pid"
    done
}

signalled=no last=-6 forced=no
pass_on() {
    signalled=yes
    if [ "$1" = INT ] && [ $((SECONDS - last)) -le 5 ]; then
        forced=yes
        kill -TERM "$job" 2>/dev/null || true
    else
        # shellcheck disable=SC2046  # numbers
        kill -USR1 $(receivers) 2>/dev/null || true
    fi
    [ "$1" != INT ] || last=$SECONDS
}
trap 'pass_on INT' INT
trap 'pass_on TERM' TERM

# A signal ends `wait` early; it is asked again until it speaks of mpirun itself.
while :; do
    signalled=no code=0
    wait "$job" || code=$?
    [ $signalled = yes ] || break
done
[ $forced = no ] || code=130
exit "$code"
