#include "instruction_set.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <stdexcept>

#include "parallel.hpp"

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

double peak_operations(int threads, const std::string& instructions) {
  const InstructionSet& set = choose_instruction_set("peak_operations", instructions);
  constexpr std::int64_t kIterations = 200'000;
  constexpr int kTiles = 4;  // a thread
  std::vector<double> sums(static_cast<std::size_t>(threads * kTiles));
  double best = 0.0;
  for (int attempt = 0; attempt < 60; ++attempt) {
    const auto start = std::chrono::steady_clock::now();
    run_tiles(threads * kTiles, threads, 1e9, [&]() -> TileWork {
      return [&](std::int64_t tile) { sums[static_cast<std::size_t>(tile)] = set.multiply_adds(kIterations); };
    });
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    for (const double sum : sums) {
      if (!std::isfinite(sum)) throw std::runtime_error("peak_operations: expected finite sums");
    }
    const double operations = set.operations_per_iteration * static_cast<double>(kIterations * kTiles) * threads;
    best = std::max(best, operations / seconds.count());
  }
  return best;
}

}  // namespace aime
