// One row of an image, (W, C): errors of the decoded values against the whitened frame.

// The frame's values (W, C), whatever their order in memory.
template <typename Value>
AIME_INLINE void read_pixels(const ErrorBlock& block, float* __restrict__ to) {
  const Value* from = static_cast<const Value*>(block.frame);
  const std::int64_t width = block.width;
  if (block.channel_stride == 1 && block.pixel_stride == block.channels) {
    for (std::int64_t i = 0; i < width * block.channels; ++i) to[i] = static_cast<float>(from[i]);
  } else if (block.channels == 3 && block.pixel_stride == 1) {
    const Value* green = from + block.channel_stride;
    const Value* blue = green + block.channel_stride;
    for (std::int64_t x = 0; x < width; ++x) {
      to[3 * x] = static_cast<float>(from[x]);
      to[3 * x + 1] = static_cast<float>(green[x]);
      to[3 * x + 2] = static_cast<float>(blue[x]);
    }
  } else {
    for (std::int64_t x = 0; x < width; ++x) {
      for (std::int64_t c = 0; c < block.channels; ++c) {
        to[x * block.channels + c] = static_cast<float>(from[c * block.channel_stride + x * block.pixel_stride]);
      }
    }
  }
}

// Errors of a row, and beside them the errors times the weights where there are weights.
AIME_INLINE void row_errors(const ErrorBlock& block) {
  const std::int64_t count = block.width * block.channels;
  float* __restrict__ errors = block.errors;
  if (block.bytes) {
    read_pixels<std::uint8_t>(block, errors);
  } else {
    read_pixels<float>(block, errors);
  }
  if (block.halves) {
    const std::uint16_t* decoded = static_cast<const std::uint16_t*>(block.decoded);
    for (std::int64_t i = 0; i < count; ++i) {
      const std::uint32_t bits = static_cast<std::uint32_t>(decoded[i]) << 16;
      float value;
      std::memcpy(&value, &bits, sizeof(value));
      errors[i] = value - (errors[i] - block.mean[i]) * block.factor[i];
    }
  } else {
    const float* decoded = static_cast<const float*>(block.decoded);
    for (std::int64_t i = 0; i < count; ++i) errors[i] = decoded[i] - (errors[i] - block.mean[i]) * block.factor[i];
  }
  if (block.weights == nullptr) return;
  float* __restrict__ weighted = block.weighted;
  for (std::int64_t x = 0; x < block.width; ++x) {
    for (std::int64_t c = 0; c < block.channels; ++c) {
      weighted[x * block.channels + c] = errors[x * block.channels + c] * block.weights[x];
    }
  }
}

AIME_TARGET float frame_error(const ErrorBlock& block) {
  row_errors(block);
  const float* weighted = block.weights == nullptr ? block.errors : block.weighted;
  for (std::int64_t i = block.width * block.channels; i < block.padded; ++i) {
    block.errors[i] = 0.0F;
    block.weighted[i] = 0.0F;
  }
  Vector total = constant(0.0F);
  for (std::int64_t i = 0; i < block.padded; i += kLanes) {
    total = multiply_add(load(block.errors + i), load(weighted + i), total);
  }
  return sum(total);
}

AIME_TARGET void frame_error_backward(const ErrorBlock& block) {
  row_errors(block);
  float* weighted = block.weights == nullptr ? block.errors : block.weighted;
  const std::int64_t count = block.width * block.channels;
  if (block.halves) {
    for (std::int64_t i = 0; i < count; ++i) weighted[i] *= block.scale;
    narrow_run(weighted, count, static_cast<std::uint16_t*>(block.gradient));
  } else {
    float* gradient = static_cast<float*>(block.gradient);
    for (std::int64_t i = 0; i < count; ++i) gradient[i] = weighted[i] * block.scale;
  }
}
