#include "raycaster.hpp"

#include <stdexcept>

namespace aime::raycaster {
namespace {

// Positions inside the pixel, from its left and top: the patterns that OpenGL drivers use, in sixteenths.
constexpr float kOne[1][2] = {{8, 8}};
constexpr float kTwo[2][2] = {{12, 12}, {4, 4}};
constexpr float kFour[4][2] = {{6, 2}, {14, 6}, {2, 10}, {10, 14}};
constexpr float kEight[8][2] = {{9, 5}, {7, 11}, {13, 9}, {5, 3}, {3, 13}, {1, 7}, {11, 15}, {15, 1}};

template <std::size_t count>
void place(const float (&pattern)[count][2], Frame& frame) {
  for (std::size_t sample = 0; sample < count; ++sample) {
    frame.sample_x[sample] = pattern[sample][0] / 16.0F;
    frame.sample_y[sample] = pattern[sample][1] / 16.0F;
  }
}

}  // namespace

Raycaster::Raycaster(std::shared_ptr<const Assets> assets, int height, int width, int samples,
                     const std::string& instructions, int capacity)
    : assets_(std::move(assets)), kernel_(find_kernel(instructions)) {
  frame_.width = width;
  frame_.height = height;
  frame_.samples = samples;
  frame_.assets = assets_.get();
  if (samples == 1) {
    place(kOne, frame_);
  } else if (samples == 2) {
    place(kTwo, frame_);
  } else if (samples == 4) {
    place(kFour, frame_);
  } else if (samples == 8) {
    place(kEight, frame_);
  } else {
    throw std::invalid_argument("samples must be 1, 2, 4 or 8, not " + std::to_string(samples));
  }
  const auto size = static_cast<std::size_t>(capacity);
  frame_.solids.reserve(size);
  frame_.opaque.reserve(size);
  frame_.transparent.reserve(size);
  geom_of_solid_.reserve(size);
  lists_.resize(2 * size);
}

void Raycaster::draw(const mjvScene& scene, const Output& output) {
  make_frame(scene, frame_, geom_of_solid_);
  kernel_.draw(frame_, output, lists_.data());
}

}  // namespace aime::raycaster
