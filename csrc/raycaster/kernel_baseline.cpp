// What every processor of the architecture can do; of x86-64, SSE2.
#include "kernel.hpp"

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace aime::raycaster {
namespace {

constexpr int kNative = 4;

// clang-format off: each builds on those before it
#include "simd.inl"
#include "intersect.inl"
#include "texture.inl"
#include "shade.inl"
#include "block.inl"
// clang-format on

}  // namespace

const Kernel kBaselineKernel = {"baseline", draw};

}  // namespace aime::raycaster
