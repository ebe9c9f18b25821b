// Rows of frames to one row of patches a frame; loops without vectors of ours are plain enough for the compiler's.

AIME_INLINE void narrow_run(const float* from, std::int64_t count, std::uint16_t* __restrict__ to) {
  std::int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store_bfloat16(to + i, load(from + i));
  for (; i < count; ++i) to[i] = to_bfloat16(from[i]);
}

template <typename Value>
AIME_INLINE void whiten_run(const Value* from, std::int64_t step, const float* mean, const float* factor,
                            std::int64_t count, float* __restrict__ to) {
  if (step == 1) {
    for (std::int64_t i = 0; i < count; ++i) to[i] = (static_cast<float>(from[i]) - mean[i]) * factor[i];
  } else {
    for (std::int64_t i = 0; i < count; ++i) to[i] = (static_cast<float>(from[i * step]) - mean[i]) * factor[i];
  }
}

// One row of patches of frame t, (C, patch, W).
template <typename Value>
AIME_INLINE void whiten_band(const PatchBlock& block, std::int64_t t, std::int64_t line, float* to) {
  const std::int64_t top = line * block.patch;
  const Value* frame = static_cast<const Value*>(block.frames) + t * block.strides[0] + top * block.strides[2];
  const std::int64_t step = block.strides[3];
  const bool rows_follow = block.strides[2] == block.width * step;
  const std::int64_t rows = rows_follow ? 1 : block.patch;
  const std::int64_t count = rows_follow ? block.patch * block.width : block.width;
  for (std::int64_t c = 0; c < block.channels; ++c) {
    for (std::int64_t i = 0; i < rows; ++i, to += count) {
      const std::int64_t pixel = c * block.plane + (top + i) * block.width;
      whiten_run(frame + c * block.strides[1] + i * block.strides[2], step, block.mean + pixel, block.factor + pixel,
                 count, to);
    }
  }
}

// `count` pieces of kSide values, one after another, to places `stride` values apart.
template <std::int64_t kSide, typename Value>
AIME_INLINE void spread_pieces(const Value* from, std::int64_t count, std::int64_t stride, Value* to) {
  for (std::int64_t j = 0; j < count; ++j) std::memcpy(to + j * stride, from + j * kSide, kSide * sizeof(Value));
}

// One channel of one frame, (patch, W), to its place in each patch.
template <typename Value>
AIME_INLINE void spread_channel(const PatchBlock& block, const Value* from, Value* to) {
  const std::int64_t side = block.patch;
  const std::int64_t count = block.width / side;
  for (std::int64_t i = 0; i < side; ++i, from += block.width, to += side) {
    if (side == 4) {
      spread_pieces<4>(from, count, block.size, to);
    } else if (side == 8) {
      spread_pieces<8>(from, count, block.size, to);
    } else {
      for (std::int64_t j = 0; j < count; ++j) {
        for (std::int64_t q = 0; q < side; ++q) to[j * block.size + q] = from[j * side + q];
      }
    }
  }
}

// Where frame t lies, those before the first with negative t; without them the first has always stood still.
AIME_INLINE const float* whitened_lines(const PatchBlock& block, std::int64_t t, std::int64_t size) {
  if (t >= 0) return block.ring + t % (1 + block.changes) * size;
  return block.before == nullptr ? block.ring : block.before + (block.changes + t) * size;
}

// One row of patches of frame t, which stands at `band` of its place in the ring, to the result.
template <typename Value>
AIME_INLINE void write_line(const PatchBlock& block, std::int64_t t, std::int64_t band, Value* to) {
  const std::int64_t area = block.patch * block.width;
  const std::int64_t size = block.lines * block.channels * area;
  float* const change = block.values;
  std::uint16_t* const narrow = reinterpret_cast<std::uint16_t*>(block.values + area);
  for (std::int64_t k = 0; k <= block.changes; ++k) {  // 0: the frame; k: from frame t - k to frame t - k + 1
    for (std::int64_t c = 0; c < block.channels; ++c, to += block.patch * block.patch) {
      const std::int64_t offset = band + c * area;
      const float* values = whitened_lines(block, t, size) + offset;
      if (k > 0) {
        const float* later = whitened_lines(block, t - k + 1, size) + offset;
        const float* earlier = whitened_lines(block, t - k, size) + offset;
        std::int64_t i = 0;
        for (; i + kLanes <= area; i += kLanes) store(change + i, load(later + i) - load(earlier + i));
        for (; i < area; ++i) change[i] = later[i] - earlier[i];
        values = change;
      }
      if constexpr (sizeof(Value) == sizeof(float)) {
        spread_channel(block, values, to);
      } else {
        narrow_run(values, area, narrow);
        spread_channel<Value>(block, narrow, to);
      }
    }
  }
}

// Frame after frame, as they lie in memory: row by row over all frames it took twice as long.
AIME_TARGET void frame_patches(const PatchBlock& block) {
  const std::int64_t band = block.channels * block.patch * block.width;
  const std::int64_t line_size = block.width / block.patch * block.size;
  for (std::int64_t t = 0; t < block.length; ++t) {
    float* now = block.ring + t % (1 + block.changes) * block.lines * band;
    for (std::int64_t line = 0; line < block.lines; ++line) {
      if (block.bytes) {
        whiten_band<std::uint8_t>(block, t, line, now + line * band);
      } else {
        whiten_band<float>(block, t, line, now + line * band);
      }
      const std::int64_t to = t * block.stride + line * line_size;
      if (block.halves) {
        write_line(block, t, line * band, static_cast<std::uint16_t*>(block.out) + to);
      } else {
        write_line(block, t, line * band, static_cast<float*>(block.out) + to);
      }
    }
  }
}
