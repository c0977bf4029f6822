#!/usr/bin/env bash
# mIoU on PASCAL VOC 2012: scripts/test_voc12.sh [CHECKPOINT] [OPTIONS of main_seg], or edit the path.
set -eu
checkpoint=pretrained/ovsegmentor.pth
case "${1:--}" in
-*) ;;
*)
    checkpoint=$(realpath "$1")
    shift
    ;;
esac
cd "$(dirname "$0")/.."
exec "${PYTHON:-python}" -u -m main_seg --cfg configs/test_voc12.yml --resume "$checkpoint" "$@"
