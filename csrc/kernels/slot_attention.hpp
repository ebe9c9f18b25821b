// The pass of slot attention over its inputs: layer norm, logits, softmax over slots, weighted sums; and its gradients.
#pragma once

#include <string>

#include "strided.hpp"

namespace aime {

// inputs (B, N, C) and mask (B, N), any strides (the mask as bytes, or no data); seen (B, S, C), offset (B, S).
struct SlotInputs {
  Tensor inputs;
  Tensor seen;
  Tensor offset;
  Tensor mask;
  float eps;
};

// float32: sums (B, S, C) in rows of sums_stride, totals (B, S), and attention (B, S, N) or null.
struct SlotOutputs {
  float* sums;
  std::int64_t sums_stride;
  float* totals;
  float* attention;
};

// Upstream g_sums (B, S, C), g_totals (B, S), g_attention (B, S, N) or no data, any strides; out, float32,
// row-major but for the rows of seen.
struct SlotGradients {
  Tensor g_sums;
  Tensor g_totals;
  Tensor g_attention;
  float* inputs;    // or null
  bool add_inputs;  // to what stands there
  float* seen;
  std::int64_t seen_stride;
  float* offset;
};

// On `threads` threads with the same bits for any number of them; `instructions` as in vq_lookup.
void slot_attend(const SlotInputs& inputs, const SlotOutputs& outputs, int threads, const std::string& instructions);
void slot_attend_backward(const SlotInputs& inputs, const SlotGradients& gradients, int threads,
                          const std::string& instructions);

}  // namespace aime
