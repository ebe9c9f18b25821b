// Rows per code and their sums, the statistics that move codebooks.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "strided.hpp"

namespace aime {

// Integers (leading axes..., heads) with any strides; 8 bytes each, or 4.
struct Indices {
  const void* data;
  bool wide;
  std::vector<std::int64_t> sizes;    // of the leading axes
  std::vector<std::int64_t> strides;  // of the leading axes
  std::int64_t head_stride;

  std::int64_t at(std::int64_t place) const {
    return wide ? static_cast<const std::int64_t*>(data)[place] : static_cast<const std::int32_t*>(data)[place];
  }
};

// counts (heads, codes) and sums (heads, codes, width): out, row-major float32. Rows as in vq_lookup.
struct StatisticsArguments {
  Rows rows;
  std::int64_t head_stride;
  Indices indices;
  std::int64_t row_count;
  std::int64_t heads;
  std::int64_t code_count;
  std::int64_t width;
  float* counts;
  float* sums;
};

// A thread has a whole head: rows are added in their order, whatever the number of threads. Throws
// std::invalid_argument for an index that is no code's, before anything is written. `instructions` as in vq_lookup.
void vq_statistics(const StatisticsArguments& arguments, int threads, const std::string& instructions);

}  // namespace aime
