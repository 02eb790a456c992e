#!/usr/bin/env bash
# Runs the batch files of slurm/ under a real SLURM of one node, which it starts for that and stops again: 7 minutes, or
# 13 on two cores that much else uses. Needs root on a Debian machine; installs slurm-wlm and munge where they are missing.
#
#   scripts/test_slurm.sh
#
#   mpirun, srun    SIGUSR1 before the time limit: checkpoint, exit code 75, back into the queue, resumed, done; the
#                   history is that of a run which nothing disturbed, bit for bit
#   limit           the limit itself strikes: the same by SIGTERM; then the job is cancelled, and stays so
#   lost            a rank is killed: all ranks end within ten seconds, the job fails; requeued by hand, it goes on
#   gpu, scaling    the other batch files, as they are
#
# Exit code: 0 passed, 1 something is wrong, 3 this machine cannot run a SLURM. Keeps its folder where it fails.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
source "$root/scripts/slurm_cluster.sh"

fail() {
    printf 'test_slurm.sh: FAILED: %s\n' "$1" >&2
    exit 1
}

ok() { printf '%4d s  %s\n' "$SECONDS" "$1"; }

finish() {
    local code=$? job
    trap - EXIT
    set +e
    if [[ -n ${reference_pid:-} ]]; then kill "$reference_pid" 2>/dev/null; fi
    if [[ -n ${SLURM_CONF:-} ]]; then # else another SLURM of this machine would answer
        for job in $(squeue --noheader --format %A 2>/dev/null); do scancel "$job"; done
        wait_for 40 no_jobs
    fi
    stop_cluster
    if ((code)); then
        for job in "$work"/*.out "$work"/cluster/log/slurm*.log; do
            printf '== %s\n' "$job" && tail -n 25 "$job"
        done >&2
        echo "test_slurm.sh: failed, see $work" >&2
    else
        rm -rf "$work"
    fi
    exit "$code"
}

no_jobs() { [[ -z $(squeue --noheader 2>/dev/null) ]]; }

# ---- jobs ----

# submit NAME [options of sbatch] FILE [arguments]; sets job.
submit() {
    local name=$1
    shift
    job=$(sbatch --parsable --job-name="$name" --output="$work/$name-%j.out" "$@") || fail "sbatch $name"
    ok "$name: job $job"
}

# Prints one of the facts that SLURM knows of a job.
fact() { scontrol show job "$1" | grep -o "\b$2=[^ ]*" | head -n 1 | cut -d= -f2-; }

in_state() { [[ $(fact "$1" JobState) == "$2" ]]; }

steps_of() { cat "runs/slurm-$1/metrics.jsonl" 2>/dev/null | wc -l; }

has_steps() { (($(steps_of "$1") >= $2)); }

newest() { basename "$(ls "runs/slurm-$1"/checkpoints/step-*.h5 | tail -n 1)" .h5; }

await() {
    local seconds=$1 what=$2
    shift 2
    wait_for "$seconds" "$@" || fail "$what: not within $seconds s"
}

said() { grep -q "$2" "$work/$1"-*.out || fail "$1: does not say '$2'"; }

# same_history A B [N]: the records of two runs are equal but for the time they took; of the first N steps only.
same_history() {
    "$python" - "$@" <<'PYTHON' || fail "the history of $2 is not that of $1"
import json, sys
a, b = ([json.loads(line) for line in open(f"{folder}/metrics.jsonl")] for folder in sys.argv[1:3])
steps = int(sys.argv[3]) if sys.argv[3:] else max(len(a), len(b))
assert [r["step"] for r in b] == list(range(1, len(b) + 1)), "steps of the resumed run"
assert steps > 0 and len(b) >= steps and len(a) >= steps, (len(a), len(b), steps)
for one, other in zip(a[:steps], b[:steps]):
    one.pop("seconds"), other.pop("seconds")
    assert one == other, (one, other)
PYTHON
}

# ---- cases ----

# Both launchers at once, and the run that nothing disturbs.
stopped_in_time() {
    local name other jobs=()
    for name in mpirun srun; do
        LPNET_LAUNCHER=$name submit "$name" --ntasks=2 slurm/train.sbatch "${training[@]}" --training.steps "$steps"
        jobs+=("$job")
    done
    "${mpirun[@]}" -n 2 "$python" -m lpnet.train "${training[@]}" --training.steps "$steps" --run.dir runs/reference \
        >"$work/reference.out" 2>&1 &
    reference_pid=$!
    # Of two minutes SLURM gives notice at once.
    stop_early "${jobs[0]}" 2 &
    other=$!
    stop_early "${jobs[1]}" 2
    wait "$other" || exit 1
    ok "mpirun, srun: stopped and requeued"
    limit_strikes
    wait "$reference_pid" || fail "the undisturbed run"
    reference_pid=
    ok "undisturbed: $steps steps"
    for name in mpirun srun; do
        resumed "$name" "${jobs[0]}"
        jobs=("${jobs[@]:1}")
    done
    same_history runs/reference "runs/slurm-$limit" "$limit_steps"
    ok "limit: the first $limit_steps steps are those of the undisturbed run"
}

# resumed NAME JOB: what was stopped is done, and as if it had not been.
resumed() {
    await 1800 "$1: done" in_state "$2" COMPLETED
    said "$1" "job $2: requeued, goes on with runs/slurm-$2 at step-"
    (($(fact "$2" Restarts) == 1)) || fail "$1: $(fact "$2" Restarts) restarts"
    [[ $(fact "$2" ExitCode) == 0:0 ]] || fail "$1: exit code $(fact "$2" ExitCode)"
    same_history runs/reference "runs/slurm-$2"
    ok "$1: resumed and done, $(steps_of "$2") steps, which are those of the undisturbed run"
}

# Sets limit, and limit_steps: how many of its steps can be compared.
limit_strikes() {
    local before
    # Longer than the other runs; SIGCONT does nothing.
    LPNET_LAUNCHER=srun submit limit --ntasks=2 --signal=B:CONT@5 slurm/train.sbatch "${training[@]}" \
        --training.steps $((8 * steps))
    limit=$job
    stop_early "$limit" 1
    said limit "DUE TO TIME LIMIT"
    said limit "job $limit: requeued, goes on with runs/slurm-$limit at step-"
    before=$(steps_of "$limit")
    await 900 "limit: steps of the resumed run" has_steps "$limit" $((before + 20))
    scancel "$limit"
    await 60 "limit: cancelled" in_state "$limit" CANCELLED
    said limit "to go on: sbatch slurm/train.sbatch --resume runs/slurm-$limit"
    limit_steps=$(steps_of "$limit")
    if ((limit_steps >= steps)); then limit_steps=$((steps - 1)); fi # the last step of a run is evaluated
    ok "limit: struck, requeued, resumed, cancelled behind $(newest "$limit")"
}

# stop_early JOB MINUTES: has a job meet its limit once, as soon as it has done some steps.
stop_early() {
    await 600 "job $1: first steps" has_steps "$1" 10
    ends_within "$1" "$2"
    await 200 "job $1: requeued" has_restarted "$1"
    ends_within "$1" 60
}

has_restarted() { (($(fact "$1" Restarts) > 0)); }

# ends_within JOB MINUTES: sets the time limit to so many minutes from now, at most.
ends_within() {
    local now
    now=$(squeue --noheader --jobs "$1" --format %M)
    scontrol update "JobId=$1" "TimeLimit=$(($(minutes_of "$now") + $2))" || fail "job $1: time limit"
}

# Prints the whole minutes of a time, [HOURS:]MINUTES:SECONDS.
minutes_of() {
    local parts
    IFS=: read -ra parts <<<"$1"
    printf '%d\n' "$((10#${parts[-2]}))"
}

a_rank_is_lost() {
    local lost since before
    LPNET_LAUNCHER=srun submit lost --ntasks=3 slurm/train.sbatch "${training[@]}" --training.steps $((8 * steps))
    await 600 "lost: first steps" has_steps "$job" 5
    lost=$(pgrep -f "^[^ ]*python -m lpnet.train .*slurm-$job" | tail -n 1)
    kill -KILL "$lost"
    since=$SECONDS
    await 10 "lost: end of all ranks" eval '! pgrep -f "python -m lpnet.train .*slurm-$job" >/dev/null'
    await 60 "lost: end" in_state "$job" FAILED
    [[ $(fact "$job" ExitCode) == 137:0 ]] || fail "lost: exit code $(fact "$job" ExitCode)"
    [[ -n $(newest "$job") ]] || fail "lost: no checkpoint"
    ok "lost: all ranks ended within $((SECONDS - since)) s, the newest checkpoint is $(newest "$job")"
    before=$(steps_of "$job")
    scontrol requeue "$job" || fail "lost: requeue"
    await 900 "lost: steps of the resumed run" has_steps "$job" $((before + 20))
    scancel "$job"
    await 60 "lost: cancelled" in_state "$job" CANCELLED
    ok "lost: requeued, resumed at the same place, cancelled"
}

other_files() {
    local gpu
    submit gpu slurm/gpu.sbatch "${training[@]}" --training.steps 3 --run.device auto
    gpu=$job
    submit scaling --ntasks=2 --array=0-1 slurm/scaling.sbatch strong --layers 64 --width 4 --batch 8 --rounds 3
    await 600 "gpu: done" in_state "$gpu" COMPLETED
    said gpu "ranks  *2"
    ok "gpu: done"
    await 600 "scaling: done" no_jobs
    "$python" -m lpnet.scaling collect runs/scaling-strong >"$work/collect.out" 2>&1 || fail "scaling: collect"
    [[ -s runs/scaling-strong/points/strong-wall-1.json && -s runs/scaling-strong/points/strong-wall-2.json ]] ||
        fail "scaling: points"
    ok "scaling: points on 1 and 2 ranks"
}

# Sets steps: so many that a run takes about so many seconds, more where other work goes on.
calibrate() {
    "${mpirun[@]}" -n 2 "$python" -m lpnet.train "${training[@]}" --training.steps 60 --run.dir runs/trial \
        >"$work/trial.out" 2>&1 || fail "a short run"
    steps=$("$python" -c '
import json, sys
fastest = min(json.loads(line)["seconds"] for line in open("runs/trial/metrics.jsonl"))
print(max(1500, int(float(sys.argv[1]) / fastest)))' "$1")
    ok "runs of $steps steps"
}

[[ $(uname -s) == Linux ]] || die "this is no Linux, on which SLURM runs" 3
(($(id -u) == 0)) || die "this is not root, as which SLURM's daemons and their jobs run here" 3
unset "${!SLURM_@}" "${!SBATCH_@}" LPNET_LAUNCHER LPNET_REQUEUE LPNET_RANKS
"$root/scripts/setup.sh"
install_slurm
find_mpirun

work=$(mktemp -d "${TMPDIR:-/tmp}/lpnet-slurm.XXXXXX")
trap finish EXIT
trap 'exit 130' INT TERM
mkdir "$work/submit"
cd "$work/submit"
# Where jobs are submitted from: the repository, but for the folder of the runs.
for name in .venv lpnet scripts slurm; do ln -s "$root/$name" "$name"; done
training=(peaks --trunk.layers 32 --training.batch 100 --training.validate_every 100 --schedule.name constant
    --schedule.warmup 0 --run.progress false)

start_cluster "$work/cluster"
ok "SLURM $(scontrol --version | cut -d' ' -f2) of one node"
# SLURM looks at the limits each 30 s, and the runs must still go on then.
calibrate 50
a_rank_is_lost
stopped_in_time
other_files
echo "passed"
