// What the arithmetic units can do: multiply-adds on registers alone.

AIME_TARGET double multiply_adds(std::int64_t iterations) {
  constexpr int kChains = 12;  // in flight together, enough for two units of a latency of four to six cycles
  Vector chains[kChains];
  for (int i = 0; i < kChains; ++i) chains[i] = constant(1.0F + 0.01F * static_cast<float>(i));
  const Vector factor = constant(0.999F);
  const Vector term = constant(0.001F);
  for (std::int64_t n = 0; n < iterations; ++n) {
    for (int i = 0; i < kChains; ++i) chains[i] = multiply_add(chains[i], factor, term);
  }
  double total = 0.0;
  for (int i = 0; i < kChains; ++i) total += static_cast<double>(sum(chains[i]));
  return total;
}

constexpr double kOperationsPerIteration = 2.0 * 12 * kLanes;
