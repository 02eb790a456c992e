#!/bin/bash
# One rank under srun: a command that takes all ranks of its step along where it is lost or fails by itself.
#
# srun --kill-on-bad-exit sends SIGTERM, which a rank takes for the wish that it stop in good order: it would wait for
# the lost one until SIGKILL comes, 30 s later. And where all ranks end with a code, it would send SIGTERM to the slower
# ones, and report that instead.

source "$(dirname "${BASH_SOURCE[0]}")/wait.sh"

trap : TERM USR1 # SLURM signals all processes of a task, so the command has it too
(
    trap '' USR1 # until it heeds that: SIGUSR1 is no reason to end while it starts
    exec "$@"
) &
await "$!"
case $code in
    0 | 2 | 3 | 4 | 75) ;; # the codes with which all ranks end together: see lpnet.launch
    *)
        echo "rank ${SLURM_PROCID:-?} ended with code $code: ending all ranks" >&2
        scancel --signal=KILL "$SLURM_JOB_ID.$SLURM_STEP_ID"
        ;;
esac
exit "$code"
