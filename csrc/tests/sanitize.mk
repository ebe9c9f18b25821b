# Builds and runs the C++ tests under one sanitizer: make -f csrc/tests/sanitize.mk SANITIZER=address,undefined|thread
# One program for each extension, of all its sources but the Python face. scripts/sanitize.sh sets the variables.
#   SANITIZER  as -fsanitize has it        OUT      directory of what is built
#   INCLUDE    of MuJoCo's headers         RUN      what the programs run under (empty, or setarch -R)

CXX ?= g++
CXXFLAGS := -std=c++17 -g -O1 -fno-omit-frame-pointer -fno-sanitize-recover=all -fsanitize=$(SANITIZER) \
	-ffp-contract=off -pthread -Wall -Wextra -Werror -isystem $(INCLUDE)
LDFLAGS := -fsanitize=$(SANITIZER) -pthread -ldl

# the Python faces are named *module*; csrc/tests/plain_raycast_kernel.cpp stands in for the ray caster's kernels
sources = $(filter-out csrc/raycaster/kernel_%.cpp,$(shell find $(addprefix csrc/,$(1)) -name '*.cpp' ! -name '*module*'))
objects = $(patsubst %.cpp,$(OUT)/%.o,$(1))

KERNEL_TESTS := csrc/tests/kernels_test.cpp csrc/tests/latent_rollout_test.cpp
KERNELS := $(call objects,$(call sources,kernels) csrc/tests/main.cpp $(KERNEL_TESTS))
ENVIRONMENT := $(call objects,$(call sources,parallel_environment raycaster) \
	$(filter-out $(KERNEL_TESTS),$(wildcard csrc/tests/*.cpp)))
PROGRAMS := $(OUT)/kernels_test $(OUT)/environment_test

.PHONY: run
.DELETE_ON_ERROR:

run: $(PROGRAMS)
	@set -e; for program in $^; do echo "-- $(SANITIZER): $$(basename $$program)"; $(RUN) $$program $(TESTS); done

$(OUT)/kernels_test: $(KERNELS)
$(OUT)/environment_test: $(ENVIRONMENT)
$(PROGRAMS):
	$(CXX) $^ $(LDFLAGS) -o $@

$(OUT)/%.o: %.cpp
	@mkdir -p $(dir $@)
	$(CXX) $(CXXFLAGS) -MMD -MP -c $< -o $@

-include $(shell find $(OUT) -name '*.d' 2>/dev/null)
