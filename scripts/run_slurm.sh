#!/usr/bin/env bash
# Stage 1 by Slurm: PARTITION=gpu scripts/run_slurm.sh [OPTIONS of main_pretrain]. NODES (1), GPUS of a node (8), PORT
# and other options of srun (SRUN_OPTIONS) come from the environment. The learning rates follow the number of GPUs.
set -eu
cd "$(dirname "$0")/.."
export GPUS=${GPUS:-8} PORT=${PORT:-29500} PYTHON=${PYTHON:-python}
# one process on each node, which starts one for each of its GPUs
exec srun --partition "${PARTITION:?set PARTITION to the name of a Slurm partition}" --job-name ovsegmentor \
    --nodes "${NODES:-1}" --ntasks-per-node 1 --gres "gpu:$GPUS" --kill-on-bad-exit 1 ${SRUN_OPTIONS:-} \
    bash -c '
        first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
        exec "$PYTHON" -m torch.distributed.run --nnodes "$SLURM_NNODES" --node-rank "$SLURM_NODEID" \
            --nproc-per-node "$GPUS" --master-addr "$first" --master-port "$PORT" main_pretrain.py "$@"' \
    _ --cfg configs/ovsegmentor/ovsegmentor_pretrain_vit_bert_stage${STAGE:-1}.yml "$@"
