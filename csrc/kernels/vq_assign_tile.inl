// The tile kernel, written once over a vector type. The including file defines
//   AIME_TARGET    the target attribute of every function here
//   struct Vector  with kLanes, zero, load, store, broadcast, total over the lanes; all functions carry AIME_TARGET
//   struct Best    with reset, take_smaller, and lowest, the lowest index of the smallest value
//   kRows, kVectors  accumulators in flight; their product fits the register file with room for the operands
// and gets run_tile(const Tile&) in its own namespace.

// A row group meets a code group. Dot products live in kRows x kVectors registers.
template <int kRowCount, int kVectorCount>
AIME_TARGET inline void meet(const float* rows, const float* codes, const float* half_norms, std::int64_t width,
                             std::int32_t first_code, Best* best) {
  Vector dot[kRowCount][kVectorCount];
  for (int r = 0; r < kRowCount; ++r) {
    for (int v = 0; v < kVectorCount; ++v) dot[r][v] = Vector::zero();
  }
  for (std::int64_t d = 0; d < width; ++d) {
    Vector code[kVectorCount];
    for (int v = 0; v < kVectorCount; ++v) code[v] = Vector::load(codes + (d * kVectorCount + v) * Vector::kLanes);
    for (int r = 0; r < kRowCount; ++r) {
      const Vector value = Vector::broadcast(rows[r * width + d]);
      for (int v = 0; v < kVectorCount; ++v) dot[r][v] = Vector::multiply_add(value, code[v], dot[r][v]);
    }
  }
  for (int v = 0; v < kVectorCount; ++v) {
    const Vector half_norm = Vector::load(half_norms + v * Vector::kLanes);
    const Index index = Index::sequence(first_code + v * Vector::kLanes);
    for (int r = 0; r < kRowCount; ++r) best[r].take_smaller(Vector::subtract(half_norm, dot[r][v]), index);
  }
}

AIME_TARGET inline float squared_distance(const float* a, const float* b, std::int64_t width) {
  Vector sum = Vector::zero();
  std::int64_t d = 0;
  for (; d + Vector::kLanes <= width; d += Vector::kLanes) {
    const Vector difference = Vector::subtract(Vector::load(a + d), Vector::load(b + d));
    sum = Vector::multiply_add(difference, difference, sum);
  }
  float total = sum.total();
  for (; d < width; ++d) total += (a[d] - b[d]) * (a[d] - b[d]);
  return total;
}

AIME_TARGET inline void copy(const float* from, std::int64_t count, float* to) {
  std::int64_t d = 0;
  for (; d + Vector::kLanes <= count; d += Vector::kLanes) Vector::load(from + d).store(to + d);
  for (; d < count; ++d) to[d] = from[d];
}

AIME_TARGET void run_tile(const Tile& tile) {
  constexpr std::int64_t group = static_cast<std::int64_t>(Vector::kLanes) * kVectors;
  alignas(64) Best best[kMaxTileRows];
  for (std::int64_t r = 0; r < tile.row_count; ++r) best[r].reset();
  for (std::int64_t g = 0; g < tile.group_count; ++g) {
    const float* codes = tile.codes_packed + g * group * tile.width;
    for (std::int64_t r = 0; r < tile.row_count; r += kRows) {
      meet<kRows, kVectors>(tile.rows_packed + r * tile.width, codes, tile.half_norms + g * group, tile.width,
                            static_cast<std::int32_t>(g * group), best + r);
    }
  }
  for (std::int64_t r = 0; r < tile.kept; ++r) {
    const std::int32_t chosen = best[r].lowest();
    const float* row = tile.rows_packed + r * tile.width;
    const float* code = tile.codes + chosen * tile.width;
    const std::int64_t out = r * tile.stride;
    tile.index[out] = chosen;
    tile.distance[out] = squared_distance(row, code, tile.width);
    if (tile.quantized != nullptr) copy(code, tile.width, tile.quantized + out * tile.width);
  }
}
