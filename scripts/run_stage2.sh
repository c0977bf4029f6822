#!/usr/bin/env bash
# Stage 2 on the GPUs of this machine: as run.sh.
STAGE=2 exec "$(dirname "$0")/run.sh" "$@"
