// The frames of a rollout (latent_rollout.hpp), forward.

constexpr float kLogLimit = 5.0F;  // of the smooth bounds, as aime/generative_prior/networks.py has it
constexpr float kNormEps = 1e-5F;

AIME_INLINE Vector smooth_bound(Vector x) { return constant(kLogLimit) * tanh(x * constant(1.0F / kLogLimit)); }

// (x + bias) normalised over the width; returns the reciprocal of its standard deviation. x is overwritten.
AIME_TARGET inline float normalise(float* x, const float* bias, std::int64_t width, float* normal) {
  Vector total = constant(0.0F);
  for (std::int64_t i = 0; i < width; i += kLanes) {
    Vector a = load(x + i);
    if (bias != nullptr) a = a + load(bias + i);
    store(x + i, a);
    total = total + a;
  }
  const Vector mean = constant(sum(total) / static_cast<float>(width));
  total = constant(0.0F);
  for (std::int64_t i = 0; i < width; i += kLanes) {
    const Vector centred = load(x + i) - mean;
    total = multiply_add(centred, centred, total);
  }
  const float rstd = 1.0F / std::sqrt(sum(total) / static_cast<float>(width) + kNormEps);
  for (std::int64_t i = 0; i < width; i += kLanes) store(normal + i, (load(x + i) - mean) * constant(rstd));
  return rstd;
}

// SiLU of a LayerNorm's output.
AIME_TARGET inline void activate(const float* normal, const float* weight, const float* bias, std::int64_t width,
                                 float* to) {
  for (std::int64_t i = 0; i < width; i += kLanes) {
    const Vector x = multiply_add(load(normal + i), load(weight + i), load(bias + i));
    store(to + i, x * sigmoid(x));
  }
}

// Sticks of all rows from h (B rows, `stride` apart): log v and log(1 - v), (B, K - 1) each.
AIME_TARGET inline StickBlock break_sticks(const RolloutBlock& block, std::int64_t j, const float* hidden,
                                           std::int64_t stride) {
  const RolloutSizes& sizes = block.sizes;
  const RolloutScratch& scratch = block.scratch;
  const std::int64_t sticks_a_row = sizes.components - 1;
  const std::int64_t count = sizes.batch * sticks_a_row;
  float* log_a = scratch.sticks;
  float* log_b = log_a + scratch.stick_capacity;
  float* u = log_b + scratch.stick_capacity;
  multiply_panels<FloatPanel>(sizes.batch, hidden, stride, block.stick_first, scratch.stick_first);
  for (std::int64_t r = 0; r < sizes.batch; ++r) {
    float* row = scratch.stick_first + r * block.stick_first.columns;
    normalise(row, block.weights.stick_first_bias, sizes.stick_width, row);
    activate(row, block.weights.stick_norm, block.weights.stick_norm_bias, sizes.stick_width, row);
  }
  multiply_panels<FloatPanel>(sizes.batch, scratch.stick_first, block.stick_first.columns, block.stick_last,
                              scratch.stick_last);
  for (std::int64_t r = 0; r < sizes.batch; ++r) {
    float* row = scratch.stick_last + r * block.stick_last.columns;
    for (std::int64_t i = 0; i < 2 * sticks_a_row; i += kLanes) {
      store(row + i, smooth_bound(load(row + i) + load(block.stick_last_bias + i)));
    }
    std::copy_n(row, sticks_a_row, log_a + r * sticks_a_row);
    std::copy_n(row + sticks_a_row, sticks_a_row, log_b + r * sticks_a_row);
  }
  std::copy_n(block.inputs.sticks + j * count, count, u);
  StickBlock found{};
  found.count = (count + kLanes - 1) / kLanes * kLanes;
  found.log_a = log_a;
  found.log_b = log_b;
  found.u = u;
  found.log_v = u + scratch.stick_capacity;
  found.log_rest = found.log_v + scratch.stick_capacity;
  found.log_q = found.log_rest + scratch.stick_capacity;
  sticks(found);
  return found;
}

