// AVX2: eight lanes a vector.
#if defined(__x86_64__)

#include "kernel.hpp"

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include <immintrin.h>

#define AIME_AVX2
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2")
#endif

namespace aime::raycaster {
namespace {

constexpr int kNative = 8;

// clang-format off: each builds on those before it
#include "simd.inl"
#include "intersect.inl"
#include "texture.inl"
#include "shade.inl"
#include "block.inl"
// clang-format on

}  // namespace

const Kernel kAvx2Kernel = {"avx2", draw};

}  // namespace aime::raycaster

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif
