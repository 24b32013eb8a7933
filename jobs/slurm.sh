# shellcheck shell=bash
# What the job files share; they source it. Read from the environment of sbatch:
#
#   TRAINER_HOME   this project's folder     [where the job file lies, or else where sbatch was called]
#   TRAINER        the program               [TRAINER_HOME/.venv/bin/trainer]
#   TRAINER_MPI    for srun --mpi=           [pmix for Open MPI, pmi2 for MPICH and its kin; `srun --mpi=list` shows what there is]
#
# Afterwards $trainer and $mpi are set, and `launch COMMAND…` runs a command to the job's end.

early=no
trap 'early=yes' USR1 # for `launch` to hand on
job=$SLURM_JOB_ID
[ -z "${SLURM_ARRAY_TASK_ID:-}" ] || job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID # this task, and none of its siblings
trainer=${TRAINER:-$home/.venv/bin/trainer}
export SLURM_EXPORT_ENV=ALL # srun would follow `sbatch --export`
# Since Slurm 22.05 srun does not take --cpus-per-task over from sbatch.
[ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK

say() { printf '%s job %s: %s\n' "$(date '+%F %T')" "$job" "$*" >&2; }
refuse() { say "$@"; exit 4; }

# The program must be started by the MPI that it was built against: .venv/mpi.txt says which.
check_mpi() {
    local record=$home/.venv/mpi.txt libraries lost launcher='' built='' here=''
    [ -x "$trainer" ] || refuse "no program at $trainer: run bash jobs/setup.sh there, or set TRAINER"
    if [ -r "$record" ]; then
        launcher=$(sed -n 's/^launcher: *//p' "$record") built=$(sed -n 's/^version: *//p' "$record")
    fi
    libraries=$(ldd "$trainer")
    lost=$(sed -n 's/^[[:space:]]*\(libmpi[^ ]*\) => not found.*/\1/p' <<<"$libraries")
    [ -z "$lost" ] || refuse "$lost, which $trainer was built against, is not loaded: module load ${built:-the MPI of jobs/setup.sh}"
    case ${launcher##*/} in
        mpirun | mpiexec) here=$("${launcher##*/}" --version 2>/dev/null | sed -n "/./{p;q;}") || true ;;
    esac
    [ -n "${TRAINER_MPI:-}" ] || [ -z "$here" ] || [ "$here" = "$built" ] ||
        refuse "the MPI loaded here is '$here'; the program was built against '$built': load that one, or run jobs/setup.sh with this one" \
            "(or set TRAINER_MPI, if you know that they go together)"
    case $libraries in
        *libmpi.so.[2-9]*) mpi=pmix ;; # Open MPI
        *libmpi*.so.1[0-9]*) mpi=pmi2 ;; # MPICH, MVAPICH, Intel MPI, Cray
        *) [ -n "${TRAINER_MPI:-}" ] || refuse "which MPI $trainer is built against is not clear: set TRAINER_MPI" ;;
    esac
    mpi=${TRAINER_MPI:-$mpi}
}

# USR1 comes before the time limit (#SBATCH --signal), TERM when Slurm ends the job. The ranks save on either. They are told again and
# again, for one that is just being started does not listen yet.
pass_on() {
    signalled=yes
    [ -z "$teller" ] || return 0
    while kill -USR1 "$step" 2>/dev/null; do sleep 2; done &
    teller=$!
}

# launch COMMAND…: runs it as the rest of the job. Exit code 75 (stopped, state saved) puts the job back into the queue, once more
# under the same number; any other is the job's own.
launch() {
    local code
    (trap '' USR1; exec "$@") & # srun would die of it in its first moments
    step=$! teller=''
    trap pass_on USR1 TERM
    [ $early = no ] || pass_on
    # A signal ends `wait` early; it is asked again until it speaks of the command itself.
    while :; do
        signalled=no code=0
        wait "$step" || code=$?
        [ $signalled = yes ] || break
    done
    trap '' USR1 TERM
    [ -z "$teller" ] || kill "$teller" 2>/dev/null || true
    [ $code -ne 75 ] || requeue
    exit $code
}

# After scancel, or where Slurm itself requeues the job (a requeue by hand, preemption), it is no longer RUNNING but COMPLETING:
# a requeue from here would bring a cancelled job back.
requeue() {
    local state
    state=$(squeue --noheader --jobs="$job" --format=%T) || state='not known'
    if [ "$state" != RUNNING ]; then
        say "stopped, state saved; its state in Slurm is ${state:-gone}, so Slurm decides what becomes of it"
    elif scontrol requeue "$job"; then
        say "stopped, state saved; it goes back into the queue and goes on from there"
    else
        say "stopped, state saved, but it may not be requeued: submit the same again, and it goes on from there"
    fi
}

check_mpi
say "restart ${SLURM_RESTART_COUNT:-0} on $SLURM_JOB_NODELIST, ranks a node: $SLURM_TASKS_PER_NODE, srun --mpi=$mpi"
