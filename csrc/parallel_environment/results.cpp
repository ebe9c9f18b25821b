#include "results.hpp"

#include <algorithm>
#include <cstring>

namespace aime {
namespace {

void write_numbers(const RowShape& shape, const std::vector<double>& source, std::vector<std::uint8_t>& target,
                   std::size_t row) {
  std::uint8_t* out = target.data() + row * source.size() * shape.number();
  if (!shape.single) {
    if (!source.empty()) std::memcpy(out, source.data(), source.size() * sizeof(double));
    return;
  }
  for (const double value : source) {
    const auto narrow = static_cast<float>(value);
    std::memcpy(out, &narrow, sizeof(narrow));
    out += sizeof(narrow);
  }
}

template <typename Number>
void write_picture(const std::vector<Number>& source, std::vector<Number>& target, std::size_t row) {
  std::copy(source.begin(), source.end(), target.begin() + static_cast<std::ptrdiff_t>(row * source.size()));
}

}  // namespace

Report::Report(const RowShape& shape)
    : observation(shape.observation),
      qpos(shape.qpos),
      qvel(shape.qvel),
      frames(shape.frame() * shape.frame_stack),
      segmentation(shape.segmentation ? shape.area : 0),
      body_mask(shape.segmentation ? shape.area : 0),
      depth(shape.depth ? shape.area : 0) {}

std::uint8_t* Report::next_frame(const RowShape& shape) {
  std::copy(frames.begin() + static_cast<std::ptrdiff_t>(shape.frame()), frames.end(), frames.begin());
  return frames.data() + shape.frame() * (shape.frame_stack - 1);
}

void Report::repeat_frame(const RowShape& shape) {
  const auto newest = frames.end() - static_cast<std::ptrdiff_t>(shape.frame());
  for (std::size_t index = 0; index + 1 < shape.frame_stack; ++index) {
    std::copy(newest, frames.end(), frames.begin() + static_cast<std::ptrdiff_t>(index * shape.frame()));
  }
}

void Rows::allocate(const RowShape& shape, std::size_t count) {
  observation.resize(count * shape.observation * shape.number());
  qpos.resize(count * shape.qpos * shape.number());
  qvel.resize(count * shape.qvel * shape.number());
  pixels.resize(count * shape.frame() * shape.frame_stack);
  if (shape.depth) depth.resize(count * shape.area);
  if (!shape.segmentation) return;
  segmentation.resize(count * shape.area);
  body_mask.resize(count * shape.area);
}

void Rows::write(const RowShape& shape, const Report& report, std::size_t row) {
  write_numbers(shape, report.observation, observation, row);
  write_numbers(shape, report.qpos, qpos, row);
  write_numbers(shape, report.qvel, qvel, row);
  write_picture(report.frames, pixels, row);
  write_picture(report.segmentation, segmentation, row);
  write_picture(report.body_mask, body_mask, row);
  write_picture(report.depth, depth, row);
}

Results::Results(const RowShape& shape, std::size_t count, bool keeps_final)
    : reward(count), discount(count, 1.0), step_type(count, kFirst), env_id(count) {
  rows.allocate(shape, count);
  if (!keeps_final) return;
  final_rows.allocate(shape, count);
  has_final.resize(count);
}

void Results::add_fault(int env, const std::string& reason) {
  const std::lock_guard<std::mutex> lock(mutex_);
  faults.emplace_back(env, reason);
  troubled.store(true);
}

void Results::add_failure(const std::string& reason) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (failure.empty()) failure = reason;
  troubled.store(true);
}

void Results::clear() {
  written.store(0);
  if (troubled.load()) {
    faults.clear();
    failure.clear();
    troubled.store(false);
  }
  std::fill(has_final.begin(), has_final.end(), std::uint8_t{0});
}

}  // namespace aime
