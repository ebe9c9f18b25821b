// The mixture of logistics over Vector; the formulas are those of kernels/mixture_logistics/eager.py, with fewer
// exponentials. With r the standardised residual, h half a bin over the scale, q = exp(-h), E = exp(-|r|):
//   far = E q = exp(-(|r| + h)),  near = E / q = exp(h - |r|) <= 75,  mass = 1 - q^2
//   log(sigmoid(r + h) - sigmoid(r - h)) = h - |r| + log(mass / ((1 + far) (1 + near)))
// and an open bin drops mass and one factor: near stays (with h - |r|) on the residual's own side, else far.
// A component so wide that h is below 1e-11 has the mass 2 h (1 - h) to every digit; log(2 h) comes from its log scale
// then, because h itself vanishes from a log scale of 84 on, and 2 q^2 / mass, its derivative's factor, overflows.

constexpr float kHalfBin = 1.0F / 255.0F;
constexpr float kEdge = 0.999F;
constexpr float kMinLogScale = -7.0F;
constexpr float kWideLogScale = 20.0F;
constexpr float kLogBin = -4.84811633F;  // log(2 half bins)

struct Bin {
  Vector inverse;
  Vector residual;
  Vector half;
  Vector decay;  // q
  Vector far;
  Vector near;
  Vector mass;
  Vector log_mass;  // instead of mass, if wide
  Mask wide;
  Mask right;  // open to the right: x = 1
  Mask left;
  Mask closed;
  Mask uses_near;
  Mask uses_far;
};

AIME_INLINE Bin make_bin(Vector x, Vector centre, Vector log_scale) {
  const Vector zero = constant(0.0F);
  const Vector one = constant(1.0F);
  Bin bin;
  const Vector log_size = max(constant(kMinLogScale), log_scale);
  bin.inverse = exp(zero - log_size);
  bin.residual = (x - centre) * bin.inverse;
  bin.half = bin.inverse * constant(kHalfBin);
  const Vector t = expm1(zero - bin.half);
  bin.decay = one + t;
  bin.mass = (zero - t) * (t + constant(2.0F));
  bin.wide = constant(kWideLogScale) < log_scale;
  bin.log_mass = constant(kLogBin) - log_size - bin.half;
  const Vector size = exp(zero - absolute(bin.residual));
  bin.far = size * bin.decay;
  bin.near = size / bin.decay;
  bin.right = constant(kEdge) < x;
  bin.left = x < constant(-kEdge);
  const Mask positive = bin.residual >= zero;
  bin.closed = !(bin.right | bin.left);
  bin.uses_near = bin.closed | select(positive, bin.right, bin.left);
  bin.uses_far = bin.closed | select(positive, bin.left, bin.right);
  return bin;
}

// The bin's log probability is linear(bin) + log(ratio(bin)).
AIME_INLINE Vector linear(const Bin& bin) {
  const Vector zero = constant(0.0F);
  const Vector distance = select(bin.uses_near, bin.half - absolute(bin.residual), zero);
  return distance + select(bin.closed & bin.wide, bin.log_mass, zero);
}
AIME_INLINE Vector ratio(const Bin& bin) {
  const Vector one = constant(1.0F);
  const Vector divisor = select(bin.uses_near, one + bin.near, one) * select(bin.uses_far, one + bin.far, one);
  return select(bin.closed & !bin.wide, bin.mass, one) / divisor;
}

// What couples the channels of one component at one vector of pixels.
struct Coupling {
  Vector mean[3];  // the component's own, channels coupled through each other
  Vector t[3];     // tanh of the coefficients
  Bin bin[3];
};

AIME_INLINE Coupling couple(const LogisticsBlock& block, std::int64_t m, std::int64_t p) {
  Coupling c;
  const Vector red = load(block.x[0] + p);
  const Vector green = load(block.x[1] + p);
  for (int i = 0; i < 3; ++i) {
    c.mean[i] = load(block.means[3 * m + i] + p);
    c.t[i] = tanh(load(block.coefficients[3 * m + i] + p));
  }
  const Vector centre_green = multiply_add(c.t[0], red, c.mean[1]);
  const Vector centre_blue = multiply_add(c.t[2], green, multiply_add(c.t[1], red, c.mean[2]));
  c.bin[0] = make_bin(red, c.mean[0], load(block.log_scales[3 * m] + p));
  c.bin[1] = make_bin(green, centre_green, load(block.log_scales[3 * m + 1] + p));
  c.bin[2] = make_bin(load(block.x[2] + p), centre_blue, load(block.log_scales[3 * m + 2] + p));
  c.mean[1] = multiply_add(c.t[0], c.mean[0], c.mean[1]);
  c.mean[2] = multiply_add(c.t[2], c.mean[1], multiply_add(c.t[1], c.mean[0], c.mean[2]));
  return c;
}

AIME_INLINE Vector log_bins(const Coupling& c) {
  const Vector logs = log_of_product(ratio(c.bin[0]), ratio(c.bin[1]), ratio(c.bin[2]));
  return logs + (linear(c.bin[0]) + linear(c.bin[1]) + linear(c.bin[2]));
}

