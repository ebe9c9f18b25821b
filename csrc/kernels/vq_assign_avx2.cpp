// AVX2 with FMA: 8 lanes, 6 rows x 2 vectors = 12 of 16 registers hold dot products.
#if defined(__x86_64__)

#include <immintrin.h>

#include <limits>

#include "vq_assign.hpp"

#define AIME_TARGET __attribute__((target("avx2,fma")))

namespace aime {
namespace {
namespace avx2 {

constexpr int kRows = 6;
constexpr int kVectors = 2;  // groups of 16, which divide the usual numbers of codes

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
  AIME_TARGET inline void store(float* to) const { _mm256_storeu_ps(to, value); }
  AIME_TARGET inline float total() const {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(value), _mm256_extractf128_ps(value, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
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
  AIME_TARGET inline std::int32_t lowest() const {
    alignas(64) float values[Vector::kLanes];
    alignas(64) std::int32_t indices[Vector::kLanes];
    _mm256_store_ps(values, value);
    _mm256_store_si256(reinterpret_cast<__m256i*>(indices), index);
    int winner = 0;
    for (int lane = 1; lane < Vector::kLanes; ++lane) {
      const bool smaller = values[lane] < values[winner];
      const bool tied_lower = values[lane] == values[winner] && indices[lane] < indices[winner];
      if (smaller || tied_lower) winner = lane;
    }
    return indices[winner];
  }
};

#include "vq_assign_tile.inl"

}  // namespace avx2
}  // namespace

const TileKernel kAvx2Kernel = {"avx2", avx2::Vector::kLanes * avx2::kVectors, avx2::kRows, avx2::run_tile};

}  // namespace aime

#endif
