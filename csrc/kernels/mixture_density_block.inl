// One row of a mixture density over Vector. The square is taken directly, ((z - mu) / sigma)^2.

// joint[s] = offset - |(z_s - mu) / sigma|^2 / 2 for all samples of one component.
AIME_TARGET inline void joint_of_component(const DensityBlock& block, const float* means, const float* inverse,
                                           float offset, float* joint, std::int64_t stride) {
  constexpr int kTogether = 4;  // samples that share one reading of the component
  const std::int64_t width = block.width;
  std::int64_t s = 0;
  for (; s + kTogether <= block.samples; s += kTogether) {
    Vector square[kTogether];
    for (int i = 0; i < kTogether; ++i) square[i] = constant(0.0F);
    for (std::int64_t d = 0; d < width; d += kLanes) {
      const Vector mean = load(means + d);
      const Vector scale = load(inverse + d);
      for (int i = 0; i < kTogether; ++i) {
        const Vector normalised = (load(block.z + (s + i) * width + d) - mean) * scale;
        square[i] = multiply_add(normalised, normalised, square[i]);
      }
    }
    for (int i = 0; i < kTogether; ++i) joint[(s + i) * stride] = offset - 0.5F * sum(square[i]);
  }
  for (; s < block.samples; ++s) {
    Vector square = constant(0.0F);
    for (std::int64_t d = 0; d < width; d += kLanes) {
      const Vector normalised = (load(block.z + s * width + d) - load(means + d)) * load(inverse + d);
      square = multiply_add(normalised, normalised, square);
    }
    joint[s * stride] = offset - 0.5F * sum(square);
  }
}

// 1 / sigma into `inverse`; returns the sum of log sigma.
AIME_TARGET inline float invert_scales(const float* log_scales, std::int64_t width, float* inverse) {
  Vector total = constant(0.0F);
  for (std::int64_t d = 0; d < width; d += kLanes) {
    const Vector log_scale = load(log_scales + d);
    total = total + log_scale;
    store(inverse + d, exp(constant(0.0F) - log_scale));
  }
  return sum(total);
}

// Noise to samples: z = mean_q + scale_q noise.
AIME_TARGET inline void draw(const DensityBlock& block) {
  if (block.mean_q == nullptr) return;
  for (std::int64_t d = 0; d < block.width; d += kLanes) {
    const Vector scale = exp(load(block.log_scale_q + d));
    const Vector mean = load(block.mean_q + d);
    for (std::int64_t s = 0; s < block.samples; ++s) {
      const std::int64_t at = s * block.width + d;
      const Vector spread = scale * load(block.z + at);
      store(block.spread + at, spread);
      store(block.z + at, mean + spread);
    }
  }
}

AIME_TARGET void density(const DensityBlock& block) {
  draw(block);
  float* inverse = block.scratch;
  float* joint = inverse + block.width;  // samples x padded components
  const std::int64_t padded = (block.components + kLanes - 1) / kLanes * kLanes;
  const float lowest = -std::numeric_limits<float>::infinity();
  for (std::int64_t k = 0; k < block.components; ++k) {
    const float* means = block.means + k * block.stride;
    const float offset =
        block.log_pi[k] - invert_scales(block.log_scales + k * block.stride, block.width, inverse) - block.constant;
    joint_of_component(block, means, inverse, offset, joint + k, padded);
  }
  for (std::int64_t s = 0; s < block.samples; ++s) {
    float* row = joint + s * padded;
    for (std::int64_t k = block.components; k < padded; ++k) row[k] = lowest;
    Vector most = constant(lowest);
    for (std::int64_t k = 0; k < padded; k += kLanes) most = max(most, load(row + k));
    float top = largest(most);
    if (!(top > lowest)) top = 0.0F;  // nothing but -inf, or NaN: the sum decides
    Vector total = constant(0.0F);
    for (std::int64_t k = 0; k < padded; k += kLanes) total = total + exp(load(row + k) - constant(top));
    alignas(64) float logs[kLanes];
    store(logs, log(constant(sum(total))));
    block.log_prob[s] = top + logs[0];
  }
}

AIME_TARGET void density_backward(const DensityBlock& block) {
  draw(block);
  const std::int64_t width = block.width;
  const std::int64_t samples = block.samples;
  float* inverse = block.scratch;
  float* weight = inverse + width;  // samples, padded: responsibility times gradient
  for (std::int64_t k = 0; k < block.components; ++k) {
    const float* means = block.means + k * block.stride;
    const float offset =
        block.log_pi[k] - invert_scales(block.log_scales + k * block.stride, width, inverse) - block.constant;
    joint_of_component(block, means, inverse, offset, weight, 1);
    float total = 0.0F;
    for (std::int64_t s = 0; s < samples; s += kLanes) {  // the three rows are padded
      store(weight + s, exp(load(weight + s) - load(block.log_prob + s)) * load(block.gradient + s));
    }
    for (std::int64_t s = 0; s < samples; ++s) total += weight[s];
    block.g_log_pi[k] = total;
    for (std::int64_t d = 0; d < width; d += kLanes) {
      const Vector mean = load(means + d);
      const Vector scale = load(inverse + d);
      Vector pull = constant(0.0F);
      Vector g_log_scale = constant(0.0F) - constant(total);
      for (std::int64_t s = 0; s < samples; ++s) {
        const std::int64_t at = s * width + d;
        const Vector normalised = (load(block.z + at) - mean) * scale;
        const Vector weighted = constant(weight[s]) * normalised;
        g_log_scale = multiply_add(weighted, normalised, g_log_scale);
        pull = pull + weighted;
        store(block.g_z + at, subtract_product(load(block.g_z + at), weighted, scale));
      }
      float* g_means = block.g_means + k * block.g_stride + d;
      float* g_log_scales = block.g_log_scales + k * block.g_stride + d;
      pull = pull * scale;
      if (block.accumulate) {
        pull = pull + load(g_means);
        g_log_scale = g_log_scale + load(g_log_scales);
      }
      store(g_means, pull);
      store(g_log_scales, g_log_scale);
    }
  }
}
