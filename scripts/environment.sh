# Sourced by the scripts: the environment that `make` made comes first on PATH. AIME_VENV (a directory) or AIME_ENV_NAME
# (a name under ~/envs, as the older scripts had it) names another; where there is none, an `aime` on PATH serves.
# AIME_ROOT is the source tree, that of the script by default. AIME_DEBUG=1 makes CUDA report where it failed.
AIME_ROOT=${AIME_ROOT:-$(cd "$(dirname "$0")/.." && pwd)}
if [ -z "${AIME_VENV:-}" ] && [ -n "${AIME_ENV_NAME:-}" ]; then
    AIME_VENV=$HOME/envs/$AIME_ENV_NAME
fi
if [ -n "${AIME_VENV:-}" ] && [ ! -x "$AIME_VENV/bin/python" ]; then
    echo "AIME_VENV: expected a virtual environment with bin/python, found none at $AIME_VENV" >&2
    exit 1
fi
AIME_VENV=${AIME_VENV:-$AIME_ROOT/.venv}
if [ -x "$AIME_VENV/bin/python" ]; then
    PATH=$(cd "$AIME_VENV" && pwd)/bin:$PATH
    export PATH
fi
if ! command -v aime >/dev/null 2>&1; then
    echo "expected aime in $AIME_VENV/bin or on PATH, found none: run \`make train\` in $AIME_ROOT once, or pip install $AIME_ROOT" >&2
    exit 1
fi
if [ "${AIME_DEBUG:-0}" = 1 ]; then
    export CUDA_LAUNCH_BLOCKING=1 TORCH_USE_CUDA_DSA=1
fi
