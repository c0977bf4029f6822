#!/usr/bin/env bash
# mIoU on COCO-Stuff: scripts/test_coco_stuff.sh [CHECKPOINT] [OPTIONS of main_seg], or edit the path.
checkpoint=pretrained/ovsegmentor.pth
exec "$(dirname "$0")/evaluate.sh" test_coco_stuff "$checkpoint" "$@"
