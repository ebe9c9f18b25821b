// AVX-512F: 16 lanes.
#if defined(__x86_64__)

// GCC 12 takes the undefined operand of its own AVX-512 intrinsics for a mistake (GCC bug 105593).
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "instruction_set.hpp"
#include "latent_rollout.hpp"
#include "strided.hpp"

#define AIME_TARGET __attribute__((target("avx512f")))
#define AIME_BFLOAT16_TARGET __attribute__((target("avx512f,avx512bf16")))
#define AIME_INLINE AIME_TARGET inline __attribute__((always_inline))

namespace aime {
namespace {
namespace avx512 {

#include "vector_avx512.inl"
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

}  // namespace avx512

bool has_bfloat16_pairs() { return __builtin_cpu_supports("avx512bf16") != 0; }

}  // namespace

const InstructionSet kAvx512Set = {"avx512",
                                   avx512::kLanes,
                                   avx512::kOperationsPerIteration,
                                   avx512::multiply_adds,
                                   avx512::logistics,
                                   avx512::logistics_backward,
                                   avx512::density,
                                   avx512::density_backward,
                                   avx512::sticks,
                                   avx512::sticks_backward,
                                   avx512::slot_attend,
                                   avx512::slot_attend_backward,
                                   avx512::frame_patches,
                                   avx512::frame_error,
                                   avx512::frame_error_backward,
                                   avx512::rollout,
                                   avx512::rollout_backward,
                                   avx512::kPanelColumns,
                                   has_bfloat16_pairs};

}  // namespace aime

#endif
