// Sums of rows.

// to += sum over rows of a, times b and the row's factor where there are such.
AIME_TARGET void add_rows(const RowSum& block) {
  for (std::int64_t d = 0; d < block.width; d += kLanes) {
    Vector total = load(block.to + d);
    for (std::int64_t r = 0; r < block.rows; ++r) {
      Vector value = load(block.a + r * block.a_row + d);
      if (block.b != nullptr) value = value * load(block.b + r * block.b_row + d);
      if (block.factors != nullptr) value = value * constant(block.factors[r]);
      total = total + value;
    }
    store(block.to + d, total);
  }
}

// to += from
AIME_TARGET void add_row(const float* from, std::int64_t width, float* to) {
  std::int64_t d = 0;
  for (; d + kLanes <= width; d += kLanes) store(to + d, load(to + d) + load(from + d));
  for (; d < width; ++d) to[d] += from[d];
}
