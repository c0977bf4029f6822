#!/usr/bin/env bash
# mIoU on ADE20K: scripts/test_ade20k.sh [CHECKPOINT] [OPTIONS of main_seg], or edit the path.
checkpoint=pretrained/ovsegmentor.pth
exec "$(dirname "$0")/evaluate.sh" test_ade20k "$checkpoint" "$@"
