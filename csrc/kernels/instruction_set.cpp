#include "instruction_set.hpp"

#include <stdexcept>

namespace aime {
namespace {

std::vector<const InstructionSet*> available() {
  std::vector<const InstructionSet*> sets;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f")) sets.push_back(&kAvx512Set);
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) sets.push_back(&kAvx2Set);
#endif
  sets.push_back(&kBaselineSet);
  return sets;
}

}  // namespace

const InstructionSet& choose_instruction_set(const std::string& op, const std::string& name) {
  static const std::vector<const InstructionSet*> sets = available();
  if (name.empty()) return *sets.front();
  for (const InstructionSet* set : sets) {
    if (name == set->name) return *set;
  }
  throw std::invalid_argument(op + ": this processor cannot run instruction set '" + name + "'");
}

}  // namespace aime
