#!/usr/bin/env bash
# Train a study on 4 nodes of 8 GPUs under Slurm: sbatch scripts/slurm_train.sh CONFIG RUN [options of scripts/train.py]
# RUN is written by the first process alone, and has to outlive the job; every node reads CONFIG and the panel. A job that
# was cut short or put back into the queue goes on after the last finished step.
#SBATCH --job-name=irl-train
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

config=$1 run=$2
shift 2
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun torchrun --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node 8 \
    --rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID" --rdzv-endpoint "$first:29500" \
    -- scripts/train.py --config "$config" --run "$run" --resume "$@"
