// Any processor: 4 lanes.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "instruction_set.hpp"
#include "latent_rollout.hpp"
#include "strided.hpp"

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
#include "slot_attend_block.inl"
#include "frame_patches_block.inl"
#include "frame_error_block.inl"
#include "peak_block.inl"
#include "rollout_product.inl"
#include "rollout_block.inl"
#include "rollout_backward_block.inl"
// clang-format on

}  // namespace baseline

bool no_bfloat16_pairs() { return false; }

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
                                     baseline::sticks_backward,
                                     baseline::slot_attend,
                                     baseline::slot_attend_backward,
                                     baseline::frame_patches,
                                     baseline::frame_error,
                                     baseline::frame_error_backward,
                                     baseline::rollout,
                                     baseline::rollout_backward,
                                     baseline::kPanelColumns,
                                     no_bfloat16_pairs};

}  // namespace aime
