#!/usr/bin/env bash
# Starts a verb of this package on one or many processes and machines: launch.sh --help.
# Every package has the same file; the folder's name says which package it is.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$(dirname "$here")")
name=$(basename "$here")

usable() {
    [ -n "$1" ] && "$1" - "$name" 2>/dev/null <<'PYTHON'
import sys
from importlib.util import find_spec
sys.exit(not (find_spec("lm_core") and find_spec("lm_" + sys.argv[1])))
PYTHON
}

hatch_python() { (cd "$root" && folder=$(hatch env find default) && echo "$folder/bin/python") 2>/dev/null; }

find_python() {
    if [ -n "${PYTHON:-}" ]; then
        usable "$PYTHON" && echo "$PYTHON" && return
        echo "error: PYTHON: $PYTHON cannot import lm_core and lm_$name; must be a Python that has both; unset it or install them" >&2
        return 1
    fi
    local found
    for found in "${VIRTUAL_ENV:+$VIRTUAL_ENV/bin/python}" "$root/.venv/bin/python" HATCH python3; do
        # Asked only when its turn comes: hatch takes a second to start.
        [ "$found" != HATCH ] || found=$(hatch_python || true)
        usable "$found" && echo "$found" && return
    done
    echo "error: python: none found that can import lm_core and lm_$name; run hatch env create, or set PYTHON to one that can" >&2
    return 1
}

python=$(find_python) || exit 2
exec "$python" -m lm_core.launch "$name" "$@"
