// Tensors as the caller has them: any strides, several floating dtypes, no copy before the kernel.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

namespace aime {

enum class Dtype { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

inline float from_bits(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

inline float bfloat16_to_float(std::uint16_t bits) { return from_bits(static_cast<std::uint32_t>(bits) << 16); }

// To the nearest, ties to even.
inline std::uint16_t to_bfloat16(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  const std::uint32_t rounded = (bits + 0x7FFFU + ((bits >> 16) & 1U)) >> 16;
  return static_cast<std::uint16_t>(value != value ? 0x7FC0U : rounded);
}

// Exact for every half, subnormals, infinities and NaNs included.
inline float float16_to_float(std::uint16_t bits) {
  const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000U) << 16;
  const std::uint32_t exponent = (bits >> 10) & 0x1FU;
  const std::uint32_t mantissa = bits & 0x3FFU;
  if (exponent == 0x1FU) return from_bits(sign | 0x7F800000U | (mantissa << 13));
  if (exponent != 0) return from_bits(sign | ((exponent + 112U) << 23) | (mantissa << 13));
  const float magnitude = static_cast<float>(mantissa) * from_bits(0x33800000U);  // mantissa * 2^-24
  return sign != 0 ? -magnitude : magnitude;
}

// Copies `count` values, `stride` elements apart, from `start` elements into the data, as float32.
inline void read_strided(const void* data, Dtype dtype, std::int64_t start, std::int64_t stride, std::int64_t count,
                         float* to) {
  switch (dtype) {
    case Dtype::kFloat32: {
      const float* from = static_cast<const float*>(data) + start;
      if (stride == 1) {
        std::memcpy(to, from, static_cast<std::size_t>(count) * sizeof(float));
      } else {
        for (std::int64_t i = 0; i < count; ++i) to[i] = from[i * stride];
      }
      break;
    }
    case Dtype::kBFloat16: {
      const std::uint16_t* from = static_cast<const std::uint16_t*>(data) + start;
      for (std::int64_t i = 0; i < count; ++i) to[i] = bfloat16_to_float(from[i * stride]);
      break;
    }
    case Dtype::kFloat16: {
      const std::uint16_t* from = static_cast<const std::uint16_t*>(data) + start;
      for (std::int64_t i = 0; i < count; ++i) to[i] = float16_to_float(from[i * stride]);
      break;
    }
  }
}

// A whole tensor; strides are in elements. No data: an optional tensor that is absent.
struct Tensor {
  const void* data;
  Dtype dtype;
  std::vector<std::int64_t> sizes;
  std::vector<std::int64_t> strides;

  std::int64_t size(std::size_t axis) const { return sizes[axis]; }
  std::int64_t stride(std::size_t axis) const { return strides[axis]; }
  // Where the values themselves lie, if they are float32.
  const float* floats(std::int64_t start) const {
    return dtype == Dtype::kFloat32 ? static_cast<const float*>(data) + start : nullptr;
  }
  void read(std::int64_t start, std::int64_t step, std::int64_t count, float* to) const {
    read_strided(data, dtype, start, step, count, to);
  }
};

// Rows of a tensor (leading axes..., width) of one head; strides are in elements.
struct Rows {
  const void* data;
  Dtype dtype;
  std::vector<std::int64_t> sizes;    // of the leading axes
  std::vector<std::int64_t> strides;  // of the leading axes
  std::int64_t stride;                // along the width

  // Offset of a row counted through the leading axes in row-major order.
  std::int64_t offset(std::int64_t row) const {
    std::int64_t result = 0;
    for (std::size_t axis = sizes.size(); axis-- > 1;) {
      result += (row % sizes[axis]) * strides[axis];
      row /= sizes[axis];
    }
    return sizes.empty() ? result : result + row * strides[0];
  }

  // The values themselves where they are float32 rows one after another, else null.
  const float* dense(std::int64_t width) const {
    const bool rows_follow = sizes.size() == 1 && strides[0] == width;
    return dtype == Dtype::kFloat32 && stride == 1 && rows_follow ? static_cast<const float*>(data) : nullptr;
  }

  // Copies `width` values from `start` elements into the tensor, as float32.
  void read(std::int64_t start, std::int64_t width, float* to) const {
    read_strided(data, dtype, start, stride, width, to);
  }
};

}  // namespace aime
