// Products of matrices: a tile of rows times whole vectors of columns stays in registers while the depth passes by.
// Every number is summed along the depth in order, so that its bits do not depend on the tile it lies in.

// Rows and vectors of a tile: 24 sums of 32 registers with AVX-512, 8 of 16 elsewhere.
constexpr int kTileRows = kLanes == 16 ? 6 : 4;
constexpr int kTileVectors = kLanes == 16 ? 4 : 2;

template <int kRows, int kVectors>
AIME_INLINE void product_tile(const Product& p, std::int64_t row, std::int64_t column) {
  float* to = p.c + row * p.c_row + column;
  Vector sums[kRows][kVectors];
  for (int v = 0; v < kVectors; ++v) {
    const Vector start = p.bias == nullptr ? constant(0.0F) : load(p.bias + column + v * kLanes);
    for (int r = 0; r < kRows; ++r) {
      sums[r][v] = p.accumulate ? load(to + r * p.c_row + v * kLanes) + start : start;
    }
  }
  const float* a = p.a + row * p.a_row;
  const float* b = p.b + column;
  for (std::int64_t k = 0; k < p.depth; ++k) {
    Vector factors[kVectors];
    for (int v = 0; v < kVectors; ++v) factors[v] = load(b + v * kLanes);
    for (int r = 0; r < kRows; ++r) {
      const Vector factor = constant(a[r * p.a_row]);
      for (int v = 0; v < kVectors; ++v) sums[r][v] = multiply_add(factor, factors[v], sums[r][v]);
    }
    a += p.a_step;
    b += p.b_step;
  }
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) store(to + r * p.c_row + v * kLanes, sums[r][v]);
  }
}

template <int kVectors>
AIME_TARGET void product_columns(const Product& p, std::int64_t column) {
  std::int64_t row = 0;
  for (; row + kTileRows <= p.rows; row += kTileRows) product_tile<kTileRows, kVectors>(p, row, column);
  for (; row + 2 <= p.rows; row += 2) product_tile<2, kVectors>(p, row, column);
  for (; row < p.rows; ++row) product_tile<1, kVectors>(p, row, column);
}

AIME_TARGET void product(const Product& p) {
  constexpr std::int64_t kWide = kTileVectors * kLanes;
  std::int64_t column = 0;
  for (; column + kWide <= p.columns; column += kWide) product_columns<kTileVectors>(p, column);
  for (; column + 2 * kLanes <= p.columns; column += 2 * kLanes) product_columns<2>(p, column);
  for (; column < p.columns; column += kLanes) product_columns<1>(p, column);
}
