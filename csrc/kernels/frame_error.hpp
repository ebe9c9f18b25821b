// Squared errors of decoded images against whitened frames, summed over each image, and their gradient.
#pragma once

#include <cstdint>
#include <string>

#include "strided.hpp"

namespace aime {

// decoded (N, C, H, W), float32 or bfloat16, with the channels of a pixel and the pixels of a row next to each other;
// frames (N, C, H, W), one byte a value or float32, any strides; weights (N, H, W) with any strides, or no data; mean
// and factor (H, W, C), row-major.
struct ErrorInputs {
  Tensor decoded;
  Tensor frames;
  Tensor weights;
  bool bytes;
  const float* mean;
  const float* factor;
};

// Sums (N,) of weight (decoded - (frame - mean) factor)^2.
// On `threads` threads with the same bits for any number of them; `instructions` as in vq_lookup.
void frame_error(const ErrorInputs& inputs, float* sums, int threads, const std::string& instructions);

// Gradient of the decoded images, (N, H, W, C) row-major in their dtype, from that of the sums (N,).
void frame_error_backward(const ErrorInputs& inputs, const Tensor& upstream, void* gradient, int threads,
                          const std::string& instructions);

}  // namespace aime
