#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

namespace aime {

// 64-byte aligned floats, so that a vector load never crosses a cache line.
class Buffer {
 public:
  explicit Buffer(std::int64_t count) {
    const std::size_t bytes =
        (static_cast<std::size_t>(std::max<std::int64_t>(count, 1)) * sizeof(float) + 63) / 64 * 64;
    data_ = static_cast<float*>(std::aligned_alloc(64, bytes));
    if (data_ == nullptr) throw std::bad_alloc();
  }
  ~Buffer() { std::free(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  float* data() { return data_; }
  const float* data() const { return data_; }

 private:
  float* data_;
};

}  // namespace aime
