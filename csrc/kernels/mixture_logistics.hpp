// Discretised mixture of logistics with coupled channels: negative log-likelihood, mean, and their gradients.
#pragma once

#include <cstdint>
#include <string>

#include "strided.hpp"

namespace aime {

// Parameters as the caller has them: x (B, 3, H, W), logits (B, M, H, W), means, log_scales and coefficients
// (B, M, 3, H, W), weights (B, H, W) or no data. float32, bfloat16 or float16, any strides.
struct LogisticsInputs {
  Tensor x;
  Tensor logits;
  Tensor means;
  Tensor log_scales;
  Tensor coefficients;
  Tensor weights;
};

// Row-major float32: nll (B,), mean (B, 3, H, W), log-sum-exps of joint and logits (B, H, W).
struct LogisticsOutputs {
  float* nll;
  float* mean;
  float* joint;
  float* normaliser;
};

// Upstream gradients g_nll (B,) and g_mean (B, 3, H, W) with any strides; the forward's results; gradients out,
// row-major float32 with the shapes of the parameters.
struct LogisticsGradients {
  Tensor g_nll;
  Tensor g_mean;
  Tensor mean;
  Tensor joint;
  Tensor normaliser;
  float* logits;
  float* means;
  float* log_scales;
  float* coefficients;
};

// On `threads` threads with the same bits for any number of them; `instructions` as in vq_lookup.
void mixture_logistics(const LogisticsInputs& inputs, const LogisticsOutputs& outputs, int threads,
                       const std::string& instructions);
void mixture_logistics_backward(const LogisticsInputs& inputs, const LogisticsGradients& gradients, int threads,
                                const std::string& instructions);

}  // namespace aime
