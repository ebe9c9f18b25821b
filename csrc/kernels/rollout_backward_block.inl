// The frames of a rollout (latent_rollout.hpp), backward: the adjoint of (z, h, cell) from frame to frame.

// Where the gradients of biases and LayerNorms lie in RolloutGradients::vectors.
struct RolloutSums {
  AIME_INLINE RolloutSums(const RolloutSizes& sizes, float* start)
      : first_bias(start),
        norm(first_bias + sizes.width),
        norm_bias(norm + sizes.width),
        top_norm(norm_bias + sizes.width),
        top_norm_bias(top_norm + sizes.hidden),
        gate_bias(top_norm_bias + sizes.hidden),
        last_bias(gate_bias + 4 * sizes.hidden),
        persistence(last_bias + sizes.outputs()) {}
  float* first_bias;
  float* norm;
  float* norm_bias;
  float* top_norm;
  float* top_norm_bias;
  float* gate_bias;
  float* last_bias;
  float* persistence;
};

AIME_INLINE void add(float* to, Vector a) { store(to, load(to) + a); }

// Gradient of a LayerNorm's input from that of its output, which may be overwritten; adds to those of its weights.
AIME_TARGET inline void normalise_backward(const float* g, const float* weight, const float* normal, float rstd,
                                           std::int64_t width, float* g_weight, float* g_bias, float* to) {
  Vector total = constant(0.0F);
  Vector along = constant(0.0F);
  for (std::int64_t i = 0; i < width; i += kLanes) {
    const Vector upstream = load(g + i);
    const Vector x = load(normal + i);
    add(g_weight + i, upstream * x);
    add(g_bias + i, upstream);
    const Vector scaled = upstream * load(weight + i);
    total = total + scaled;
    along = multiply_add(scaled, x, along);
  }
  const Vector mean = constant(sum(total) / static_cast<float>(width));
  const Vector share = constant(sum(along) / static_cast<float>(width));
  for (std::int64_t i = 0; i < width; i += kLanes) {
    const Vector scaled = load(g + i) * load(weight + i);
    store(to + i, constant(rstd) * subtract_product(scaled - mean, load(normal + i), share));
  }
}

// Gradients of a row's gates before squashing from that of its output; g_cell from that of the cell after to before.
AIME_TARGET inline void step_cell_backward(const RolloutBlock& block, std::int64_t at, const float* g_raw,
                                           float* g_cell, float* g_bias, float* to) {
  const std::int64_t size = block.sizes.hidden;
  const float* gates = block.record.gates + at * 4 * size;
  const float* before = block.record.cells + at * size;
  const float* after = before + block.sizes.batch * size;
  const Vector one = constant(1.0F);
  for (std::int64_t i = 0; i < size; i += kLanes) {
    const Vector write = load(gates + i);
    const Vector forget = load(gates + size + i);
    const Vector candidate = load(gates + 2 * size + i);
    const Vector out = load(gates + 3 * size + i);
    const Vector squashed = tanh(load(after + i));
    const Vector g = load(g_raw + i);
    const Vector g_c = multiply_add(g * out, subtract_product(one, squashed, squashed), load(g_cell + i));
    const Vector delta[4] = {g_c * candidate * write * (one - write), g_c * load(before + i) * forget * (one - forget),
                             g_c * write * subtract_product(one, candidate, candidate),
                             g * squashed * out * (one - out)};
    for (int gate = 0; gate < 4; ++gate) {
      store(to + gate * size + i, delta[gate]);
      add(g_bias + gate * size + i, delta[gate]);
    }
    store(g_cell + i, g_c * forget);
  }
}

