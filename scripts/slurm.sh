#!/usr/bin/env bash
#SBATCH --job-name ovseg
#SBATCH --ntasks-per-node 1
#SBATCH --output %x-%j.log
# Training over the nodes of a Slurm job: sbatch --nodes 4 --gpus-per-node 8 scripts/slurm.sh OPTIONS of train_net.py
# Options of sbatch, such as --partition, --time and --cpus-per-task, stand before the script. PYTHON and PORT come from
# the environment. The same command goes on after an end with --resume.
set -eu
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}" # Slurm runs a copy of this file
export PYTHON=${PYTHON:-python} PORT=${PORT:-$((20000 + SLURM_JOB_ID % 10000))}
FIRST=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export FIRST
[ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK" # srun takes it since Slurm 22.05
# one launcher on each node, which starts a process for each of its GPUs
exec srun --ntasks-per-node 1 --kill-on-bad-exit 1 bash -c '
    exec "$PYTHON" train_net.py --num-machines "$SLURM_NNODES" --machine-rank "$SLURM_NODEID" \
        --dist-url "tcp://$FIRST:$PORT" --num-gpus "${SLURM_GPUS_ON_NODE:-0}" "$@"' _ "$@"
