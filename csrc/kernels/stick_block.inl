// Kumaraswamy sticks over Vector; formulas and branches are those of kernels/mixture_kl/eager.py.

constexpr float kSeriesBelow = -14.0F;

AIME_INLINE Vector log1mexp(Vector t) {
  const Mask near = constant(-0.693147181F) < t;
  const Vector zero = constant(0.0F);
  return select(near, log(zero - expm1(t)), log1p(zero - exp(t)));
}

struct Stick {
  Vector log_u;
  Vector t;
  Vector log_v;
};

AIME_INLINE Stick make_stick(const StickBlock& block, std::int64_t i) {
  Stick stick;
  const Vector zero = constant(0.0F);
  const Vector u = min(constant(1.0F - 5.9604645e-8F), max(constant(1.4901161e-8F), load(block.u + i)));
  stick.log_u = log(u);
  stick.t = stick.log_u * exp(zero - load(block.log_b + i));
  stick.log_v = log1mexp(stick.t) * exp(zero - load(block.log_a + i));
  return stick;
}

AIME_TARGET void sticks(const StickBlock& block) {
  const Vector one = constant(1.0F);
  for (std::int64_t i = 0; i < block.count; i += kLanes) {
    const Stick stick = make_stick(block, i);
    const Vector log_a = load(block.log_a + i);
    const Vector log_b = load(block.log_b + i);
    store(block.log_v + i, stick.log_v);
    const Mask series = stick.t < constant(kSeriesBelow);
    store(block.log_rest + i, select(series, stick.t - log_a, log1mexp(stick.log_v)));
    store(block.log_q + i, log_a + log_b + (exp(log_a) - one) * stick.log_v + stick.log_u - stick.t);
  }
}

AIME_TARGET void sticks_backward(const StickBlock& block) {
  const Vector zero = constant(0.0F);
  const Vector one = constant(1.0F);
  for (std::int64_t i = 0; i < block.count; i += kLanes) {
    const Stick stick = make_stick(block, i);
    const Vector a = exp(load(block.log_a + i));
    const Vector g_rest = load(block.g_rest + i);
    const Vector g_q = load(block.g_log_q + i);
    const Mask series = stick.t < constant(kSeriesBelow);
    // d log(1 - v) / d log v = -1 / expm1(-log v), which is not needed where the series stands
    const Vector denominator = select(series, one, expm1(min(constant(88.0F), zero - stick.log_v)));
    Vector g_log_v = multiply_add(g_q, a - one, load(block.g_log_v + i));
    g_log_v = g_log_v - select(series, zero, g_rest / denominator);
    const Vector through_series = select(series, g_rest, zero);
    const Vector g_t = through_series - g_log_v / (a * expm1(min(constant(88.0F), zero - stick.t)));
    store(block.g_log_a + i, (g_q * multiply_add(a, stick.log_v, one) - through_series) - g_log_v * stick.log_v);
    store(block.g_log_b + i, g_q * (one + stick.t) - g_t * stick.t);
  }
}