// The component of every row: the largest of log pi + Gumbel noise, the first of equal ones.
AIME_TARGET inline void choose(const RolloutBlock& block, std::int64_t j, const float* hidden, std::int64_t stride) {
  const RolloutSizes& sizes = block.sizes;
  std::int32_t* chosen = block.record.chosen + j * sizes.batch;
  std::fill_n(chosen, sizes.batch, 0);
  if (sizes.components == 1) return;
  const std::int64_t sticks_a_row = sizes.components - 1;
  const StickBlock found = break_sticks(block, j, hidden, stride);
  for (std::int64_t r = 0; r < sizes.batch; ++r) {
    const float* noise = block.inputs.choice + (j * sizes.batch + r) * sizes.components;
    float remaining = 0.0F;
    float best = -std::numeric_limits<float>::infinity();
    for (std::int64_t k = 0; k < sizes.components; ++k) {
      float log_weight = remaining;
      if (k < sticks_a_row) {
        log_weight += found.log_v[r * sticks_a_row + k];
        remaining += found.log_rest[r * sticks_a_row + k];
      }
      if (log_weight + noise[k] > best) {
        best = log_weight + noise[k];
        chosen[r] = static_cast<std::int32_t>(k);
      }
    }
  }
}

// `vectors` x kLanes results of one row (W) and the weights of one component (W x 2 latent_width).
AIME_TARGET inline void multiply_component(const float* active, std::int64_t width, const float* weights,
                                           std::int64_t columns, float* to) {
  constexpr int kChains = 4;  // in flight together; they divide kRolloutMultiple
  for (std::int64_t c = 0; c < columns; c += kLanes) {
    Vector chains[kChains];
    for (int i = 0; i < kChains; ++i) chains[i] = constant(0.0F);
    for (std::int64_t w = 0; w < width; w += kChains) {
      for (int i = 0; i < kChains; ++i) {
        chains[i] = multiply_add(constant(active[w + i]), load(weights + (w + i) * columns + c), chains[i]);
      }
    }
    store(to + c, (chains[0] + chains[1]) + (chains[2] + chains[3]));
  }
}

// z of every row from h; scratch.latents holds the z before, and then this one.
AIME_TARGET inline void sample(const RolloutBlock& block, std::int64_t j) {
  const RolloutSizes& sizes = block.sizes;
  const RolloutScratch& scratch = block.scratch;
  const std::int64_t padded = scratch.latent_width;
  float* active = scratch.row;
  float* outputs = active + scratch.longest;
  float* normal = outputs + scratch.longest;
  float* slope = normal + scratch.longest;
  multiply_narrow(block, block.record.conditions, j * sizes.batch * sizes.hidden, sizes.hidden, block.first,
                  scratch.linear);
  std::fill_n(normal, padded, 0.0F);
  for (std::int64_t r = 0; r < sizes.batch; ++r) {
    const std::int64_t at = j * sizes.batch + r;
    float* normalised = block.record.normal + at * sizes.width;
    block.record.rstd[at] =
        normalise(scratch.linear + r * block.first.columns, block.weights.first_bias, sizes.width, normalised);
    activate(normalised, block.weights.norm, block.weights.norm_bias, sizes.width, active);
    narrow(block, active, sizes.width, block.record.active, at * sizes.width, active);
    const std::int64_t k = block.record.chosen[at];
    multiply_component(active, sizes.width, block.last + k * sizes.width * 2 * padded, 2 * padded, outputs);
    const float* bias = block.last_bias + k * 2 * padded;
    std::copy_n(block.inputs.normal + at * sizes.latent, sizes.latent, normal);
    float* latent = scratch.latents + r * padded;
    for (std::int64_t i = 0; i < padded; i += kLanes) {
      const Vector mean = load(outputs + i) + load(bias + i);
      const Vector bounded = smooth_bound(load(outputs + padded + i) + load(bias + padded + i));
      const Vector deviation = exp(bounded) * load(normal + i);
      // d log_scale / d raw = 1 - tanh^2, and d z / d log_scale is the deviation
      const Vector squashed = bounded * constant(1.0F / kLogLimit);
      store(slope + i, deviation * subtract_product(constant(1.0F), squashed, squashed));
      store(latent + i, multiply_add(load(block.persistence + i), load(latent + i), mean) + deviation);
    }
    std::copy_n(slope, sizes.latent, block.record.slope + at * sizes.latent);
    std::copy_n(latent, sizes.latent, block.record.latents + (r * sizes.frames + j) * sizes.latent);
  }
}

