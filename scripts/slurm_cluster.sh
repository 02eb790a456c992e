# shellcheck shell=bash
# A SLURM cluster of one node, this machine, without systemd and without touching /etc; sourced by test_slurm.sh.
#
#   install_slurm       Debian's slurm-wlm and munge, where they are missing and this is root
#   start_cluster DIR   munged, slurmctld and slurmd, with all their files in DIR, which must not exist
#   stop_cluster        ends what start_cluster started
#
# After start_cluster SLURM_CONF is set, so that sbatch, srun, scontrol and squeue speak to this cluster.

slurm_daemons=()

install_slurm() {
    local missing=() name
    for name in munged slurmctld slurmd sbatch srun scontrol; do
        PATH=$PATH:/usr/sbin type -P "$name" >/dev/null || missing+=("$name")
    done
    if ((${#missing[@]} == 0)); then return; fi
    type -P apt-get >/dev/null || die "no ${missing[*]} on PATH, and no apt-get to install slurm-wlm and munge with" 3
    echo "installing slurm-wlm and munge (missing: ${missing[*]})" >&2
    { apt-get install -y -q --no-install-recommends slurm-wlm munge ||
        { apt-get update -q && apt-get install -y -q --no-install-recommends slurm-wlm munge; }; } \
        > >(tail -n 5 >&2) 2>&1 </dev/null || die "apt-get could not install slurm-wlm and munge" 3
}

# Prints a TCP port that is free now.
free_port() {
    "$python" -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])'
}

write_cluster_config() {
    local dir=$1 host cpus
    host=$(hostname -s)
    # More processors than there are, so that several jobs of some ranks run at once.
    cpus=16
    mkdir -p "$dir"/{munge,state,spool,log}
    head -c 128 /dev/urandom >"$dir/munge/key"
    chmod 700 "$dir/munge/key"
    chmod 600 "$dir/munge/key"
    printf 'CgroupPlugin=autodetect\nIgnoreSystemd=yes\nCgroupAutomount=no\n' >"$dir/cgroup.conf"
    # Devices that are there on any machine.
    printf 'Name=gpu File=/dev/null\nName=gpu File=/dev/zero\n' >"$dir/gres.conf"
    cat >"$dir/slurm.conf" <<CONF
ClusterName=lpnettest
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$(free_port)
SlurmdPort=$(free_port)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$dir/munge/socket,cred_expire=5
CredType=cred/munge
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdLogFile=$dir/log/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=5,bf_interval=5
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc=$dir/log/jobs.txt
JobAcctGatherType=jobacct_gather/none
JobRequeue=1
KillWait=30
MinJobAge=3600
ReturnToService=2
GresTypes=gpu
SlurmdParameters=config_overrides
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cpus Gres=gpu:2 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
}

start_cluster() {
    local dir=$1 tries
    export SLURM_CONF=$dir/slurm.conf PATH=$PATH:/usr/sbin
    mkdir -m 755 -p "$dir"
    write_cluster_config "$dir"
    munged --foreground --force --key-file="$dir/munge/key" --socket="$dir/munge/socket" --pid-file="$dir/munge/pid" \
        --log-file="$dir/munge/log" --seed-file="$dir/munge/seed" >"$dir/log/munged.out" 2>&1 &
    slurm_daemons+=($!)
    wait_for 10 test -S "$dir/munge/socket" || die "munged does not start: $(tail -n 3 "$dir/munge/log")" 3
    slurmctld -D -i >"$dir/log/slurmctld.out" 2>&1 &
    slurm_daemons+=($!)
    slurmd -D -N "$(hostname -s)" >"$dir/log/slurmd.out" 2>&1 &
    slurm_daemons+=($!)
    wait_for 30 node_is_idle || die "the node does not become idle: $(tail -n 5 "$dir"/log/*.log)" 3
}

node_is_idle() { [[ $(sinfo -h -o %T 2>/dev/null) == idle ]]; }

# Waits at most so many seconds until a command succeeds.
wait_for() {
    local until=$((SECONDS + $1))
    shift
    until "$@"; do
        ((SECONDS < until)) || return 1
        sleep 0.2
    done
}

stop_cluster() {
    local i
    # Last in, first out: slurmd ends its steps while munged still is there.
    for ((i = ${#slurm_daemons[@]} - 1; i >= 0; i--)); do
        kill "${slurm_daemons[i]}" 2>/dev/null || true
        wait "${slurm_daemons[i]}" 2>/dev/null || true
    done
    slurm_daemons=()
}