// lse over components of rows[m][p]; rows become exp(row - largest), `total` their sum.
AIME_TARGET void log_sum_exp(float* rows, std::int64_t components, std::int64_t pixels, float* lse, float* total) {
  const Vector lowest = constant(-std::numeric_limits<float>::infinity());
  for (std::int64_t p = 0; p < pixels; p += kLanes) {
    Vector most = lowest;
    for (std::int64_t m = 0; m < components; ++m) most = max(most, load(rows + m * pixels + p));
    most = select(lowest < most, most, constant(0.0F));  // nothing but -inf
    Vector sum = constant(0.0F);
    for (std::int64_t m = 0; m < components; ++m) {
      const Vector power = exp(load(rows + m * pixels + p) - most);
      store(rows + m * pixels + p, power);
      sum = sum + power;
    }
    store(lse + p, most + log(sum));
    if (total != nullptr) store(total + p, sum);
  }
}

AIME_TARGET void logistics(const LogisticsBlock& block) {
  const std::int64_t pixels = block.pixels;
  float* shares = block.scratch;
  float* joint = block.scratch + block.components * pixels;
  for (std::int64_t m = 0; m < block.components; ++m) std::copy_n(block.logits[m], pixels, shares + m * pixels);
  float* total = block.joint;  // written last
  log_sum_exp(shares, block.components, pixels, block.normaliser, total);
  for (int i = 0; i < 3; ++i) std::fill_n(block.mean[i], pixels, 0.0F);
  for (std::int64_t m = 0; m < block.components; ++m) {
    for (std::int64_t p = 0; p < pixels; p += kLanes) {
      const Coupling c = couple(block, m, p);
      const Vector share = load(shares + m * pixels + p) / load(total + p);
      for (int i = 0; i < 3; ++i) {
        store(block.mean[i] + p, multiply_add(share, c.mean[i], load(block.mean[i] + p)));
      }
      store(joint + m * pixels + p, load(block.logits[m] + p) - load(block.normaliser + p) + log_bins(c));
    }
  }
  log_sum_exp(joint, block.components, pixels, block.joint, nullptr);
}

// Gradient of one channel's bin towards its centre and log scale, given that towards its log probability.
AIME_INLINE void bin_gradient(const Bin& bin, Vector log_scale, Vector gradient, Vector* g_centre,
                              Vector* g_log_scale) {
  const Vector zero = constant(0.0F);
  const Vector one = constant(1.0F);
  const Mask positive = bin.residual >= zero;
  const Vector outer = bin.far / (one + bin.far);
  const Vector inner = one / (one + bin.near);
  // sigmoid(-(r + h)) and sigmoid(r - h); an open bin has one of them
  const Vector above = select(bin.right, zero, select(positive, outer, inner));
  const Vector below = select(bin.left, zero, select(positive, inner, outer));
  const Vector square = bin.decay * bin.decay;
  const Vector by_mass = select(bin.wide, one, bin.half * (square + square) / bin.mass);  // 2 h / expm1(2 h)
  const Vector by_residual = above - below;
  *g_centre = zero - gradient * bin.inverse * by_residual;
  const Vector by_half = multiply_add(bin.half, above + below, select(bin.closed, by_mass, zero));
  const Vector by_scale = multiply_add(bin.residual, by_residual, by_half);
  *g_log_scale = select(log_scale < constant(kMinLogScale), zero, zero - gradient * by_scale);
}

AIME_TARGET void logistics_backward(const LogisticsBlock& block) {
  for (std::int64_t m = 0; m < block.components; ++m) {
    const std::int64_t at = 3 * m;
    for (std::int64_t p = 0; p < block.pixels; p += kLanes) {
      const Coupling c = couple(block, m, p);
      const Vector log_share = load(block.logits[m] + p) - load(block.normaliser + p);
      const Vector share = exp(log_share);
      const Vector responsibility = exp(log_share + log_bins(c) - load(block.joint + p));
      const Vector upstream = load(block.upstream + p);
      const Vector g_joint = constant(0.0F) - upstream * responsibility;
      Vector g_centre[3];
      for (int i = 0; i < 3; ++i) {
        Vector g_log_scale;
        bin_gradient(c.bin[i], load(block.log_scales[at + i] + p), g_joint, &g_centre[i], &g_log_scale);
        store(block.g_log_scales[at + i] + p, g_log_scale);
      }
      // towards the component's means through the mixture's mean, blue first: it depends on red and green
      Vector g_mean[3];
      Vector g_share = constant(0.0F);
      for (int i = 0; i < 3; ++i) {
        const Vector g = load(block.g_mean[i] + p);
        g_share = multiply_add(g, c.mean[i] - load(block.mean[i] + p), g_share);
        g_mean[i] = g * share;
      }
      const Vector red = load(block.x[0] + p);
      const Vector green = load(block.x[1] + p);
      Vector g_t[3];
      g_t[1] = multiply_add(g_centre[2], red, g_mean[2] * c.mean[0]);
      g_t[2] = multiply_add(g_centre[2], green, g_mean[2] * c.mean[1]);
      g_mean[1] = multiply_add(g_mean[2], c.t[2], g_mean[1]);
      g_t[0] = multiply_add(g_centre[1], red, g_mean[1] * c.mean[0]);
      g_mean[0] = multiply_add(g_mean[1], c.t[0], multiply_add(g_mean[2], c.t[1], g_mean[0]));
      store(block.g_logits[m] + p, multiply_add(upstream, share - responsibility, share * g_share));
      for (int i = 0; i < 3; ++i) {
        store(block.g_means[at + i] + p, g_centre[i] + g_mean[i]);
        store(block.g_coefficients[at + i] + p, g_t[i] * subtract_product(constant(1.0F), c.t[i], c.t[i]));
      }
    }
  }
}
