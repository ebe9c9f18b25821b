#include "kernel.hpp"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace aime::raycaster {

const Kernel& find_kernel() {
  const char* chosen = std::getenv("AIME_RAYCAST_INSTRUCTIONS");
  const std::string wanted = chosen != nullptr ? chosen : "";
  std::string known;
#if defined(__x86_64__)
  const bool avx512 = __builtin_cpu_supports("avx512f") != 0;
  const bool avx2 = __builtin_cpu_supports("avx2") != 0;
  if (avx512 && (wanted.empty() || wanted == kAvx512Kernel.name)) return kAvx512Kernel;
  if (avx2 && (wanted.empty() || wanted == kAvx2Kernel.name)) return kAvx2Kernel;
  if (avx512) known += std::string(kAvx512Kernel.name) + ", ";
  if (avx2) known += std::string(kAvx2Kernel.name) + ", ";
#endif
  if (wanted.empty() || wanted == kBaselineKernel.name) return kBaselineKernel;
  throw std::invalid_argument("AIME_RAYCAST_INSTRUCTIONS is '" + wanted + "', expected one of " + known +
                              kBaselineKernel.name);
}

}  // namespace aime::raycaster
