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

// Row-major float32: sums (B, S, C), totals (B, S), and attention (B, S, N) or null.
struct SlotOutputs {
  float* sums;
  float* totals;
  float* attention;
};

// Upstream g_sums (B, S, C), g_totals (B, S), g_attention (B, S, N) or no data, any strides; out, row-major float32.
struct SlotGradients {
  Tensor g_sums;
  Tensor g_totals;
  Tensor g_attention;
  float* inputs;
  float* seen;
  float* offset;
};

// On `threads` threads with the same bits for any number of them; `instructions` as in vq_lookup.
void slot_attend(const SlotInputs& inputs, const SlotOutputs& outputs, int threads, const std::string& instructions);
void slot_attend_backward(const SlotInputs& inputs, const SlotGradients& gradients, int threads,
                          const std::string& instructions);

}  // namespace aime
