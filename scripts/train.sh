#!/usr/bin/env bash
# Sets up .venv and trains on as many ranks as there are cores: scripts/train.sh [arguments of lpnet.train]
# Settings: see common.sh (LPNET_RANKS, LPNET_MPI, OMP_NUM_THREADS).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

count=$(ranks)
"$root/scripts/setup.sh"
find_mpirun
exec "${mpirun[@]}" -n "$count" "$python" -m lpnet.train "$@"
