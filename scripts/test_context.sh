#!/usr/bin/env bash
# mIoU on PASCAL Context: scripts/test_context.sh [CHECKPOINT] [OPTIONS of main_seg], or edit the path.
checkpoint=pretrained/ovsegmentor.pth
exec "$(dirname "$0")/evaluate.sh" test_voc_context "$checkpoint" "$@"
