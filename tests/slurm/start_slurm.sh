#!/usr/bin/env bash
# A small SLURM for the tests: all daemons on this machine, every file below one folder, no systemd, no cgroups.
#
#   start_slurm.sh start DIR    install what is missing (Debian packages, needs root), start, print "ready"
#   start_slurm.sh stop DIR     end the daemons that were started for DIR
#
# Two nodes, nodea and nodeb, of 8 pretended CPUs each. Partitions: main (default), low (may be evicted by
# high, with a warning of 20 s), high. Source DIR/env to use it. SLURM_TEST_PORT is the first of 13 ports.
set -euo pipefail

action=${1:?start or stop}
mkdir -p "${2:?a folder}"
dir=$(cd "$2" && pwd)
port=${SLURM_TEST_PORT:-26817}
machine=$(hostname -s)
nodes=(nodea nodeb)

is_running() { [ -s "$1" ] && kill -0 "$(cat "$1")" 2>/dev/null; }

try_for() { # seconds command...
    local tries=$(($1 * 5))
    shift
    until timeout 5 "$@" >/dev/null 2>&1; do
        tries=$((tries - 1))
        if [ "$tries" -le 0 ]; then
            echo "gave up on: $*" >&2
            return 1
        fi
        sleep 0.2
    done
}

install_packages() { # one process at a time: dpkg does not wait for another one
    local lock
    exec {lock}>"${TMPDIR:-/tmp}/piwsl-slurm-install.lock"
    flock "$lock"
    look_for_packages
    exec {lock}>&-
}

look_for_packages() {
    local missing=() name
    for name in slurmctld slurmd slurm-client munge; do
        dpkg -s "$name" >/dev/null 2>&1 || missing+=("$name")
    done
    [ ${#missing[@]} -eq 0 ] && return
    [ "$(id -u)" -eq 0 ] || { echo "SLURM is not installed and only root can install it" >&2; return 1; }
    command -v apt-get >/dev/null || { echo "SLURM is not installed and there is no apt-get" >&2; return 1; }
    apt-get -qq update
    DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install "${missing[@]}" >/dev/null
}

write_files() {
    mkdir -p "$dir"/{state,spool,log,run,bin,munge}
    chmod 755 "$dir" "$dir/munge"
    cat >"$dir/slurm.conf" <<CONF
ClusterName=tests
# Job numbers of two such clusters on one machine must differ, ports of trainings follow from them.
FirstJobId=$port
SlurmctldHost=$machine(127.0.0.1)
SlurmctldPort=$port
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool/%n
SlurmctldPidFile=$dir/run/slurmctld.pid
SlurmdPidFile=$dir/run/%n.pid
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdLogFile=$dir/log/%n.log
AuthType=auth/munge
# A requeued job waits until its old credential has expired: 120 s by default.
AuthInfo=socket=$dir/munge/socket,cred_expire=5
CredType=cred/munge
# No cgroups, and believe the sizes below rather than the machine's.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=50
# Look at the queue every second, keep finished jobs for sacct's stand-in.
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=0
MinJobAge=3600
KillWait=5
ReturnToService=2
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
# Evicted jobs get the signal that they asked for with --signal.
SlurmctldParameters=preempt_send_user_signal
CONF
    local index=0 name
    for name in "${nodes[@]}"; do
        index=$((index + 1))
        echo "NodeName=$name NodeHostname=$machine NodeAddr=127.0.0.1 Port=$((port + 10 + index))" \
            "CPUs=8 RealMemory=100000 State=UNKNOWN" >>"$dir/slurm.conf"
        # torch's rendezvous connects to the first node by its name
        grep -qw "$name" /etc/hosts || echo "127.0.0.1 $name" >>/etc/hosts
    done
    local all=${nodes[*]}
    cat >>"$dir/slurm.conf" <<CONF
PartitionName=main Nodes=${all// /,} Default=YES MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF
PartitionName=low Nodes=${all// /,} MaxTime=INFINITE PriorityTier=1 PreemptMode=REQUEUE GraceTime=20
PartitionName=high Nodes=${all// /,} MaxTime=INFINITE PriorityTier=100 PreemptMode=OFF
CONF
    # submitit asks sacct; without accounting the controller's own memory answers in the same format.
    cat >"$dir/bin/sacct" <<'SACCT'
#!/usr/bin/env bash
echo "JobID|State|NodeList"
while [ $# -gt 0 ]; do
    if [ "$1" = -j ]; then
        shift
        for job in ${1//,/ }; do
            scontrol --oneliner show job "$job" 2>/dev/null | awk '{
                split("", field)
                for (i = 1; i <= NF; i++) { at = index($i, "="); if (at) field[substr($i, 1, at - 1)] = substr($i, at + 1) }
                id = field["JobId"]
                if ("ArrayTaskId" in field) {
                    task = field["ArrayTaskId"]
                    id = field["ArrayJobId"] "_" (task ~ /^[0-9]+$/ ? task : "[" task "]")
                }
                print id "|" field["JobState"] "|" field["NodeList"]
            }'
        done
    fi
    shift
done
SACCT
    chmod +x "$dir/bin/sacct"
    printf 'export SLURM_CONF=%q\nexport PATH=%q:$PATH\n' "$dir/slurm.conf" "$dir/bin" >"$dir/env"
}

start_munge() {
    is_running "$dir/run/munged.pid" && return
    [ -s "$dir/munge/key" ] || head -c 1024 /dev/urandom >"$dir/munge/key"
    chmod 400 "$dir/munge/key"
    rm -f "$dir/munge/socket"*
    chmod 755 "$dir/run" "$dir/log"
    # it will not write next to files that others could replace, hence --force below folders such as /tmp
    munged --force --key-file="$dir/munge/key" --socket="$dir/munge/socket" --pid-file="$dir/run/munged.pid" \
        --log-file="$dir/log/munged.log" --seed-file="$dir/munge/seed"
    try_for 10 munge --socket="$dir/munge/socket" --no-input
}

start() {
    install_packages
    write_files
    start_munge
    export SLURM_CONF=$dir/slurm.conf
    is_running "$dir/run/slurmctld.pid" || slurmctld -f "$SLURM_CONF"
    try_for 20 scontrol ping
    local name
    for name in "${nodes[@]}"; do
        mkdir -p "$dir/spool/$name"
        is_running "$dir/run/$name.pid" || slurmd -f "$SLURM_CONF" -N "$name"
    done
    try_for 30 sh -c "[ \$(sinfo --noheader --Node --partition=main --states=idle,mixed,allocated | wc -l) = ${#nodes[@]} ]"
    echo ready
}

stop() {
    local file pid
    for file in "$dir"/run/node*.pid "$dir/run/slurmctld.pid" "$dir/run/munged.pid"; do
        is_running "$file" || continue
        pid=$(cat "$file")
        kill "$pid"
        try_for 15 sh -c "! kill -0 $pid" || kill -9 "$pid" || true
    done
}

case $action in
start) start ;;
stop) stop ;;
*)
    echo "usage: $0 start|stop DIR" >&2
    exit 2
    ;;
esac
