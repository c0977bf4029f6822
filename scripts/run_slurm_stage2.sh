#!/usr/bin/env bash
# Stage 2 by Slurm: as run_slurm.sh.
STAGE=2 exec "$(dirname "$0")/run_slurm.sh" "$@"
