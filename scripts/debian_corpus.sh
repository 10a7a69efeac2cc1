#!/usr/bin/env bash
# Make a corpus from packages of Debian: two dictionaries, the King James Bible and "An Anarchist FAQ", 58 MB of
# English with one JSON object per line.  scripts/debian_corpus.sh OUT.jsonl
# Nothing is installed and root is not needed: the packages are downloaded and unpacked in a temporary folder.
set -euo pipefail

if [ $# -ne 1 ] || [[ $1 != *.jsonl ]]; then
    echo "usage: scripts/debian_corpus.sh OUT.jsonl" >&2
    exit 2
fi
out=$(realpath -m -- "$1")
for program in apt-get dpkg; do
    if ! command -v "$program" > /dev/null; then
        echo "error: $program is missing: make the corpus on Debian or Ubuntu, and copy it" >&2
        exit 2
    fi
done
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
chmod 755 "$folder"
mkdir "$folder/unpacked"
for package in dict-gcide dict-wn anarchism bible-kjv bible-kjv-text; do
    if ! (cd "$folder" && apt-get download -qq "$package" > apt.log 2>&1); then
        echo "warning: $package cannot be downloaded and is left out: $(grep -m 1 -v '^W:' "$folder/apt.log" || true)" >&2
        continue
    fi
    dpkg -x "$folder/$package"_*.deb "$folder/unpacked"
done
python scripts/debian_corpus.py "$folder/unpacked" "$out"
