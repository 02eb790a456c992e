#!/bin/bash
# Removes the shared memory that killed ranks of MPICH left on this node: files of this user that no process has, unless
# they are new. Under srun MPICH names it after job and step: ranks of the same job, started again on the same node,
# would take what was left for their own, and never get through MPI_Init.
folder=${1:-/dev/shm}
used=$(cat /proc/[0-9]*/maps 2>/dev/null | grep -oE "$folder/mpich_shm_[0-9a-f_]+" | sort -u)
find "$folder" -maxdepth 1 -name 'mpich_shm_*' -user "$(id -u)" ! -newermt '5 seconds ago' 2>/dev/null |
    grep -vxF "$used" | xargs -r rm -f
