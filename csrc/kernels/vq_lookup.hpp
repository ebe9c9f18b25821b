#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "strided.hpp"

namespace aime {

// Nearest code of every row of every head.
//   rows.sizes are the leading axes without the head axis; head_stride leads from one head to the next
//   codes: one head's codes (V axes of size `codes_count`), codes_head_stride leads to the next head
//   indices, distance: out, (rows, heads) row-major; distance is |x - c|^2 of the chosen code
struct LookupArguments {
  Rows rows;
  std::int64_t head_stride;
  Rows codes;
  std::int64_t codes_head_stride;
  std::int64_t row_count;
  std::int64_t heads;
  std::int64_t code_count;
  std::int64_t width;
  std::int32_t* indices;
  float* distance;
  float* quantized;  // the chosen codes in float32, (rows, heads, width) row-major, or null
};

// Runs on `threads` threads; `instructions` is "", for the best the processor has, or a name of instruction_sets().
void vq_lookup(const LookupArguments& arguments, int threads, const std::string& instructions);

// Names of the instruction sets that this processor can run, best first.
std::vector<std::string> instruction_sets();

}  // namespace aime