// Through LayerNorm and recurrence: scratch.linear holds the gradient of h, scratch.raw and cell those of the state.
AIME_TARGET inline void absorb_backward(const RolloutBlock& block, std::int64_t j, const RolloutSums& sums) {
  const RolloutSizes& sizes = block.sizes;
  const RolloutScratch& scratch = block.scratch;
  const std::int64_t size = sizes.hidden;
  float* deltas = scratch.row;
  for (std::int64_t r = 0; r < sizes.batch; ++r) {
    const std::int64_t at = j * sizes.batch + r;
    float* g = scratch.linear + r * block.first.columns;
    const float* given = block.gradients.hiddens + (r * sizes.frames + j) * size;
    for (std::int64_t i = 0; i < size; i += kLanes) add(g + i, load(given + i));
    normalise_backward(g, block.weights.top_norm, block.record.top_normal + at * size, block.record.top_rstd[at], size,
                       sums.top_norm, sums.top_norm_bias, g);
    const float* g_raw = scratch.raw + r * size;
    for (std::int64_t i = 0; i < size; i += kLanes) add(g + i, load(g_raw + i));
    step_cell_backward(block, at, g, scratch.cell + r * size, sums.gate_bias, deltas);
    narrow(block, deltas, 4 * size, block.gradients.gates, at * 4 * size);
  }
  multiply_narrow(block, block.gradients.gates, j * sizes.batch * 4 * size, 4 * size, block.joint, scratch.gates);
  for (std::int64_t r = 0; r < sizes.batch; ++r) {
    const float* g = scratch.gates + r * block.joint.columns;
    std::copy_n(g + sizes.latent, sizes.action, block.gradients.actions + (r * sizes.frames + j) * sizes.action);
    std::copy_n(g + sizes.inputs(), size, scratch.raw + r * size);
  }
}

template <int kVectors>
AIME_INLINE void add_product(float a, const float* row, Vector* sums) {
  for (int v = 0; v < kVectors; ++v) sums[v] = multiply_add(constant(a), load(row + v * kLanes), sums[v]);
}

// `kVectors` vectors of activate_backward, from column i on; two sums each, of even and odd d.
template <int kVectors>
AIME_TARGET inline void activate_columns_backward(const RolloutBlock& block, std::int64_t at, const float* g_own,
                                                  std::int64_t i, float* to) {
  const RolloutSizes& sizes = block.sizes;
  Vector chains[2][kVectors];
  for (int v = 0; v < kVectors; ++v) chains[0][v] = chains[1][v] = constant(0.0F);
  for (std::int64_t side = 0; side < 2; ++side) {
    const std::int64_t component = side * sizes.components + block.record.chosen[at];
    const float* weights = block.last + component * sizes.latent * sizes.width + i;
    const float* g = g_own + side * sizes.latent;
    std::int64_t d = 0;
    for (; d + 2 <= sizes.latent; d += 2) {
      add_product<kVectors>(g[d], weights + d * sizes.width, chains[0]);
      add_product<kVectors>(g[d + 1], weights + (d + 1) * sizes.width, chains[1]);
    }
    if (d < sizes.latent) add_product<kVectors>(g[d], weights + d * sizes.width, chains[0]);
  }
  const float* normal = block.record.normal + at * sizes.width + i;
  for (int v = 0; v < kVectors; ++v) {
    const std::int64_t lane = v * kLanes;
    const Vector x = multiply_add(load(normal + lane), load(block.weights.norm + i + lane),
                                  load(block.weights.norm_bias + i + lane));
    const Vector s = sigmoid(x);
    const Vector slope = s * multiply_add(x, constant(1.0F) - s, constant(1.0F));
    store(to + i + lane, (chains[0][v] + chains[1][v]) * slope);
  }
}

// Gradient of the last layer's input from those of the 2 D outputs of the chosen component, through SiLU.
AIME_TARGET inline void activate_backward(const RolloutBlock& block, std::int64_t at, const float* g_own, float* to) {
  constexpr int kVectors = 4;
  constexpr int kLeast = kRolloutMultiple / kLanes;
  std::int64_t i = 0;
  for (; i + kVectors * kLanes <= block.sizes.width; i += kVectors * kLanes) {
    activate_columns_backward<kVectors>(block, at, g_own, i, to);
  }
  for (; i < block.sizes.width; i += kLeast * kLanes) activate_columns_backward<kLeast>(block, at, g_own, i, to);
}

