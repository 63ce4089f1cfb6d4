#!/usr/bin/env bash
# A real SLURM of one node on this machine, for tests:
#   bash cluster.sh start FOLDER [PID]   # stops by itself when the process PID has ended
#   bash cluster.sh stop FOLDER
#
# Everything that it writes, sockets and logs included, is in FOLDER; SLURM_CONF=FOLDER/slurm.conf makes sbatch, srun
# and scontrol use it. A cluster that this machine may already belong to is left alone: ports are free ones, munge has
# its own key and socket. Needs root, slurm-wlm and munge (Debian and Ubuntu), no systemd, no cgroups.
set -euo pipefail

daemons=(slurmd slurmctld munged) # in the order in which they are stopped
cpus=2                            # jobs have two tasks, whatever the machine has

running() { # NAME: whether that daemon of this folder lives
  local pid
  pid=$(cat "$folder/$1.pid" 2>/dev/null) && [[ $(cat "/proc/$pid/comm" 2>/dev/null) == "$1" ]]
}

wait_until() { # SECONDS COMMAND...
  local end=$((SECONDS + $1))
  shift
  until "$@" >/dev/null 2>&1; do
    ((SECONDS < end)) || {
      echo "cluster.sh: gave up waiting for: $*" >&2
      tail -n 20 "$folder"/*.log >&2
      return 1
    }
    sleep 0.2
  done
}

free_ports() {
  python3 - <<'PYTHON'
import socket
sockets = [socket.create_server(("", 0)) for _ in range(2)]
print(*(s.getsockname()[1] for s in sockets))
PYTHON
}

configure() {
  local ports host
  read -r -a ports < <(free_ports)
  host=$(hostname -s)
  mkdir -p "$folder"/{state,spool}
  (umask 077 && head -c 1024 /dev/urandom >"$folder/munge.key")
  # cred_expire is also how long a requeued job waits before it starts again (default 120 s). A host of fewer CPUs
  # and less memory than the node says is let through by config_overrides.
  cat >"$folder/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=${ports[0]}
SlurmdPort=${ports[1]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket,cred_expire=5
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobRequeue=1
ReturnToService=2
KillWait=5
MessageTimeout=10
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
SlurmdParameters=config_overrides
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
MpiDefault=none
NodeName=localhost NodeHostname=$host NodeAddr=127.0.0.1 CPUs=$cpus RealMemory=1000000 State=UNKNOWN
PartitionName=test Nodes=localhost Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:1
PartitionName=other Nodes=localhost MaxTime=INFINITE State=UP
CONF
}

start() {
  [[ -f $folder/slurm.conf ]] || configure
  running munged || munged --key-file "$folder/munge.key" --socket "$folder/munge.socket" --force \
    --pid-file "$folder/munged.pid" --log-file "$folder/munged.log" --seed-file "$folder/munged.seed"
  running slurmctld || slurmctld
  running slurmd || slurmd
  wait_until 60 idle
  if [[ -n ${1-} ]]; then
    (while kill -0 "$1" 2>/dev/null && running slurmctld; do sleep 1; done; stop) </dev/null >/dev/null 2>&1 &
  fi
}

idle() { [[ $(sinfo --noheader --partition=test --format=%t) == idle ]]; }

stop() {
  local name
  for name in "${daemons[@]}"; do
    running "$name" || continue
    kill "$(cat "$folder/$name.pid")"
    wait_until 30 not_running "$name"
  done
}

not_running() { ! running "$1"; }

case "${1-}:${2-}" in
start:?* | stop:?*)
  folder=$(realpath -m "$2")
  export SLURM_CONF=$folder/slurm.conf
  "$1" "${3-}"
  ;;
*)
  echo "usage: bash cluster.sh start|stop FOLDER [PID]" >&2
  exit 2
  ;;
esac
