#!/bin/bash
# One rank of a job step. The job files start it by srun:
#
#   rank.sh COMMAND…
#
# It runs the command, and ends the whole step at once if that is killed. `srun --kill-on-bad-exit=1` sends TERM to the other ranks,
# which they take for a wish to stop: they would save together, but wait for the dead one until Slurm's KillWait, usually 30 s.

trap : INT TERM USR1 # they come to the command as well
# Until it listens it is not to die of USR1, which comes again.
(trap '' USR1; exec "$@") &
while kill -0 $! 2>/dev/null; do wait $!; done
wait $!
code=$?
[ $code -lt 126 ] || scancel --signal=KILL "$SLURM_JOB_ID.$SLURM_STEP_ID"
exit $code
