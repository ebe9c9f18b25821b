// The slot side of slot attention between its products: layer norms, GRU gates and the activation of the MLP, forward
// and backward. Rows are slots, padded with zeros to whole vectors, which stay zeros.

AIME_TARGET void slot_normalise(const NormRows& block) {
  const std::int64_t width = block.width;
  const float channels = static_cast<float>(block.channels);
  for (std::int64_t r = 0; r < block.rows; ++r) {
    const float* x = block.x + r * width;
    float* unit = block.unit + r * width;
    Vector total = constant(0.0F);
    for (std::int64_t d = 0; d < width; d += kLanes) total = total + load(x + d);
    const Vector mean = constant(sum(total) / channels);
    for (std::int64_t d = 0; d < width; d += kLanes) store(unit + d, load(x + d) - mean);
    std::fill(unit + block.channels, unit + width, 0.0F);
    total = constant(0.0F);
    for (std::int64_t d = 0; d < width; d += kLanes) total = multiply_add(load(unit + d), load(unit + d), total);
    const Vector variance = constant(sum(total) / channels);
    const Vector inverse = constant(1.0F) / square_root(variance + constant(kLayerNormEps));
    for (std::int64_t d = 0; d < width; d += kLanes) {
      const Vector value = load(unit + d) * inverse;
      store(unit + d, value);
      if (block.out != nullptr) {
        store(block.out + r * width + d, multiply_add(value, load(block.weight + d), load(block.bias + d)));
      }
    }
    if (block.inverse != nullptr) {
      float lanes[kLanes];
      store(lanes, inverse);
      block.inverse[r] = lanes[0];
    }
  }
}

// g_x += inverse * (g w - mean of (g w) - unit * mean of (g w unit))
AIME_TARGET void slot_normalise_backward(const NormRowsBackward& block) {
  const std::int64_t width = block.width;
  const float channels = static_cast<float>(block.channels);
  for (std::int64_t r = 0; r < block.rows; ++r) {
    const float* g = block.g + r * width;
    const float* unit = block.unit + r * width;
    float* g_x = block.g_x + r * width;
    Vector total = constant(0.0F);
    Vector along = constant(0.0F);
    for (std::int64_t d = 0; d < width; d += kLanes) {
      const Vector weighted = load(g + d) * load(block.weight + d);
      total = total + weighted;
      along = multiply_add(weighted, load(unit + d), along);
    }
    const Vector mean = constant(sum(total) / channels);
    const Vector slope = constant(sum(along) / channels);
    const Vector inverse = constant(block.inverse[r]);
    for (std::int64_t d = 0; d < width; d += kLanes) {
      const Vector weighted = load(g + d) * load(block.weight + d);
      const Vector centred = subtract_product(weighted - mean, slope, load(unit + d));
      store(g_x + d, multiply_add(centred, inverse, load(g_x + d)));
    }
    std::fill(g_x + block.channels, g_x + width, 0.0F);
  }
}

// Gates r, z, n and the state's share of n lie side by side in a row; r, z, n are replaced by their values.
AIME_TARGET void slot_gates(const GateRows& block) {
  const std::int64_t width = block.width;
  for (std::int64_t r = 0; r < block.rows; ++r) {
    float* gates = block.gates + r * 4 * width;
    for (std::int64_t d = 0; d < width; d += kLanes) {
      const Vector reset = sigmoid(load(gates + d));
      const Vector update = sigmoid(load(gates + width + d));
      const Vector share = load(gates + 3 * width + d);
      const Vector candidate = tanh(multiply_add(reset, share, load(gates + 2 * width + d)));
      const Vector before = load(block.before + r * width + d);
      store(gates + d, reset);
      store(gates + width + d, update);
      store(gates + 2 * width + d, candidate);
      store(block.after + r * width + d, multiply_add(update, before - candidate, candidate));
    }
  }
}

AIME_TARGET void slot_gates_backward(const GateRowsBackward& block) {
  const std::int64_t width = block.width;
  const Vector one = constant(1.0F);
  for (std::int64_t r = 0; r < block.rows; ++r) {
    const float* gates = block.gates + r * 4 * width;
    float* g_gates = block.g_gates + r * 4 * width;
    for (std::int64_t d = 0; d < width; d += kLanes) {
      const Vector reset = load(gates + d);
      const Vector update = load(gates + width + d);
      const Vector candidate = load(gates + 2 * width + d);
      const Vector g = load(block.g_after + r * width + d);
      const Vector before = load(block.before + r * width + d);
      const Vector g_candidate = g * (one - update) * subtract_product(one, candidate, candidate);
      store(g_gates + d, g_candidate * load(gates + 3 * width + d) * reset * (one - reset));
      store(g_gates + width + d, g * (before - candidate) * update * (one - update));
      store(g_gates + 2 * width + d, g_candidate);
      store(g_gates + 3 * width + d, g_candidate * reset);
      store(block.g_before + r * width + d, g * update);
    }
  }
}

// Distribution and density of the standard normal. The tail beyond a size y is exp(-y^2 / 2) times a polynomial in
// 1 / (1 + 0.3 y), fitted to least relative error on [0, 14]: 6e-8 of it, 4e-7 with float32's rounding.
AIME_INLINE Vector normal_distribution(Vector x, Vector* density) {
  const Vector one = constant(1.0F);
  const Vector y = min(constant(14.0F), absolute(x));
  const Vector power = exp(y * y * constant(-0.5F));
  const Vector t = one / multiply_add(y, constant(0.3F), one);
  Vector p = constant(3.8378403e-2F);
  p = multiply_add(p, t, constant(-1.6916664e-1F));
  p = multiply_add(p, t, constant(2.2866109e-1F));
  p = multiply_add(p, t, constant(-7.6507553e-2F));
  p = multiply_add(p, t, constant(1.4253621e-1F));
  p = multiply_add(p, t, constant(9.4683260e-2F));
  p = multiply_add(p, t, constant(1.2192040e-1F));
  p = multiply_add(p, t, constant(1.1948768e-1F));
  p = multiply_add(p, t, constant(7.1692534e-6F));
  const Vector tail = p * power;
  *density = power * constant(0.398942280F);
  return select(x < constant(0.0F), tail, one - tail);
}

AIME_TARGET void slot_activate(const Activation& block) {
  for (std::int64_t i = 0; i < block.count; i += kLanes) {
    const Vector x = load(block.x + i);
    if (block.gelu) {
      Vector density;
      store(block.y + i, x * normal_distribution(x, &density));
    } else {
      store(block.y + i, max(constant(0.0F), x));  // NaN stays
    }
  }
}

AIME_TARGET void slot_activate_backward(const Activation& block) {
  const Vector zero = constant(0.0F);
  for (std::int64_t i = 0; i < block.count; i += kLanes) {
    const Vector x = load(block.x + i);
    const Vector g = load(block.g + i);
    if (block.gelu) {
      Vector density;
      const Vector distribution = normal_distribution(x, &density);
      store(block.y + i, x * distribution);
      store(block.g + i, g * multiply_add(x, density, distribution));
    } else {
      store(block.y + i, max(zero, x));
      store(block.g + i, select(zero < x, g, zero));
    }
  }
}
