// Mixture densities of samples, the Monte-Carlo divergence from a mixture, stick weights, and their gradients.
#pragma once

#include <string>

#include "strided.hpp"

namespace aime {

// float32, bfloat16 or float16, any strides: z (S, N, D), log_pi (N, K), means and log_scales (N, K, D) or (K, D).
// With mean_q and log_scale_q (N, D), z holds noise and the samples are mean_q + exp(log_scale_q) z.
struct DensityInputs {
  Tensor z;
  Tensor log_pi;
  Tensor means;
  Tensor log_scales;
  Tensor mean_q;       // no data without a posterior
  Tensor log_scale_q;  // no data without a posterior

  bool shared() const { return means.sizes.size() == 2; }
  bool has_posterior() const { return mean_q.data != nullptr; }
};

// Row-major float32: log_prob (S, N); with a posterior also kl (N,), else null.
struct DensityOutputs {
  float* log_prob;
  float* kl;
};

// `gradient` is that of log_prob (S, N), with a posterior that of kl (N,), any strides; `log_prob` is the forward's.
// Out, row-major float32 with the shapes of the inputs: z, or mean_q and log_scale_q; the mixture's.
struct DensityGradients {
  Tensor gradient;
  Tensor log_prob;
  float* z;
  float* mean_q;
  float* log_scale_q;
  float* log_pi;
  float* means;
  float* log_scales;
};

// On `threads` threads with the same bits for any number of them; `instructions` as in vq_lookup.
void mixture_density(const DensityInputs& inputs, const DensityOutputs& outputs, int threads,
                     const std::string& instructions);
void mixture_density_backward(const DensityInputs& inputs, const DensityGradients& gradients, int threads,
                              const std::string& instructions);

// log_a, log_b, u (N, K - 1) with any strides, N and K given by `log_pi`'s shape (N, K). Results row-major float32:
// log_pi (N, K), log_v and log_q (N, K - 1).
struct StickInputs {
  Tensor log_a;
  Tensor log_b;
  Tensor u;
};
void stick_log_weights(const StickInputs& inputs, float* log_pi, float* log_v, float* log_q, int threads,
                       const std::string& instructions);

// Upstream gradients with any strides, log_pi's (N, K) and those of log_v and log_q (N, K - 1); results row-major.
struct StickGradients {
  Tensor g_log_pi;
  Tensor g_log_v;
  Tensor g_log_q;
  float* log_a;
  float* log_b;
};
void stick_log_weights_backward(const StickInputs& inputs, const StickGradients& gradients, int threads,
                                const std::string& instructions);

}  // namespace aime
