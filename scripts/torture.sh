#!/usr/bin/env bash
# Kill, stop and starve train.py and distill.py of a setting at random, again and again, until they complete; then
# compare what they made with an undisturbed run, bit for bit.  scripts/torture.sh SETTING MINUTES
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
exec python scripts/torture.py "$@"
