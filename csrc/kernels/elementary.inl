// exp, expm1, log, log1p, tanh, sigmoid over Vector. Polynomials of Cephes (expf, logf); errors are below 2 units in
// the last place for exp and log, below 4 for the others; NaN gives NaN, infinities give limits.

constexpr float kLog2High = 0.693359375F;  // few bits: its product with a whole number is exact
constexpr float kLog2Low = -2.12194440e-4F;

// x = n log 2 + r with |r| <= log(2) / 2, and expm1(r).
AIME_INLINE Vector reduced_expm1(Vector x, Vector* n) {
  *n = round(x * constant(1.44269504088896341F));
  const Vector r = subtract_product(subtract_product(x, *n, constant(kLog2High)), *n, constant(kLog2Low));
  Vector p = constant(1.9875691500e-4F);
  p = multiply_add(p, r, constant(1.3981999507e-3F));
  p = multiply_add(p, r, constant(8.3334519073e-3F));
  p = multiply_add(p, r, constant(4.1665795894e-2F));
  p = multiply_add(p, r, constant(1.6666665459e-1F));
  p = multiply_add(p, r, constant(5.0000001201e-1F));
  return multiply_add(p * r, r, r);
}

AIME_INLINE Vector exp(Vector x) {
  Vector n;
  const Vector p = reduced_expm1(min(constant(89.0F), max(constant(-104.0F), x)), &n);
  return times_power_of_two(p + constant(1.0F), n);
}

// For x <= 88.
AIME_INLINE Vector expm1(Vector x) {
  Vector n;
  const Vector p = reduced_expm1(max(constant(-104.0F), x), &n);
  const Vector power = times_power_of_two(constant(1.0F), n);
  return multiply_add(power, p, power - constant(1.0F));
}

// log(mantissa * 2^exponent) for a mantissa of any size. One constant for log 2 is enough: its product is not rounded.
AIME_INLINE Vector log_of_split(Vector mantissa, Vector exponent) {
  const Vector given = mantissa;
  if (kLanes != 16) {  // AVX-512 splits every number, elsewhere subnormal ones are scaled first
    const Mask tiny = mantissa < constant(1.17549435e-38F);
    mantissa = select(tiny, mantissa * constant(8388608.0F), mantissa);
    exponent = select(tiny, exponent - constant(23.0F), exponent);
  }
  Vector m;
  Vector e;
  split(mantissa, &m, &e);
  const Mask upper = m >= constant(1.41421356F);
  m = select(upper, m * constant(0.5F), m) - constant(1.0F);
  e = select(upper, e + constant(1.0F), e) + exponent;
  Vector p = constant(7.0376836292e-2F);
  p = multiply_add(p, m, constant(-1.1514610310e-1F));
  p = multiply_add(p, m, constant(1.1676998740e-1F));
  p = multiply_add(p, m, constant(-1.2420140846e-1F));
  p = multiply_add(p, m, constant(1.4249322787e-1F));
  p = multiply_add(p, m, constant(-1.6668057665e-1F));
  p = multiply_add(p, m, constant(2.0000714765e-1F));
  p = multiply_add(p, m, constant(-2.4999993993e-1F));
  p = multiply_add(p, m, constant(3.3333331174e-1F));
  const Vector square = m * m;
  const Vector tail = subtract_product(p * m * square, square, constant(0.5F));
  const Vector result = multiply_add(e, constant(0.693147181F), m + tail);
  if (kLanes == 16) return result;
  const Vector zero = constant(0.0F);
  const Vector infinity = constant(std::numeric_limits<float>::infinity());
  Vector mended = select(zero < given, result, zero - infinity);
  mended = select(given >= infinity, infinity, mended);
  return select(given >= zero, mended, constant(std::numeric_limits<float>::quiet_NaN()));
}

AIME_INLINE Vector log(Vector x) { return log_of_split(x, constant(0.0F)); }

// log(a b c) of positive numbers whose product may be below the smallest float.
AIME_INLINE Vector log_of_product(Vector a, Vector b, Vector c) {
  Vector mantissa[3];
  Vector exponent[3];
  split(a, &mantissa[0], &exponent[0]);
  split(b, &mantissa[1], &exponent[1]);
  split(c, &mantissa[2], &exponent[2]);
  return log_of_split(mantissa[0] * mantissa[1] * mantissa[2], exponent[0] + exponent[1] + exponent[2]);
}

// log(1 + x) for x > -1, by Kahan's correction: the rounding of 1 + x cancels.
AIME_INLINE Vector log1p(Vector x) {
  const Vector one = constant(1.0F);
  const Vector u = one + x;
  const Vector difference = u - one;
  const Mask exact = (difference < constant(0.0F)) | (constant(0.0F) < difference);
  return select(exact, log(u) * (x / select(exact, difference, one)), x);
}

// Absolute error of one rounding.
AIME_INLINE Vector tanh(Vector x) {
  const Vector e = exp(absolute(x) * constant(-2.0F));
  const Vector size = (constant(1.0F) - e) / (constant(1.0F) + e);
  return select(x < constant(0.0F), constant(0.0F) - size, size);
}

AIME_INLINE Vector sigmoid(Vector x) {
  const Vector one = constant(1.0F);
  return one / (one + exp(constant(0.0F) - x));
}
