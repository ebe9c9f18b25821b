// AVX-512: 16 lanes, 6 rows x 4 vectors = 24 of 32 registers hold dot products.
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

#include <limits>

#include "vq_assign.hpp"

#define AIME_TARGET __attribute__((target("avx512f")))

namespace aime {
namespace {
namespace avx512 {

constexpr int kRows = 6;
constexpr int kVectors = 4;  // groups of 64, which divide the usual numbers of codes

struct Vector {
  static constexpr int kLanes = 16;
  __m512 value;
  AIME_TARGET static inline Vector zero() { return {_mm512_setzero_ps()}; }
  AIME_TARGET static inline Vector load(const float* from) { return {_mm512_loadu_ps(from)}; }
  AIME_TARGET static inline Vector broadcast(float from) { return {_mm512_set1_ps(from)}; }
  AIME_TARGET static inline Vector subtract(Vector a, Vector b) { return {_mm512_sub_ps(a.value, b.value)}; }
  AIME_TARGET static inline Vector multiply_add(Vector a, Vector b, Vector c) {
    return {_mm512_fmadd_ps(a.value, b.value, c.value)};
  }
  AIME_TARGET inline void store(float* to) const { _mm512_storeu_ps(to, value); }
  AIME_TARGET inline float total() const { return _mm512_reduce_add_ps(value); }
};

struct Index {
  __m512i value;
  AIME_TARGET static inline Index sequence(std::int32_t first) {
    const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    return {_mm512_add_epi32(_mm512_set1_epi32(first), lanes)};
  }
};

struct Best {
  __m512 value;
  __m512i index;
  AIME_TARGET inline void reset() {
    value = _mm512_set1_ps(std::numeric_limits<float>::infinity());
    index = _mm512_setzero_si512();
  }
  AIME_TARGET inline void take_smaller(Vector score, Index candidate) {
    const __mmask16 smaller = _mm512_cmp_ps_mask(score.value, value, _CMP_LT_OQ);
    value = _mm512_mask_mov_ps(value, smaller, score.value);
    index = _mm512_mask_mov_epi32(index, smaller, candidate.value);
  }
  AIME_TARGET inline std::int32_t lowest() const {
    const __m512 least = _mm512_set1_ps(_mm512_reduce_min_ps(value));
    const __mmask16 tied = _mm512_cmp_ps_mask(value, least, _CMP_EQ_OQ);
    return _mm512_mask_reduce_min_epi32(tied, index);
  }
};

#include "vq_assign_tile.inl"

}  // namespace avx512
}  // namespace

const TileKernel kAvx512Kernel = {"avx512", avx512::Vector::kLanes * avx512::kVectors, avx512::kRows, avx512::run_tile};

}  // namespace aime

#endif