// A row's cell and output from its gates before squashing, which come without their bias.
AIME_TARGET inline void step_cell(const RolloutBlock& block, const float* linear, const float* before, float* gates,
                                  float* after, float* raw) {
  const std::int64_t size = block.sizes.hidden;
  const float* bias = block.weights.gate_bias;
  for (std::int64_t i = 0; i < size; i += kLanes) {
    const Vector write = sigmoid(load(linear + i) + load(bias + i));
    const Vector forget = sigmoid(load(linear + size + i) + load(bias + size + i));
    const Vector candidate = tanh(load(linear + 2 * size + i) + load(bias + 2 * size + i));
    const Vector out = sigmoid(load(linear + 3 * size + i) + load(bias + 3 * size + i));
    const Vector cell = multiply_add(forget, load(before + i), write * candidate);
    store(gates + i, write);
    store(gates + size + i, forget);
    store(gates + 2 * size + i, candidate);
    store(gates + 3 * size + i, out);
    store(after + i, cell);
    store(raw + i, out * tanh(cell));
  }
}

// Recurrence and its LayerNorm after z and the action of frame j.
AIME_TARGET inline void absorb(const RolloutBlock& block, std::int64_t j) {
  const RolloutSizes& sizes = block.sizes;
  const RolloutScratch& scratch = block.scratch;
  float* row = scratch.row;
  row[sizes.joined() - 1] = 0.0F;  // the pair's other half, where the number of inputs is odd
  for (std::int64_t r = 0; r < sizes.batch; ++r) {
    std::copy_n(scratch.latents + r * scratch.latent_width, sizes.latent, row);
    std::copy_n(block.inputs.actions + (r * sizes.frames + j) * sizes.action, sizes.action, row + sizes.latent);
    std::copy_n(scratch.raw + r * sizes.hidden, sizes.hidden, row + sizes.inputs());
    narrow(block, row, sizes.joined(), block.record.joined, (j * sizes.batch + r) * sizes.joined());
  }
  multiply_narrow(block, block.record.joined, j * sizes.batch * sizes.joined(), sizes.joined(), block.joint,
                  scratch.gates);
  for (std::int64_t r = 0; r < sizes.batch; ++r) {
    const std::int64_t at = j * sizes.batch + r;
    float* raw = scratch.raw + r * sizes.hidden;
    step_cell(block, scratch.gates + r * block.joint.columns, block.record.cells + at * sizes.hidden,
              block.record.gates + at * 4 * sizes.hidden, block.record.cells + (at + sizes.batch) * sizes.hidden, raw);
    std::copy_n(raw, sizes.hidden, row);
    float* normalised = block.record.top_normal + at * sizes.hidden;
    block.record.top_rstd[at] = normalise(row, nullptr, sizes.hidden, normalised);
    float* hidden = block.record.hiddens + (r * sizes.frames + j) * sizes.hidden;
    for (std::int64_t i = 0; i < sizes.hidden; i += kLanes) {
      store(hidden + i, multiply_add(load(normalised + i), load(block.weights.top_norm + i),
                                     load(block.weights.top_norm_bias + i)));
    }
    if (j + 1 < sizes.frames) {
      narrow(block, hidden, sizes.hidden, block.record.conditions, (at + sizes.batch) * sizes.hidden);
    }
  }
}

AIME_TARGET void rollout(const RolloutBlock& block) {
  const RolloutSizes& sizes = block.sizes;
  const RolloutScratch& scratch = block.scratch;
  narrow(block, block.inputs.hidden, sizes.batch * sizes.hidden, block.record.conditions, 0);
  std::copy_n(block.inputs.raw, sizes.batch * sizes.hidden, scratch.raw);
  std::copy_n(block.inputs.cell, sizes.batch * sizes.hidden, block.record.cells);
  for (std::int64_t r = 0; r < sizes.batch; ++r) {
    std::copy_n(block.inputs.latent + r * sizes.latent, sizes.latent, scratch.latents + r * scratch.latent_width);
  }
  for (std::int64_t j = 0; j < sizes.frames; ++j) {
    const bool start = j == 0;
    const float* hidden = start ? block.inputs.hidden : block.record.hiddens + (j - 1) * sizes.hidden;
    choose(block, j, hidden, start ? sizes.hidden : sizes.frames * sizes.hidden);
    sample(block, j);
    absorb(block, j);
  }
}
