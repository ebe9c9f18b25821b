// Frames to the patches that a trunk's first layer multiplies: whitened, beside their changes, in one pass.
#pragma once

#include <cstdint>
#include <string>

#include "strided.hpp"

namespace aime {

// frames (B, T, C, H, W), one byte a value or float32, and before (B, S - 1, C, H, W) float32 or no data, any strides;
// mean and factor (C, H, W), row-major. H and W are multiples of `patch`, the side of a patch.
struct PatchInputs {
  Tensor frames;
  bool bytes;
  Tensor before;
  const float* mean;
  const float* factor;
  std::int64_t patch;
  std::int64_t changes;  // S - 1
};

// (B, T, H / patch, W / patch, S C patch patch), row-major, bfloat16 with `halves`, else float32.
// On `threads` threads with the same bits for any number of them; `instructions` as in vq_lookup.
void frame_patches(const PatchInputs& inputs, void* patches, bool halves, int threads, const std::string& instructions);

}  // namespace aime
