#!/bin/sh
# The C++ tests (csrc/tests) under ASan with UBSan, then under TSan. usage: sanitize.sh PYTHON [NAME ...]
# PYTHON has mujoco and dm_control; a NAME runs the tests whose name contains it. CXX chooses the compiler.
# Instrumented are this project's sources alone, not MuJoCo, Mesa or LLVM.
set -eu
cd "$(dirname "$0")/.."
python=$1
shift
package() { # the directory of an installed package, found without importing it
    "$python" -c "import importlib.util, sys; print(importlib.util.find_spec(sys.argv[1]).submodule_search_locations[0])" "$1"
}
mujoco=$(package mujoco)
AIME_TEST_MUJOCO=$(find "$mujoco" -maxdepth 1 -name 'libmujoco.so*' | head -n 1)
AIME_TEST_SUITE=$(package dm_control)/suite
export AIME_TEST_MUJOCO AIME_TEST_SUITE
export ASAN_OPTIONS=detect_stack_use_after_return=1:strict_string_checks=1:detect_leaks=1
export UBSAN_OPTIONS=print_stacktrace=1
export TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1

for sanitizer in address,undefined thread; do
    out=build/sanitize/$sanitizer
    mkdir -p "$out"
    # A compiler without its sanitizer libraries cannot link this.
    if ! echo 'int main() {}' | ${CXX:-g++} -x c++ -fsanitize="$sanitizer" - -o "$out/probe" 2>"$out/probe.log"; then
        echo "${CXX:-g++} cannot build with -fsanitize=$sanitizer: $(tail -n 1 "$out/probe.log")" >&2
        exit 1
    fi
    # TSan of older compilers knows only the memory layouts without much randomisation.
    run=
    "$out/probe" >/dev/null 2>&1 || run="setarch $(uname -m) -R"
    make --no-print-directory -s -j "$(nproc)" -f csrc/tests/sanitize.mk \
        SANITIZER="$sanitizer" OUT="$out" INCLUDE="$mujoco/include" RUN="$run" TESTS="$*"
done
