#include "vq_statistics.hpp"

#include <algorithm>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>

#include "buffer.hpp"
#include "instruction_set.hpp"
#include "parallel.hpp"

namespace aime {
namespace {

// Where a row's entry of head 0 lies.
class Places {
 public:
  Places(const std::vector<std::int64_t>& sizes, const std::vector<std::int64_t>& strides)
      : axes_{nullptr, Dtype::kFloat32, sizes, strides, 1} {}
  std::int64_t operator[](std::int64_t row) const {
    return axes_.sizes.size() == 1 ? row * axes_.strides[0] : axes_.offset(row);
  }

 private:
  Rows axes_;
};

void check_range(const StatisticsArguments& arguments, const Places& places) {
  std::int64_t low = std::numeric_limits<std::int64_t>::max();
  std::int64_t high = std::numeric_limits<std::int64_t>::min();
  for (std::int64_t row = 0; row < arguments.row_count; ++row) {
    std::int64_t place = places[row];
    for (std::int64_t head = 0; head < arguments.heads; ++head, place += arguments.indices.head_stride) {
      const std::int64_t index = arguments.indices.at(place);
      low = std::min(low, index);
      high = std::max(high, index);
    }
  }
  if (low <= high && (low < 0 || high >= arguments.code_count)) {
    throw std::invalid_argument("vq_statistics: indices: expected 0 to " + std::to_string(arguments.code_count - 1) +
                                ", found " + std::to_string(low) + " to " + std::to_string(high));
  }
}

void add_head(const StatisticsArguments& arguments, const Places& row_places, const Places& index_places,
              const InstructionSet& set, std::int64_t head, float* scratch) {
  const Rows& rows = arguments.rows;
  const std::int64_t width = arguments.width;
  float* counts = arguments.counts + head * arguments.code_count;
  float* sums = arguments.sums + head * arguments.code_count * width;
  const bool direct = rows.dtype == Dtype::kFloat32 && rows.stride == 1;
  std::fill_n(counts, arguments.code_count, 0.0F);
  std::fill_n(sums, arguments.code_count * width, 0.0F);
  for (std::int64_t row = 0; row < arguments.row_count; ++row) {
    const std::int64_t code = arguments.indices.at(index_places[row] + head * arguments.indices.head_stride);
    const std::int64_t start = row_places[row] + head * arguments.head_stride;
    counts[code] += 1.0F;
    if (!direct) rows.read(start, width, scratch);
    set.add_row(direct ? static_cast<const float*>(rows.data) + start : scratch, width, sums + code * width);
  }
}

}  // namespace

void vq_statistics(const StatisticsArguments& arguments, int threads, const std::string& instructions) {
  const InstructionSet& set = choose_instruction_set("vq_statistics", instructions);
  const Places row_places(arguments.rows.sizes, arguments.rows.strides);
  const Places index_places(arguments.indices.sizes, arguments.indices.strides);
  check_range(arguments, index_places);
  const double elements = static_cast<double>(arguments.row_count * arguments.heads * arguments.width);
  run_tiles(arguments.heads, threads, 0.2 * elements, [&]() -> TileWork {
    const auto scratch = std::make_shared<Buffer>(arguments.width);
    return
        [&, scratch](std::int64_t head) { add_head(arguments, row_places, index_places, set, head, scratch->data()); };
  });
}

}  // namespace aime
