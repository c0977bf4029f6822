#!/usr/bin/env bash
# Stage 1 on the GPUs of this machine: scripts/run.sh [OPTIONS of main_pretrain]. GPUS, PORT and STAGE come from the environment.
set -eu
cd "$(dirname "$0")/.."
gpus=${GPUS:-$(nvidia-smi -L 2> /dev/null | wc -l)}
exec "${PYTHON:-python}" -m torch.distributed.run --nproc-per-node "$((gpus > 0 ? gpus : 1))" \
    --master-port "${PORT:-29500}" main_pretrain.py \
    --cfg configs/ovsegmentor/ovsegmentor_pretrain_vit_bert_stage${STAGE:-1}.yml "$@"
