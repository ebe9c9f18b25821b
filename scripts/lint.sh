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
tidy() {
    # some two minutes of one core; includes are found as setup.py finds them
    command -v clang-tidy || return 1
    includes=$(python -c '
import importlib.util, sysconfig
found = [importlib.util.find_spec(name).submodule_search_locations[0] for name in ("pybind11", "mujoco")]
print(*("-isystem " + path for path in (sysconfig.get_path("include"), *(entry + "/include" for entry in found))))') || return 1
    # shellcheck disable=SC2086 # a list of options; stderr counts the warnings of other people's headers
    git ls-files "csrc/kernels/*.cpp" "csrc/parallel_environment/*.cpp" "csrc/raycaster/*.cpp" |
        xargs -P "$(getconf _NPROCESSORS_ONLN)" -I{} clang-tidy --quiet {} -- -std=c++17 $includes 2>/dev/null
}
step "ruff check" ruff check .
step "ruff format" ruff format --check .
step "mypy --strict" types
step "clang-format" sh -c 'git ls-files "csrc/*.cpp" "csrc/*.hpp" "csrc/*.inl" | xargs clang-format --dry-run --Werror'
step "clang-tidy" tidy
step "floors" python -m pytest -q tests/test_architecture.py
exit $status
