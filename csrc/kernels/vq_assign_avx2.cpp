// AVX2 with FMA: 8 lanes, 4 rows x 3 vectors = 12 of 16 registers hold dot products.
#if defined(__x86_64__)

#include <immintrin.h>

#include <limits>

#include "vq_assign.hpp"

#define AIME_TARGET __attribute__((target("avx2,fma")))

namespace aime {
namespace {
namespace avx2 {

constexpr int kRows = 4;
constexpr int kVectors = 3;

struct Vector {
  static constexpr int kLanes = 8;
  __m256 value;
  AIME_TARGET static inline Vector zero() { return {_mm256_setzero_ps()}; }
  AIME_TARGET static inline Vector load(const float* from) { return {_mm256_loadu_ps(from)}; }
  AIME_TARGET static inline Vector broadcast(float from) { return {_mm256_set1_ps(from)}; }
  AIME_TARGET static inline Vector subtract(Vector a, Vector b) { return {_mm256_sub_ps(a.value, b.value)}; }
  AIME_TARGET static inline Vector multiply_add(Vector a, Vector b, Vector c) {
    return {_mm256_fmadd_ps(a.value, b.value, c.value)};
  }
};

struct Index {
  __m256i value;
  AIME_TARGET static inline Index sequence(std::int32_t first) {
    return {_mm256_add_epi32(_mm256_set1_epi32(first), _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0))};
  }
};

struct Best {
  __m256 value;
  __m256i index;
  AIME_TARGET inline void reset() {
    value = _mm256_set1_ps(std::numeric_limits<float>::infinity());
    index = _mm256_setzero_si256();
  }
  AIME_TARGET inline void take_smaller(Vector score, Index candidate) {
    const __m256 smaller = _mm256_cmp_ps(score.value, value, _CMP_LT_OQ);
    value = _mm256_blendv_ps(value, score.value, smaller);
    index = _mm256_blendv_epi8(index, candidate.value, _mm256_castps_si256(smaller));
  }
  AIME_TARGET inline void store(float* values, std::int32_t* indices) const {
    _mm256_store_ps(values, value);
    _mm256_store_si256(reinterpret_cast<__m256i*>(indices), index);
  }
};

#include "vq_assign_tile.inl"

}  // namespace avx2
}  // namespace

const TileKernel kAvx2Kernel = {"avx2", avx2::Vector::kLanes * avx2::kVectors, avx2::kRows, avx2::run_tile};

}  // namespace aime

#endif
