#!/usr/bin/env bash
# Everything in tests/bad under mpirun: one clear line, exit code 2 of all ranks, nothing written, in under 15 s each.
#
#   scripts/bad_inputs.sh [RANKS]            each case as a command of its own, as a user gives it (3 ranks; an hour)
#   scripts/bad_inputs.sh --quick [RANKS]    all cases in one start of the ranks, one after the other (minutes)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

quick=0
if [[ ${1:-} == --quick ]]; then
    quick=1
    shift
fi
count=${1:-3}
[[ $# -le 1 && $count =~ ^[1-9][0-9]*$ ]] || die "${*:-nothing}: given, [--quick] and a number of ranks allowed"

find_mpirun
cd "$root"
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
if ((quick)); then
    exec "${mpirun[@]}" -n "$count" "$python" tests/bad/corpus.py --here
fi
LPNET_MPIRUN="${mpirun[*]}" exec "$python" tests/bad/corpus.py --ranks "$count"
