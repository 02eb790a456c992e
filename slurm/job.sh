# shellcheck shell=bash
# What the batch files share: how ranks are started and bound to cores, how a run is stopped, and begins again. Sourced
# in the root of the repository. Sets root and python (see scripts/common.sh).
source scripts/common.sh
source slurm/wait.sh
[[ -x $python ]] || die "no .venv in $PWD: submit from the root of the repository, after scripts/setup.sh"

readonly stopped=75 # exit code of lpnet.train: a signal came, a checkpoint was written

say() { printf 'job %s: %s\n' "$(job_id)" "$1" >&2; }

# Of an array, SLURM_JOB_ID of one task is the name of all of them.
job_id() { printf '%s\n' "${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_}${SLURM_ARRAY_TASK_ID:-${SLURM_JOB_ID:-}}"; }

# Sets the array launch to what starts so many ranks, each on the cores of its task, with a thread for each core.
find_launcher() {
    local count=$1 cores=${SLURM_CPUS_PER_TASK:-1}
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$cores}
    case ${LPNET_LAUNCHER:-mpirun} in
        mpirun)
            find_mpirun
            launch=("${mpirun[@]}" -n "$count")
            # What mpirun starts on a node by srun, on behalf of all ranks there, must not be bound to one core.
            export SLURM_CPU_BIND=none
            if sees_its_own; then bind_by_mpirun "$cores"; fi
            # SIGUSR1 is no reason to end for a rank that does not heed it yet.
            launch+=(bash -c 'trap "" USR1; exec "$@"' rank)
            ;;
        srun)
            # The embedded MPICH speaks PMI; a cluster's own MPI has the cluster's default.
            if [[ ${LPNET_MPI:-embedded} == embedded ]]; then export SLURM_MPI_TYPE=${SLURM_MPI_TYPE:-pmi2}; fi
            # srun does not take this from sbatch.
            export SRUN_CPUS_PER_TASK=$cores
            srun --overlap --ntasks="${SLURM_NNODES:-1}" --ntasks-per-node=1 --mpi=none slurm/clean.sh
            launch=(srun --ntasks="$count" --kill-on-bad-exit=0)
            if [[ $(scontrol show config) == *task/affinity* ]]; then
                launch+=(--cpu-bind=cores)
                pin_threads
            fi
            launch+=(slurm/rank.sh)
            ;;
        *) die "LPNET_LAUNCHER: '$LPNET_LAUNCHER' given, mpirun or srun allowed" ;;
    esac
}

# Whether this job sees just the processors that are its own: mpirun counts them from the first that it sees.
sees_its_own() { (($(env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc) == ${SLURM_CPUS_ON_NODE:-0})); }

bind_by_mpirun() {
    case $("${mpirun[0]}" --version 2>&1) in
        *"Open MPI"* | *OpenRTE*) launch+=(--map-by "slot:PE=$1" --bind-to core:overload-allowed) ;;
        *HYDRA*) launch+=(-bind-to "hwthread:$1") ;;
        *) return ;; # another one has its own ways
    esac
    pin_threads
}

# For bound ranks only: without bounds, OpenMP would put the first thread of every rank on the first core of the node.
pin_threads() { export OMP_PROC_BIND=${OMP_PROC_BIND:-close} OMP_PLACES=${OMP_PLACES:-cores}; }

# Trains as the arguments say, and ends the job; where it was stopped behind a checkpoint, the job begins again.
train() {
    local arguments=("$@") folder before code
    find_launcher "${SLURM_NTASKS:-$(ranks)}"
    choose_folder
    before=$(newest_checkpoint "$folder")
    run_ranks "$python" -m lpnet.info
    if ((code)); then exit "$code"; fi
    run_ranks "$python" -m lpnet.train "${arguments[@]}"
    if ((code == stopped)); then begin_again; fi
    exit "$code"
}

