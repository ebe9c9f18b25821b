// Any processor: 4 lanes through the compiler's vector extension (SSE2 on x86-64, NEON on AArch64).
#include <cstring>
#include <limits>

#include "vq_assign.hpp"

#define AIME_TARGET

namespace aime {
namespace {
namespace baseline {

constexpr int kRows = 4;
constexpr int kVectors = 2;

typedef float Float4 __attribute__((vector_size(16)));
typedef std::int32_t Int4 __attribute__((vector_size(16)));

struct Vector {
  static constexpr int kLanes = 4;
  Float4 value;
  static inline Vector zero() { return {Float4{0.0F, 0.0F, 0.0F, 0.0F}}; }
  static inline Vector load(const float* from) {
    Vector result;
    std::memcpy(&result.value, from, sizeof(result.value));
    return result;
  }
  static inline Vector broadcast(float from) { return {Float4{from, from, from, from}}; }
  static inline Vector subtract(Vector a, Vector b) { return {a.value - b.value}; }
  static inline Vector multiply_add(Vector a, Vector b, Vector c) { return {a.value * b.value + c.value}; }
  inline void store(float* to) const { std::memcpy(to, &value, sizeof(value)); }
  inline float total() const { return (value[0] + value[2]) + (value[1] + value[3]); }
};

struct Index {
  Int4 value;
  static inline Index sequence(std::int32_t first) { return {Int4{first, first + 1, first + 2, first + 3}}; }
};

struct Best {
  Float4 value;
  Int4 index;
  inline void reset() {
    const float infinity = std::numeric_limits<float>::infinity();
    value = Float4{infinity, infinity, infinity, infinity};
    index = Int4{0, 0, 0, 0};
  }
  inline void take_smaller(Vector score, Index candidate) {
    const Int4 smaller = score.value < value;
    value = smaller ? score.value : value;
    index = smaller ? candidate.value : index;
  }
  inline std::int32_t lowest() const {
    alignas(64) float values[Vector::kLanes];
    alignas(64) std::int32_t indices[Vector::kLanes];
    std::memcpy(values, &value, sizeof(value));
    std::memcpy(indices, &index, sizeof(index));
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

}  // namespace baseline
}  // namespace

const TileKernel kBaselineKernel = {"baseline", baseline::Vector::kLanes * baseline::kVectors, baseline::kRows,
                                    baseline::run_tile};

}  // namespace aime
