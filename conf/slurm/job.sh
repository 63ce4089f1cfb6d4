# What the jobs have in common. A job's script sources it in the folder that the job was submitted from.
#
# The environment is the project's: `.venv`, made by `make install` on the machine that submits (VENV= for an active
# one), or CONTAINER=image for Apptainer (image.sif, docker://…; CONTAINER_RUN="singularity exec --nv" for another
# program). Folders are shared by all nodes.
set -euo pipefail

unset MAKEFLAGS MFLAGS MAKELEVEL # of the make that submitted: jobs are told their variables as arguments
# Since 22.05 srun does not take over what sbatch was given for --cpus-per-task.
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} TOKENIZERS_PARALLELISM=false
export PYTHONUNBUFFERED=1 # a task that is killed leaves its last lines in the log

echo "job $SLURM_JOB_ID on $SLURM_JOB_NODELIST, start $((${SLURM_RESTART_COUNT:-0} + 1))"

once() { # COMMAND...: on one task; the signal before the time limit ends it. (make alone would hide that: it catches it.)
  srun --nodes=1 --ntasks=1 --ntasks-per-node=1 bash -c '"$@"; exit' bash "$@" || finish $?
}

command_of() { # TARGET NAME=value...: what `make TARGET` would run
  make --silent command TARGET="$@"
}

each() { # COMMAND: as every task, quoted for a shell; one that fails ends the others
  echo "$1"
  eval "srun --kill-on-bad-exit=1 --label $1" || finish $?
}

# 138 (128 + SIGUSR1) is an end before the time limit. Training has then saved and requeued the job itself, unless it
# had not begun or its container has no scontrol; data that is being prepared is kept as far as it is.
finish() { # STATUS
  (($1 != 138)) || scontrol requeue "$SLURM_JOB_ID"
  exit "$1"
}

train() { # TARGET NAME=value...
  local command
  once make needs TARGET="$@"
  command=$(command_of "$@")
  each "$command --trainer.devices $SLURM_NTASKS_PER_NODE --trainer.num_nodes $SLURM_JOB_NUM_NODES"
}
