#!/usr/bin/env bash
# A private Slurm on this machine, for tests: munged, slurmctld and virtual nodes n1, n2, … of four CPUs each. As root.
#
#   bash tests/slurm/cluster.sh DIR [NODES]
#
# Everything lives in DIR, which must be new, and short (sockets). It says "ready" once all nodes are idle, and then obeys standard
# input: "fail n2" is a power cut of that node, "start n2" brings it back. When standard input ends (Ctrl-D, or the death of whoever
# holds it) or a signal comes, all daemons and steps are ended, by their process ids. To use it: export SLURM_CONF=DIR/slurm.conf
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin

die() { echo "cluster.sh: $*" >&2; exit 1; }
[ $# -ge 1 ] || { sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p;}' "${BASH_SOURCE[0]}" >&2; exit 2; }
dir=$1 nodes=${2:-3}
case $dir in /*) ;; *) dir=$PWD/$dir ;; esac
[ ${#dir} -le 60 ] || die "$dir is too long for the paths of sockets"
[ ! -e "$dir" ] || die "$dir is there already"
[ "$(id -u)" -eq 0 ] || die "only root can start daemons that start tasks"
# Slurm finds no address to bind to, and mpirun none to talk by, where 127.0.0.1 is the only one. Any other will do.
lonely=10.255.255.254/32
addresses=$(ip -o addr show | grep -vE ' inet 127\.| inet6 (::1|fe80)' || true)
if [ -z "$addresses" ]; then
    ip addr add $lonely dev lo || die "the machine has no address but 127.0.0.1, and none can be added"
else
    lonely=''
fi

# What munge reads must be in directories that nobody else may write to, yet everyone may search.
umask 022
ulimit -c 0
mkdir -p "$dir"/{log,state,munge}
host=$(hostname -s)

# The first of NODES + 1 free ports, from a place of this process's own.
free_ports() {
    local port=$((17000 + $$ % 500 * 20)) busy
    while :; do
        busy=$(for i in $(seq 0 "$nodes"); do printf ':%04X \n' $((port + i)); done)
        grep -qF "$busy" <(awk '$4 != "06" { print $2, "" }' /proc/net/tcp /proc/net/tcp6 2>/dev/null) || break
        port=$((port + 20))
        [ $port -lt 30000 ] || die "no free ports"
    done
    echo $port
}

configure() {
    local port i
    port=$(free_ports)
    # cred_expire   also how long a requeued job waits (120 s by default; less than 5 means 120)
    # TmpFS         the PMIx plugin makes directories there, and nodes must not share them
    # TaskProlog    Open MPI names its shared memory by host and local rank, which virtual nodes share: send by TCP
    cat >"$dir/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$dir/munge/socket,cred_expire=5
CredType=cred/munge
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool-%n
TmpFS=$dir/tmp-%n
TaskProlog=$dir/prolog
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/%n.pid
SlurmctldLogFile=$dir/log/slurmctld
SlurmdLogFile=$dir/log/%n
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
SwitchType=switch/none
PropagateResourceLimits=NONE
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,bf_interval=1,sched_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldTimeout=10
SlurmdTimeout=5
MessageTimeout=10
TCPTimeout=5
BatchStartTimeout=20
KillWait=30
InactiveLimit=0
MinJobAge=600
ReturnToService=2
CONF
    for i in $(seq "$nodes"); do
        echo "NodeName=n$i NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + i)) CPUs=4 RealMemory=4000"
    done >>"$dir/slurm.conf"
    # A job of `high` pushes jobs of `main` back into the queue; those of `grace` are told 30 seconds before.
    cat >>"$dir/slurm.conf" <<CONF
PartitionName=main Nodes=ALL Default=YES DefaultTime=10 PriorityTier=1
PartitionName=grace Nodes=ALL DefaultTime=10 PriorityTier=1 GraceTime=30
PartitionName=high Nodes=ALL DefaultTime=10 PriorityTier=10 PreemptMode=OFF
CONF
    printf 'CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n' >"$dir/cgroup.conf"
    printf '#!/bin/sh\necho export OMPI_MCA_btl=self,tcp\necho export OMPI_MCA_btl_tcp_if_include=lo\n' >"$dir/prolog"
    [ -z "$lonely" ] || echo 'echo export OMPI_MCA_oob_tcp_if_include=lo' >>"$dir/prolog"
    chmod 755 "$dir/prolog"
    (umask 077; head -c 128 /dev/urandom >"$dir/munge/key")
    chmod 711 "$dir/munge"
}

declare -A daemon=()
# spawn NAME COMMAND…: a daemon in the foreground of its own session, so that a Ctrl-C here is not for it.
spawn() {
    local name=$1
    shift
    setsid "$@" </dev/null >"$dir/log/$name.out" 2>&1 &
    daemon[$name]=$!
}
# Each node has its own name for the same file: slurmd hands it on in SLURM_CONF, and that tells its slurmstepds, which are nobody's
# children, from others. (Their environment's beginning is overwritten by their title.)
node() {
    mkdir -p "$dir/spool-$1" "$dir/tmp-$1"
    ln -sf slurm.conf "$dir/$1.conf"
    spawn "$1" slurmd -D -N "$1" -f "$dir/$1.conf"
}
within() { # within SECONDS COMMAND…: repeats it until it succeeds
    local end=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $end ] || return 1
        sleep 0.05
    done
}
all_idle() { [ "$(timeout 5 sinfo -h -N -p main -t idle -o %N | wc -l)" -eq "$nodes" ]; }

# A process and everything below it.
tree() {
    local pid
    for pid; do
        echo "$pid"
        # shellcheck disable=SC2046
        tree $(cat "/proc/$pid/task/"*/children 2>/dev/null || true)
    done
}
# end_steps FILE: ends the slurmstepds of a node (n2.conf) or of all (.*) with their tasks, and every srun that outlived its job.
end_steps() {
    local at name pids=()
    for at in /proc/[0-9]*; do
        # Processes that end meanwhile are none of ours.
        { read -r name <"$at/comm" && [[ $name = slurmstepd || $name = srun ]] && grep -qzx "SLURM_CONF=$dir/$1" "$at/environ"; } 2>/dev/null || continue
        pids+=("${at#/proc/}")
    done
    # shellcheck disable=SC2046
    [ ${#pids[@]} -eq 0 ] || kill -KILL $(tree "${pids[@]}") 2>/dev/null || true
}
end_daemon() { # end_daemon NAME SIGNAL
    local pid=${daemon[$1]:-} tenth
    [ -n "$pid" ] || return 0
    kill "-$2" "$pid" 2>/dev/null || true
    for tenth in {1..80}; do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
    [ "$tenth" -lt 80 ] || kill -KILL "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
    unset "daemon[$1]"
}
stop() {
    trap '' INT TERM HUP
    local name
    # Clients are told first, so that srun and sbatch --wait end by themselves; munged is last, all sign with it.
    [ -z "${daemon[slurmctld]:-}" ] || timeout 5 scancel --user=root 2>/dev/null || true
    for name in "${!daemon[@]}"; do case $name in munged | slurmctld) ;; *) end_daemon "$name" TERM ;; esac; done
    end_daemon slurmctld TERM
    end_steps ".*"
    end_daemon munged TERM
    [ -z "$lonely" ] || ip addr del "$lonely" dev lo || true
}
fail() {
    end_daemon "$1" KILL
    end_steps "$1.conf"
    # A node that comes back has an empty temporary directory; a requeued job would stumble over its own old files.
    rm -rf "$dir/tmp-$1" "$dir/spool-$1"
}

trap stop EXIT
trap 'exit 130' INT TERM HUP
export SLURM_CONF=$dir/slurm.conf
configure
spawn munged munged --foreground --key-file="$dir/munge/key" --socket="$dir/munge/socket" --pid-file="$dir/munge/pid" \
    --seed-file="$dir/munge/seed" --log-file="$dir/log/munged"
within 10 munge -S "$dir/munge/socket" -n || die "munged did not start: $(cat "$dir/log/munged.out")"
spawn slurmctld slurmctld -D -i -f "$dir/slurm.conf"
for i in $(seq "$nodes"); do node "n$i"; done
within 30 all_idle || die "the nodes did not come up: $(tail -n 20 "$dir"/log/*)"
echo ready
while read -r what name; do
    case $what in
        fail) fail "$name" ;;
        start) node "$name" ;;
        *) die "known commands: fail NODE, start NODE" ;;
    esac
    echo "$what $name"
done
