#!/bin/bash
# A training run on several nodes, one process for each GPU, started again until it is finished:
#
#   sbatch configs/slurm.sh configs/paper/354m.yaml --set parallel.strategy=fsdp2
#
# Ten minutes before its time is over every process gets SIGTERM: the run ends its step, saves it,
# and the job is put back into the queue. For other numbers: sbatch --nodes=1 configs/slurm.sh …
#SBATCH --job-name=versatileffn
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@600
#SBATCH --requeue
#SBATCH --open-mode=append
set -uo pipefail

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export MASTER_ADDR MASTER_PORT

# No torchrun in between: it would give processes half a minute to save, and then kill them.
srun --kill-on-bad-exit=1 bash -c '
    export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS
    exec python -m versatileffn train "$@"' train "${@:-configs/paper/354m.yaml}"
code=$?

if [ "$code" -eq 143 ]; then # by SIGTERM, and saved
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
