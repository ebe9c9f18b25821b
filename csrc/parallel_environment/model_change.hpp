// What an episode changes in its model, as runs of bytes of mjModel's buffer (reacher moves its target).
#pragma once

#include "mujoco_api.hpp"

#include <cstddef>
#include <cstdint>
#include <vector>

namespace aime {

struct ModelChange {
  std::size_t offset = 0;
  std::vector<std::uint8_t> bytes;
};

// Where a task may write when it initialises an episode.
struct ModelRange {
  std::size_t offset = 0;
  std::size_t size = 0;
};

// `count` numbers from `field`, a pointer into the model's buffer.
template <typename Number>
ModelRange range_of(const mjModel* model, const Number* field, std::size_t count) {
  const auto* start = reinterpret_cast<const std::uint8_t*>(field);
  return {static_cast<std::size_t>(start - static_cast<const std::uint8_t*>(model->buffer)), count * sizeof(Number)};
}

// The present content of the ranges.
inline std::vector<ModelChange> read_ranges(const mjModel* model, const std::vector<ModelRange>& ranges) {
  const auto* buffer = static_cast<const std::uint8_t*>(model->buffer);
  std::vector<ModelChange> changes;
  changes.reserve(ranges.size());
  for (const ModelRange& range : ranges) {
    changes.push_back({range.offset, {buffer + range.offset, buffer + range.offset + range.size}});
  }
  return changes;
}

}  // namespace aime
