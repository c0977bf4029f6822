#!/usr/bin/env bash
# mIoU on PASCAL VOC 2012: scripts/test_voc12.sh [CHECKPOINT] [OPTIONS of main_seg], or edit the path.
checkpoint=pretrained/ovsegmentor.pth
exec "$(dirname "$0")/evaluate.sh" test_voc12 "$checkpoint" "$@"
