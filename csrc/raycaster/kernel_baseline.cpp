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

#include "block.inl"
#include "intersect.inl"
#include "shade.inl"
#include "simd.inl"
#include "texture.inl"

}  // namespace

const Kernel kBaselineKernel = {"baseline", draw};

}  // namespace aime::raycaster
