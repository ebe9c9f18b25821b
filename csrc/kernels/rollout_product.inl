// Products of rows and packed matrices (latent_rollout.hpp). The sum of an element goes through the inputs in order,
// whatever the number of rows.

constexpr int kPanelVectors = 3;
constexpr int kPanelRows = kLanes == 16 ? 8 : 4;  // with the panel's vectors, what the registers hold
constexpr std::int64_t kPanelColumns = kPanelVectors * kLanes;

template <int kRows>
AIME_TARGET void multiply_panel(const float* x, std::int64_t stride, std::int64_t inputs, const float* packed, float* y,
                                std::int64_t y_stride) {
  Vector sums[kRows][kPanelVectors];
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kPanelVectors; ++v) sums[r][v] = constant(0.0F);
  }
  for (std::int64_t k = 0; k < inputs; ++k) {
    Vector w[kPanelVectors];
    for (int v = 0; v < kPanelVectors; ++v) w[v] = load(packed + k * kPanelColumns + v * kLanes);
    for (int r = 0; r < kRows; ++r) {
      const Vector a = constant(x[r * stride + k]);
      for (int v = 0; v < kPanelVectors; ++v) sums[r][v] = multiply_add(a, w[v], sums[r][v]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kPanelVectors; ++v) store(y + r * y_stride + v * kLanes, sums[r][v]);
  }
}

struct FloatPanel {
  using Input = float;
  using Packed = float;
  template <int kRows>
  AIME_TARGET static void run(const float* x, std::int64_t stride, std::int64_t inputs, const float* packed, float* y,
                              std::int64_t y_stride) {
    multiply_panel<kRows>(x, stride, inputs, packed, y, y_stride);
  }
};

// As many rows of one panel as are left in whole groups of kRows, from row `first` on; returns the next row.
template <typename Panel, int kRows>
AIME_TARGET std::int64_t multiply_groups(std::int64_t first, std::int64_t rows, const typename Panel::Input* x,
                                         std::int64_t stride, const PackedMatrix& matrix, std::int64_t column,
                                         float* y) {
  const auto* packed = static_cast<const typename Panel::Packed*>(matrix.data) + column * matrix.rows;
  for (; first + kRows <= rows; first += kRows) {
    Panel::template run<kRows>(x + first * stride, stride, matrix.rows, packed, y + first * matrix.columns + column,
                               matrix.columns);
  }
  return first;
}

// y (rows, matrix.columns) = x (rows, inputs) times the matrix, panel by panel: a panel stays in cache over all rows.
template <typename Panel>
AIME_TARGET void multiply_panels(std::int64_t rows, const typename Panel::Input* x, std::int64_t stride,
                                 const PackedMatrix& matrix, float* y) {
  for (std::int64_t c = 0; c < matrix.columns; c += kPanelColumns) {
    std::int64_t r = multiply_groups<Panel, kPanelRows>(0, rows, x, stride, matrix, c, y);
    r = multiply_groups<Panel, 4>(r, rows, x, stride, matrix, c, y);
    r = multiply_groups<Panel, 2>(r, rows, x, stride, matrix, c, y);
    multiply_groups<Panel, 1>(r, rows, x, stride, matrix, c, y);
  }
}

#if defined(AIME_BFLOAT16_TARGET)
// Both numbers of a pair in one instruction, where the processor has it.
template <int kRows>
AIME_BFLOAT16_TARGET void multiply_pair_panel(const std::uint16_t* x, std::int64_t stride, std::int64_t pairs,
                                              const std::uint32_t* packed, float* y, std::int64_t y_stride) {
  __m512 sums[kRows][kPanelVectors];
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kPanelVectors; ++v) sums[r][v] = _mm512_setzero_ps();
  }
  for (std::int64_t k = 0; k < pairs; ++k) {
    __m512bh w[kPanelVectors];
    for (int v = 0; v < kPanelVectors; ++v) {
      w[v] = reinterpret_cast<__m512bh>(_mm512_loadu_si512(packed + k * kPanelColumns + v * kLanes));
    }
    for (int r = 0; r < kRows; ++r) {
      std::int32_t pair;
      std::memcpy(&pair, x + r * stride + 2 * k, sizeof(pair));
      const auto a = reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair));
      for (int v = 0; v < kPanelVectors; ++v) sums[r][v] = _mm512_dpbf16_ps(sums[r][v], a, w[v]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kPanelVectors; ++v) _mm512_storeu_ps(y + r * y_stride + v * kLanes, sums[r][v]);
  }
}

struct PairPanel {
  using Input = std::uint16_t;
  using Packed = std::uint32_t;
  template <int kRows>
  AIME_TARGET static void run(const std::uint16_t* x, std::int64_t stride, std::int64_t pairs,
                              const std::uint32_t* packed, float* y, std::int64_t y_stride) {
    multiply_pair_panel<kRows>(x, stride, pairs, packed, y, y_stride);
  }
};
#endif

AIME_TARGET inline void widen(const std::uint16_t* from, std::int64_t count, float* to) {
  for (std::int64_t i = 0; i < count; ++i) {
    const std::uint32_t bits = static_cast<std::uint32_t>(from[i]) << 16;
    std::memcpy(to + i, &bits, sizeof(bits));
  }
}

// Writes `count` numbers in the narrow type from element `start` on; `rounded`, if not null, gets them as float32.
AIME_TARGET inline void narrow(const RolloutBlock& block, const float* from, std::int64_t count, void* to,
                               std::int64_t start, float* rounded = nullptr) {
  if (!block.sizes.bfloat16) {
    std::memcpy(static_cast<float*>(to) + start, from, static_cast<std::size_t>(count) * sizeof(float));
    if (rounded != nullptr && rounded != from) {
      std::memcpy(rounded, from, static_cast<std::size_t>(count) * sizeof(float));
    }
    return;
  }
  std::uint16_t* halves = static_cast<std::uint16_t*>(to) + start;
  for (std::int64_t i = 0; i < count; ++i) halves[i] = to_bfloat16(from[i]);
  if (rounded != nullptr) widen(halves, count, rounded);
}

// y (B, matrix.columns) from narrow rows x, which lie one after another, `stride` numbers each.
AIME_TARGET inline void multiply_narrow(const RolloutBlock& block, const void* x, std::int64_t start,
                                        std::int64_t stride, const PackedMatrix& matrix, float* y) {
  const std::int64_t batch = block.sizes.batch;
  if (!block.sizes.bfloat16) {
    multiply_panels<FloatPanel>(batch, static_cast<const float*>(x) + start, stride, matrix, y);
    return;
  }
  const std::uint16_t* halves = static_cast<const std::uint16_t*>(x) + start;
#if defined(AIME_BFLOAT16_TARGET)
  if (matrix.pairs) {
    multiply_panels<PairPanel>(batch, halves, stride, matrix, y);
    return;
  }
#endif
  widen(halves, batch * stride, block.scratch.rows);
  multiply_panels<FloatPanel>(batch, block.scratch.rows, stride, matrix, y);
}
