#!/bin/sh
# Print the first interpreter that runs and is new enough. usage: find_python.sh [INTERPRETER]
# Each is tried by running it: a name on PATH may be a version manager's shim that fails.
set -u
check='import sys, venv, ensurepip
sys.exit(0 if sys.version_info >= (3, 11) else 1)'

if [ $# -gt 0 ]; then
    candidates=$1
else
    candidates="python3.12 python3.11 python3.13 python3 python"
fi
for candidate in $candidates; do
    if "$candidate" -c "$check" >/dev/null 2>&1; then
        command -v "$candidate"
        exit 0
    fi
done
{
    echo "AIME needs Python 3.11, 3.12 or 3.13 with the venv module. Tried:"
    for candidate in $candidates; do
        echo "  $candidate: $("$candidate" -c "import sys; print(sys.version.split()[0]); import venv, ensurepip" 2>&1 | tail -n 1)"
    done
    echo "Install one (Debian, Ubuntu: apt-get install python3 python3-venv python3-dev) or name it: make PYTHON=/path/to/python3.11"
} >&2
exit 1
