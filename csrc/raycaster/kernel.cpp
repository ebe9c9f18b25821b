#include "kernel.hpp"

#include <cstdlib>
#include <stdexcept>

namespace aime::raycaster {
namespace {

// The best first.
std::vector<const Kernel*> kernels() {
  std::vector<const Kernel*> found;
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") != 0) found.push_back(&kAvx512Kernel);
  if (__builtin_cpu_supports("avx2") != 0) found.push_back(&kAvx2Kernel);
#endif
  found.push_back(&kBaselineKernel);
  return found;
}

}  // namespace

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const Kernel* kernel : kernels()) names.emplace_back(kernel->name);
  return names;
}

const Kernel& find_kernel(const std::string& name) {
  const char* chosen = std::getenv("AIME_RAYCAST_INSTRUCTIONS");
  const std::string wanted = name.empty() && chosen != nullptr ? chosen : name;
  std::string known;
  for (const Kernel* kernel : kernels()) {
    if (wanted.empty() || wanted == kernel->name) return *kernel;
    known += (known.empty() ? "" : ", ") + std::string(kernel->name);
  }
  throw std::invalid_argument("no ray caster for the instruction set '" + wanted + "' here; there are " + known);
}

}  // namespace aime::raycaster
