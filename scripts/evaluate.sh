#!/usr/bin/env bash
# mIoU of a checkpoint, for scripts/test_*.sh: scripts/evaluate.sh CONFIG CHECKPOINT [OTHER CHECKPOINT] [OPTIONS of main_seg].
set -eu
config=$1 checkpoint=$2
shift 2
case "${1:--}" in
-*) ;;
*)
    checkpoint=$(realpath "$1")
    shift
    ;;
esac
cd "$(dirname "$0")/.."
exec "${PYTHON:-python}" -u -m main_seg --cfg "configs/$config.yml" --resume "$checkpoint" "$@"
