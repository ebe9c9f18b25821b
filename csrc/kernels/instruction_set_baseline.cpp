// Any processor: 4 lanes.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>

#include "instruction_set.hpp"

#define AIME_TARGET
#define AIME_INLINE AIME_TARGET inline __attribute__((always_inline))

namespace aime {
namespace {
namespace baseline {

#include "vector_baseline.inl"
// clang-format off: each needs the one before
#include "elementary.inl"
#include "mixture_logistics_block.inl"
#include "mixture_density_block.inl"
#include "stick_block.inl"
#include "peak_block.inl"
// clang-format on

}  // namespace baseline
}  // namespace

const InstructionSet kBaselineSet = {"baseline",
                                     baseline::kLanes,
                                     baseline::kOperationsPerIteration,
                                     baseline::multiply_adds,
                                     baseline::logistics,
                                     baseline::logistics_backward,
                                     baseline::density,
                                     baseline::density_backward,
                                     baseline::sticks,
                                     baseline::sticks_backward};

}  // namespace aime
