#!/usr/bin/env bash
# Sets up .venv and runs everything: lint, types, serial tests, and the MPI tests on 1, 2, 3 and 5 ranks. Stops at the first
# failure with its exit code. scripts/test.sh --quick leaves out the MPI tests.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

quick=0
case $# in
    0) ;;
    1) [[ $1 == --quick ]] || die "$1: unknown option, --quick allowed"; quick=1 ;;
    *) die "at most one option allowed: --quick" ;;
esac

# Runs a command for at most so many seconds (exit code 124), where the machine has timeout.
run() {
    local seconds=$1
    shift
    printf '\n== %s\n' "${*//"$root"\//}" >&2
    if type -P timeout >/dev/null; then
        timeout --foreground --kill-after=10 "$seconds" "$@"
    else
        "$@"
    fi
}

"$root/scripts/setup.sh"
find_mpirun
cd "$root"

run 60 "$python" -m ruff check .
run 300 "$python" -m mypy
run 1200 "$python" -m pytest -q -m "not mpi" -n auto --maxprocesses 4
if ((quick)); then exit 0; fi
# The MPI tests: first with the serial twin of the communicator, then on several ranks. No cache: ranks would share it.
mpi_tests=("$python" -m pytest -q -p no:cacheprovider --with-mpi -m mpi tests/mpi)
run 600 "${mpi_tests[@]}"
for count in 2 3 5; do
    run 600 "${mpirun[@]}" -n "$count" "${mpi_tests[@]}"
done
