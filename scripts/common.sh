# shellcheck shell=bash
# How ranks are launched; sourced by the scripts beside it and by slurm/job.sh. The current directory stays as it is.
#
#   LPNET_MPI=system   use the machine's own mpirun (first on PATH) instead of the one in .venv
#   LPNET_RANKS=P      number of ranks; default: the cores that this process may use
#   OMP_NUM_THREADS    threads per rank; default 1
#
# Sets root (the repository), python (of .venv) and, by find_mpirun, the array mpirun.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
python=$root/.venv/bin/python

die() {
    printf '%s: %s\n' "$(basename "$0")" "$1" >&2
    exit "${2:-2}"
}

# Prints the number of ranks to start.
ranks() {
    local count=${LPNET_RANKS:-}
    if [[ -z $count ]]; then
        # nproc knows the affinity, but takes OMP_NUM_THREADS for the number of cores.
        count=$(env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc 2>/dev/null || getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)
    fi
    [[ $count =~ ^[1-9][0-9]*$ ]] || die "LPNET_RANKS: '$count' given, a whole number of at least 1 allowed"
    printf '%s\n' "$count"
}

# Sets mpirun to the launcher and the options that it needs.
find_mpirun() {
    local launcher=$root/.venv/bin/mpirun
    case ${LPNET_MPI:-embedded} in
        embedded) ;;
        system) launcher=$(type -P mpirun) || die "LPNET_MPI: 'system' given, but there is no mpirun on PATH" ;;
        *) die "LPNET_MPI: '$LPNET_MPI' given, 'system' or 'embedded' allowed" ;;
    esac
    mpirun=("$launcher")
    if [[ $("$launcher" --version 2>&1) == *"Open MPI"* || $("$launcher" --version 2>&1) == *OpenRTE* ]]; then
        mpirun+=(--oversubscribe)
        if [[ $(id -u) == 0 ]]; then mpirun+=(--allow-run-as-root); fi
    fi
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
}
