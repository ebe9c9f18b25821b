// AVX2 with FMA: 8 lanes.
#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "instruction_set.hpp"
#include "latent_rollout.hpp"
#include "strided.hpp"

#define AIME_TARGET __attribute__((target("avx2,fma")))
#define AIME_INLINE AIME_TARGET inline __attribute__((always_inline))

namespace aime {
namespace {
namespace avx2 {

#include "vector_avx2.inl"
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

}  // namespace avx2

bool no_bfloat16_pairs() { return false; }

}  // namespace

const InstructionSet kAvx2Set = {"avx2",
                                 avx2::kLanes,
                                 avx2::kOperationsPerIteration,
                                 avx2::multiply_adds,
                                 avx2::logistics,
                                 avx2::logistics_backward,
                                 avx2::density,
                                 avx2::density_backward,
                                 avx2::sticks,
                                 avx2::sticks_backward,
                                 avx2::slot_attend,
                                 avx2::slot_attend_backward,
                                 avx2::frame_patches,
                                 avx2::frame_error,
                                 avx2::frame_error_backward,
                                 avx2::rollout,
                                 avx2::rollout_backward,
                                 avx2::kPanelColumns,
                                 no_bfloat16_pairs};

}  // namespace aime

#endif