// Gradients of a row's last layer's outputs, zero but for the chosen component; g_own gets those, rounded.
AIME_TARGET inline void spread_outputs(const RolloutBlock& block, std::int64_t at, const float* g_latent, float* g_own,
                                       float* row, const RolloutSums& sums) {
  const RolloutSizes& sizes = block.sizes;
  const float* slope = block.record.slope + at * sizes.latent;
  std::fill_n(row, sizes.outputs(), 0.0F);
  for (std::int64_t side = 0; side < 2; ++side) {
    const std::int64_t start = (side * sizes.components + block.record.chosen[at]) * sizes.latent;
    for (std::int64_t d = 0; d < sizes.latent; ++d) {
      const float g = side == 0 ? g_latent[d] : g_latent[d] * slope[d];
      row[start + d] = g;
      sums.last_bias[start + d] += g;
    }
  }
  narrow(block, row, sizes.outputs(), block.gradients.outputs, at * sizes.outputs(), row);
  for (std::int64_t side = 0; side < 2; ++side) {
    const std::int64_t start = (side * sizes.components + block.record.chosen[at]) * sizes.latent;
    std::copy_n(row + start, sizes.latent, g_own + side * sizes.latent);
  }
}

// Through z and the component network: scratch.latents holds the gradient of z, scratch.linear gets that of h before.
AIME_TARGET inline void sample_backward(const RolloutBlock& block, std::int64_t j, const RolloutSums& sums) {
  const RolloutSizes& sizes = block.sizes;
  const RolloutScratch& scratch = block.scratch;
  float* row = scratch.row;
  float* g_own = row + scratch.longest;
  float* g_normed = g_own + scratch.longest;
  for (std::int64_t r = 0; r < sizes.batch; ++r) {
    const std::int64_t at = j * sizes.batch + r;
    const std::int64_t frame = (r * sizes.frames + j) * sizes.latent;
    const float* previous =
        j == 0 ? block.inputs.latent + r * sizes.latent : block.record.latents + frame - sizes.latent;
    const float* from_gates = scratch.gates + r * block.joint.columns;
    float* g_latent = scratch.latents + r * scratch.latent_width;
    for (std::int64_t d = 0; d < sizes.latent; ++d) {
      g_latent[d] += block.gradients.latents[frame + d] + from_gates[d];
      sums.persistence[d] += g_latent[d] * previous[d];
    }
    spread_outputs(block, at, g_latent, g_own, row, sums);
    activate_backward(block, at, g_own, g_normed);
    normalise_backward(g_normed, block.weights.norm, block.record.normal + at * sizes.width, block.record.rstd[at],
                       sizes.width, sums.norm, sums.norm_bias, g_normed);
    for (std::int64_t i = 0; i < sizes.width; i += kLanes) add(sums.first_bias + i, load(g_normed + i));
    narrow(block, g_normed, sizes.width, block.gradients.linear, at * sizes.width);
    for (std::int64_t d = 0; d < sizes.latent; ++d) g_latent[d] *= block.persistence[d];
  }
  multiply_narrow(block, block.gradients.linear, j * sizes.batch * sizes.width, sizes.width, block.first,
                  scratch.linear);
}

AIME_TARGET void rollout_backward(const RolloutBlock& block) {
  const RolloutSizes& sizes = block.sizes;
  const RolloutScratch& scratch = block.scratch;
  const RolloutGradients& to = block.gradients;
  const RolloutSums sums(sizes, scratch.sums);
  std::fill_n(scratch.linear, sizes.batch * block.first.columns, 0.0F);
  std::fill_n(scratch.raw, sizes.batch * sizes.hidden, 0.0F);
  std::fill_n(scratch.cell, sizes.batch * sizes.hidden, 0.0F);
  std::fill_n(to.vectors, sizes.vectors(), 0.0F);
  for (std::int64_t j = sizes.frames; j-- > 0;) {
    std::fill_n(scratch.sums, sizes.vectors(), 0.0F);  // a frame's own sums: fewer roundings than one long sum
    absorb_backward(block, j, sums);
    sample_backward(block, j, sums);
    for (std::int64_t i = 0; i < sizes.vectors(); ++i) to.vectors[i] += scratch.sums[i];
  }
  for (std::int64_t r = 0; r < sizes.batch; ++r) {
    std::copy_n(scratch.linear + r * block.first.columns, sizes.hidden, to.hidden + r * sizes.hidden);
    std::copy_n(scratch.latents + r * scratch.latent_width, sizes.latent, to.latent + r * sizes.latent);
  }
  std::copy_n(scratch.raw, sizes.batch * sizes.hidden, to.raw);
  std::copy_n(scratch.cell, sizes.batch * sizes.hidden, to.cell);
}
