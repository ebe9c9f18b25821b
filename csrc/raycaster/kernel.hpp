// The kernels: the same code compiled for several instruction sets, chosen at run time by what the processor has.
#pragma once

#include "frame.hpp"

#include <string>
#include <vector>

namespace aime::raycaster {

struct Kernel {
  const char* name;
  // `lists` is room for 2 * frame.solids.capacity() indices.
  void (*draw)(const Frame& frame, const Output& output, int* lists);
};

extern const Kernel kBaselineKernel;
#if defined(__x86_64__)
extern const Kernel kAvx2Kernel;
extern const Kernel kAvx512Kernel;
#endif

// Names of the kernels that this processor runs, the best first.
std::vector<std::string> instruction_sets();

// The kernel of that name. For an empty one the best kernel for this processor, unless AIME_RAYCAST_INSTRUCTIONS =
// avx512 | avx2 | baseline chooses another. Throws std::invalid_argument for one that is unknown or cannot run here.
const Kernel& find_kernel(const std::string& name);

}  // namespace aime::raycaster
