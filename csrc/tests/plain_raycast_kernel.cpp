// In place of csrc/raycaster/kernel_*.cpp: under a sanitizer their vector code takes a compiler more than ten minutes.
// Reads every solid of the frame and writes every pixel and all the room for lists, as they do; the picture is another.
#include "../raycaster/kernel.hpp"

#include <algorithm>
#include <cstddef>

namespace aime::raycaster {
namespace {

// The last solid that may be seen from the pixel, or -1.
int solid_at(const Frame& frame, int column, int row) {
  int found = -1;
  for (std::size_t index = 0; index < frame.solids.size(); ++index) {
    const int* seen = frame.solids[index].seen;
    if (column >= seen[0] && row >= seen[1] && column < seen[2] && row < seen[3]) found = static_cast<int>(index);
  }
  return found;
}

void draw(const Frame& frame, const Output& output, int* lists) {
  std::fill_n(lists, 2 * frame.solids.capacity(), 0);
  std::size_t pixel = 0;
  for (int row = 0; row < frame.height; ++row) {
    for (int column = 0; column < frame.width; ++column, ++pixel) {
      const int index = solid_at(frame, column, row);
      const Solid* solid = index < 0 ? nullptr : &frame.solids[static_cast<std::size_t>(index)];
      if (output.segmentation != nullptr)
        output.segmentation[pixel] = solid == nullptr ? -1 : std::max(solid->segment, -1);
      if (output.depth != nullptr) output.depth[pixel] = solid == nullptr ? frame.far : solid->radius;
      if (output.rgb == nullptr) continue;
      for (std::size_t channel = 0; channel < 3; ++channel) {
        const float level = solid == nullptr ? 0.0F : std::clamp(solid->rgba[channel], 0.0F, 1.0F);
        output.rgb[3 * pixel + channel] = static_cast<std::uint8_t>(255.0F * level);
      }
    }
  }
}

}  // namespace

const Kernel kBaselineKernel = {"baseline", draw};
#if defined(__x86_64__)
const Kernel kAvx2Kernel = {"avx2", draw};
const Kernel kAvx512Kernel = {"avx512", draw};
#endif

}  // namespace aime::raycaster