# Sets folder, and the arguments that name it: a job that was restarted goes on with its own run.
choose_folder() {
    folder=$(expanded "$(option --resume "${arguments[@]}")")
    if [[ -n $folder ]]; then return; fi
    folder=$(expanded "$(option --run.dir "${arguments[@]}")")
    if [[ -z $folder ]]; then
        folder=runs/slurm-${SLURM_JOB_ID:-$$}
        arguments+=(--run.dir "$folder")
    fi
    if ((${SLURM_RESTART_COUNT:-0} == 0)) || [[ ! -e $folder ]]; then return; fi
    if [[ -n $(newest_checkpoint "$folder") ]]; then
        arguments=(--resume "$folder")
    else # ended before there was anything to resume
        mv "$folder" "$folder-void-$SLURM_RESTART_COUNT"
    fi
}

# Prints the name of a folder as lpnet reads it: the shell leaves the tilde of --run.dir=~/mine to it.
expanded() {
    local user=${1%%/*} home=
    case $1 in
        "~" | "~/"*) home=$HOME ;;
        "~"*) home=$(getent passwd "${user#"~"}" | cut -d: -f6) || true ;;
        *) ;;
    esac
    printf '%s\n' "${home:-$user}${1#"$user"}"
}

# Prints the value of an option among arguments, --key VALUE or --key=VALUE.
option() {
    local key=$1
    shift
    while (($#)); do
        case $1 in
            "$key") printf '%s\n' "${2:-}" ;;
            "$key="*) printf '%s\n' "${1#*=}" ;;
        esac
        shift
    done | tail -n 1
}

# Prints the name of the newest checkpoint of a run.
newest_checkpoint() {
    local files=("$1"/checkpoints/step-*.h5)
    if [[ -e ${files[-1]} ]]; then basename "${files[-1]}"; fi
}

# Runs a command on all ranks, passes a signal to stop on to them, and sets code to how they ended.
run_ranks() {
    local told waiter signalled
    told=$(mktemp) # the number of the launcher's process, and how that ended
    # SLURM tells this shell alone (--signal=B:...), since it does not find ranks that mpirun started by itself. At the
    # time limit all processes have SIGTERM: the ranks then are told what they know.
    trap 'signalled=1; kill -USR1 "$(head -n 1 "$told")" 2>/dev/null || true' USR1 TERM
    tell_code "$told" "${launch[@]}" "$@" &
    waiter=$!
    while :; do # wait ends at each signal
        signalled=''
        wait "$waiter" || true
        if [[ -z $signalled ]]; then break; fi
    done
    trap '' USR1 TERM
    code=$(sed -n 2p "$told")
    code=${code:-137} # somebody has killed the one who waited
    rm -f "$told"
}

# tell_code FILE COMMAND: runs a command, and writes the number of its process and its exit code into a file.
tell_code() {
    local file=$1
    shift
    trap : USR1 TERM
    "$@" &
    printf '%s\n' "$!" >"$file"
    await "$!"
    printf '%s\n' "$code" >>"$file"
}

# Puts this job into the queue again, unless its user or SLURM took it away, or it would do so for ever.
begin_again() {
    local state after
    if [[ -z ${SLURM_JOB_ID:-} || ${LPNET_REQUEUE:-1} == 0 ]]; then return; fi
    after=$(newest_checkpoint "$folder")
    if [[ $after == "$before" ]]; then
        say "stopped with no step beyond ${after:-the first}, not requeued: more --time allowed"
        return
    fi
    state=$(squeue --noheader --jobs "$(job_id)" --format '%T %r') || state=unknown
    case $state in
        RUNNING* | *TimeLimit*) ;;
        *)
            say "ended from outside (${state% None}), not requeued"
            say "to go on: sbatch slurm/train.sbatch --resume $folder"
            return
            ;;
    esac
    scontrol requeue "$(job_id)" && say "requeued, goes on with $folder at $after"
}
