// The pass of slot attention over as many inputs as a vector has lanes. Rows lie along the channels; what belongs to an
// input alone (its mean, its logits) lies along the lanes, so that the softmax over slots needs no lane to meet
// another.

constexpr float kLayerNormEps = 1e-5F;

// Lane r: the inner product of row r with `other`.
AIME_INLINE Vector dot_rows(const float* rows, const float* other, std::int64_t width) {
  Vector sums[kLanes];
  for (int r = 0; r < kLanes; ++r) sums[r] = constant(0.0F);
  for (std::int64_t d = 0; d < width; d += kLanes) {
    const Vector factor = load(other + d);
    for (int r = 0; r < kLanes; ++r) sums[r] = multiply_add(load(rows + r * width + d), factor, sums[r]);
  }
  return sum_each(sums);
}

// to[s] += sum over rows of weights[s][r] rows[r], for every slot.
AIME_TARGET inline void add_weighted_rows(const float* rows, const float* weights, std::int64_t slots,
                                          std::int64_t width, float* to) {
  constexpr int kTogether = 4;
  std::int64_t s = 0;
  for (; s + kTogether <= slots; s += kTogether) {
    for (std::int64_t d = 0; d < width; d += kLanes) {
      Vector sums[kTogether];
      for (int i = 0; i < kTogether; ++i) sums[i] = load(to + (s + i) * width + d);
      for (int r = 0; r < kLanes; ++r) {
        const Vector row = load(rows + r * width + d);
        for (int i = 0; i < kTogether; ++i) {
          sums[i] = multiply_add(constant(weights[(s + i) * kLanes + r]), row, sums[i]);
        }
      }
      for (int i = 0; i < kTogether; ++i) store(to + (s + i) * width + d, sums[i]);
    }
  }
  for (; s < slots; ++s) {
    for (std::int64_t d = 0; d < width; d += kLanes) {
      Vector sum = load(to + s * width + d);
      for (int r = 0; r < kLanes; ++r) {
        sum = multiply_add(constant(weights[s * kLanes + r]), load(rows + r * width + d), sum);
      }
      store(to + s * width + d, sum);
    }
  }
}

// Normalised rows into block.normal; returns 1 / standard deviation, a lane a row. Padding stays 0.
AIME_INLINE Vector normalise(const SlotBlock& block) {
  const std::int64_t width = block.width;
  const float channels = static_cast<float>(block.channels);
  alignas(64) float values[kLanes];
  Vector sums[kLanes];
  for (int r = 0; r < kLanes; ++r) {
    sums[r] = constant(0.0F);
    for (std::int64_t d = 0; d < width; d += kLanes) sums[r] = sums[r] + load(block.x + r * block.x_stride + d);
  }
  store(values, sum_each(sums) / constant(channels));
  for (int r = 0; r < kLanes; ++r) {
    float* row = block.normal + r * width;
    const Vector mean = constant(values[r]);
    for (std::int64_t d = 0; d < width; d += kLanes) store(row + d, load(block.x + r * block.x_stride + d) - mean);
    std::fill(row + block.channels, row + width, 0.0F);
    sums[r] = constant(0.0F);
    for (std::int64_t d = 0; d < width; d += kLanes) sums[r] = multiply_add(load(row + d), load(row + d), sums[r]);
  }
  const Vector variance = sum_each(sums) / constant(channels);
  const Vector scale = constant(1.0F) / square_root(variance + constant(kLayerNormEps));
  store(values, scale);
  for (int r = 0; r < kLanes; ++r) {
    float* row = block.normal + r * width;
    const Vector factor = constant(values[r]);
    for (std::int64_t d = 0; d < width; d += kLanes) store(row + d, load(row + d) * factor);
  }
  return scale;
}

