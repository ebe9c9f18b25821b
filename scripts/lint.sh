#!/bin/sh
# Everything that judges the code without running it. All of it runs even where one part fails.
set -u
cd "$(dirname "$0")/.." || exit 1
status=0
step() {
    echo "== $1"
    shift
    "$@" || status=1
}
types() {
    # kernels/ is the package aime.kernels, which mypy sees only where it stands below aime/
    scripts/link_tree.sh build/typed && (cd build/typed && mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache)
}
step "ruff check" ruff check .
step "ruff format" ruff format --check .
step "mypy --strict" types
step "clang-format" sh -c 'git ls-files "csrc/*.cpp" "csrc/*.hpp" "csrc/*.inl" | xargs clang-format --dry-run --Werror'
step "floors" python -m pytest -q tests/test_architecture.py
exit $status
