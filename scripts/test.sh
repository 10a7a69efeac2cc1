#!/usr/bin/env bash
# Install what is needed, then check style, types and behaviour.  scripts/test.sh [pytest arguments]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

ruff check
ruff format --check
mypy
python -m pytest "$@"