// Attention over slots and coefficients (0 for an input that takes no part), each slots x lanes.
AIME_TARGET inline void attend_rows(const SlotBlock& block) {
  Vector most = constant(-std::numeric_limits<float>::infinity());
  for (std::int64_t s = 0; s < block.slots; ++s) {
    const Vector dots = dot_rows(block.normal, block.seen + s * block.width, block.width);
    const Vector logits = dots + constant(block.offset[s]);
    store(block.attention + s * kLanes, logits);
    most = max(most, logits);
  }
  Vector total = constant(0.0F);
  for (std::int64_t s = 0; s < block.slots; ++s) {
    const Vector power = exp(load(block.attention + s * kLanes) - most);
    store(block.attention + s * kLanes, power);
    total = total + power;
  }
  const Vector factor = constant(1.0F) / total;
  const Vector keep = load(block.keep);
  for (std::int64_t s = 0; s < block.slots; ++s) {
    const Vector share = load(block.attention + s * kLanes) * factor;
    store(block.attention + s * kLanes, share);
    store(block.coefficients + s * kLanes, (share + constant(block.eps)) * keep);
  }
}

AIME_TARGET void slot_attend(const SlotBlock& block) {
  normalise(block);
  attend_rows(block);
  add_weighted_rows(block.normal, block.coefficients, block.slots, block.width, block.sums);
  for (std::int64_t i = 0; i < block.slots * kLanes; i += kLanes) {
    store(block.totals + i, load(block.totals + i) + load(block.coefficients + i));
  }
}

AIME_TARGET void slot_attend_backward(const SlotBlock& block) {
  const std::int64_t width = block.width;
  const std::int64_t slots = block.slots;
  const Vector scale = normalise(block);
  attend_rows(block);
  // towards the attention, then through the softmax
  const Vector keep = load(block.keep);
  Vector mean = constant(0.0F);
  for (std::int64_t s = 0; s < slots; ++s) {
    Vector g = dot_rows(block.normal, block.g_sums + s * width, width) + constant(block.g_totals[s]);
    g = g * keep;
    if (block.g_attention != nullptr) g = g + load(block.g_attention + s * kLanes);
    store(block.g_logits + s * kLanes, g);
    mean = multiply_add(g, load(block.attention + s * kLanes), mean);
  }
  for (std::int64_t i = 0; i < slots * kLanes; i += kLanes) {
    const Vector g = load(block.attention + i) * (load(block.g_logits + i) - mean);
    store(block.g_logits + i, g);
    store(block.g_offset + i, load(block.g_offset + i) + g);
  }
  add_weighted_rows(block.normal, block.g_logits, slots, width, block.g_seen);
  // towards the normalised inputs, then through the normalisation
  Vector sums[kLanes];
  Vector products[kLanes];
  constexpr int kTogether = 4;  // rows that share one reading of the slots
  for (int first = 0; first < kLanes; first += kTogether) {
    for (int i = 0; i < kTogether; ++i) sums[first + i] = products[first + i] = constant(0.0F);
    for (std::int64_t d = 0; d < width; d += kLanes) {
      Vector g[kTogether];
      for (int i = 0; i < kTogether; ++i) g[i] = constant(0.0F);
      for (std::int64_t s = 0; s < slots; ++s) {
        const Vector g_sum = load(block.g_sums + s * width + d);
        const Vector seen = load(block.seen + s * width + d);
        for (int i = 0; i < kTogether; ++i) {
          g[i] = multiply_add(constant(block.coefficients[s * kLanes + first + i]), g_sum, g[i]);
          g[i] = multiply_add(constant(block.g_logits[s * kLanes + first + i]), seen, g[i]);
        }
      }
      for (int i = 0; i < kTogether; ++i) {
        const std::int64_t at = (first + i) * width + d;
        store(block.g_x + at, g[i]);
        sums[first + i] = sums[first + i] + g[i];
        products[first + i] = multiply_add(g[i], load(block.normal + at), products[first + i]);
      }
    }
  }
  alignas(64) float scales[kLanes];
  alignas(64) float means[kLanes];
  alignas(64) float slopes[kLanes];
  const Vector channels = constant(static_cast<float>(block.channels));
  store(scales, scale);
  store(means, sum_each(sums) / channels);
  store(slopes, sum_each(products) / channels);
  for (int r = 0; r < kLanes; ++r) {
    for (std::int64_t d = 0; d < width; d += kLanes) {
      const std::int64_t at = r * width + d;
      const Vector g =
          subtract_product(load(block.g_x + at) - constant(means[r]), constant(slopes[r]), load(block.normal + at));
      store(block.g_x + at, g * constant(scales[r]));
    }
  }
}
