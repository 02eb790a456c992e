#!/usr/bin/env bash
# Makes .venv at the root of the repository: lpnet (editable), MPI, and what the tests need, as pinned in
# constraints.txt. Minutes the first time, nothing to do afterwards; an interrupted set-up is redone by the next call.
#
#   LPNET_PYTHON=...   the Python (>= 3.11) to make .venv with; to change it later, remove .venv
#   LPNET_MPI=system   leave out the embedded MPICH: mpi4py loads the machine's own MPI (MPICH, Open MPI, Intel MPI, ...)
#
# pip is used as it is configured. On Linux its plain torch is the CUDA build; for the CPU build, name PyTorch's index of
# CPU wheels in pip's configuration (PIP_EXTRA_INDEX_URL), which satisfies the same pin.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

mpi=${LPNET_MPI:-embedded}
stamp=$root/.venv/.lpnet-stamp
inputs=(setup.cfg pyproject.toml constraints.txt)

# What .venv should be, in one line; fails where .venv has no working Python.
wanted() {
    # The path ends it because a virtual environment cannot be moved.
    (cd "$root" && "$python" -I -S -c '
import hashlib, pathlib, sys
text = b"\0".join(pathlib.Path(p).read_bytes() for p in sys.argv[2:])
print(hashlib.sha256(text).hexdigest(), sys.version.split()[0], sys.argv[1])
' "$mpi $root" "${inputs[@]}") 2>/dev/null
}

is_done() {
    local now
    now=$(wanted) && [[ -f $stamp && $now == "$(<"$stamp")" ]]
}

find_python() {
    local candidate found=
    for candidate in ${LPNET_PYTHON:-python3 python python3.14 python3.13 python3.12 python3.11}; do
        "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue
        found=$candidate
        "$candidate" -c 'import ensurepip, venv' 2>/dev/null || continue
        printf '%s\n' "$candidate"
        return
    done
    [[ -z $found ]] || die "$found has no venv and ensurepip: install them (Debian: python3-venv), or set LPNET_PYTHON"
    die "no Python >= 3.11 found (looked for: ${LPNET_PYTHON:-python3, python, python3.11 to 3.14}): set LPNET_PYTHON"
}

make_venv() {
    local base
    base=$(find_python)
    # The lock file stays: other calls may be waiting for it.
    find "$root/.venv" -mindepth 1 -maxdepth 1 ! -name '.lpnet-*' -exec rm -rf {} +
    "$base" -m venv "$root/.venv"
}

install() {
    local extras=test,mnist
    if [[ $mpi == embedded ]]; then extras=mpi,$extras; else "$python" -m pip uninstall -q -y mpich; fi
    (cd "$root" && "$python" -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[$extras]")
}

[[ $mpi == embedded || $mpi == system ]] || die "LPNET_MPI: '$mpi' given, 'system' or 'embedded' allowed"
if is_done; then exit 0; fi

mkdir -p "$root/.venv"
exec 9>"$root/.venv/.lpnet-lock"
if type -P flock >/dev/null; then flock 9; fi
if is_done; then exit 0; fi # another call did it while this one waited

echo "setup.sh: setting up $root/.venv (some minutes the first time)" >&2
was=$(cat "$stamp" 2>/dev/null || true)
echo unfinished >"$stamp"
# An environment that is older than its inputs, or made by hand, is brought up to date; any other is made anew.
if [[ -n $was && $was != *" $root" ]] || ! wanted >/dev/null; then make_venv; fi
install
wanted >"$stamp.new"
mv "$stamp.new" "$stamp"
echo "setup.sh: done" >&2
