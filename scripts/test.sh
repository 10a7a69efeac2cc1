#!/usr/bin/env bash
# Install what is needed, then check style, types and behaviour.  scripts/test.sh [pytest arguments]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

ruff check
ruff format --check
mypy
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"  # as there is a process for each core
python -m pytest --numprocesses logical --dist worksteal "$@"
