#include "slot_planes.hpp"

#include <cmath>

namespace aime {
namespace {

std::int64_t padded(std::int64_t size) { return (size + kSlotPadding - 1) / kSlotPadding * kSlotPadding; }

// Upper bound of the floats that the packed weights take, forward or backward.
std::int64_t packed_floats(const SlotSizes& sizes) {
  const std::int64_t matrices =
      7 * sizes.width * sizes.d + sizes.width * (sizes.c + sizes.f) + (sizes.channels + sizes.hidden) * sizes.d;
  return matrices + 12 * sizes.d + sizes.f + 2 * sizes.c;
}

bool in_place(const View& view, std::int64_t columns, float factor) {
  return view.dtype == Dtype::kFloat32 && view.strides[1] == 1 && view.sizes[1] == columns && factor == 1.0F;
}

}  // namespace

SlotSizes::SlotSizes(const SlotArguments& arguments)
    : batch(arguments.slots.sizes[0]),
      slots(arguments.slots.sizes[1]),
      rows(batch * slots),
      inputs(arguments.inputs.sizes[1]),
      channels(arguments.inputs.sizes[2]),
      width(arguments.slots.sizes[2]),
      hidden(arguments.weights[kMlpInBias].sizes[0]),
      c(padded(channels)),
      d(padded(width)),
      f(padded(hidden)) {}

SavedPlanes::SavedPlanes(const SlotSizes& sizes, float* base)
    : before(base),
      query(before + sizes.rows * sizes.d),
      updates(query + sizes.rows * sizes.d),
      gates(updates + sizes.rows * sizes.d),
      hidden(gates + 4 * sizes.rows * sizes.d),
      means(hidden + sizes.rows * sizes.f),
      seen(means + sizes.rows * sizes.c),
      totals(seen + sizes.rows * sizes.c) {}

SlotMatrices::SlotMatrices(const SlotArguments& arguments, const SlotSizes& sizes, bool is_backward)
    : buffer_(packed_floats(sizes)), next_(buffer_.data()) {
  const float scale = 1.0F / std::sqrt(static_cast<float>(sizes.width));
  const auto& w = arguments.weights;
  norm_inputs_weight = vector(w[kNormInputsWeight], sizes.c);
  norm_inputs_bias = vector(w[kNormInputsBias], sizes.c);
  norm_slots_weight = vector(w[kNormSlotsWeight], sizes.d);
  norm_mlp_weight = vector(w[kNormMlpWeight], sizes.d);
  key_bias = vector(w[kKeyBias], sizes.d);
  if (is_backward) {
    backward(arguments, sizes, scale);
  } else {
    forward(arguments, sizes, scale);
  }
}

void SlotMatrices::forward(const SlotArguments& arguments, const SlotSizes& sizes, float scale) {
  const auto& w = arguments.weights;
  norm_slots_bias = vector(w[kNormSlotsBias], sizes.d);
  norm_mlp_bias = vector(w[kNormMlpBias], sizes.d);
  query_bias = vector(w[kQueryBias], sizes.d, scale);
  value_bias = vector(w[kValueBias], sizes.d);
  mlp_in_bias = vector(w[kMlpInBias], sizes.f);
  mlp_out_bias = vector(w[kMlpOutBias], sizes.d);
  float* gates = take(4 * sizes.d);  // r, z, n; what n's share of the state has apart
  std::fill_n(gates, 4 * sizes.d, 0.0F);
  Buffer of_state(sizes.width);
  for (std::int64_t gate = 0; gate < 3; ++gate) {
    const View &ih = w[kGruBiasIh], &hh = w[kGruBiasHh];
    float* to = gates + gate * sizes.d;
    ih.read(gate * sizes.width * ih.strides[0], 0, sizes.width, to);
    hh.read(gate * sizes.width * hh.strides[0], 0, sizes.width, gate == 2 ? to + sizes.d : of_state.data());
    for (std::int64_t j = 0; gate < 2 && j < sizes.width; ++j) to[j] += of_state.data()[j];
  }
  gates_bias = gates;
  query = turned(w[kQueryWeight], sizes.width, sizes.d, scale);
  key = as_it_is(w[kKeyWeight], sizes.c);
  value = turned(w[kValueWeight], sizes.width, sizes.d);
  gates_ih = turned(w[kGruWeightIh], sizes.width, sizes.d);
  gates_hh = turned(w[kGruWeightHh], sizes.width, sizes.d);
  mlp_in = turned(w[kMlpInWeight], sizes.hidden, sizes.f);
  mlp_out = turned(w[kMlpOutWeight], sizes.width, sizes.d);
}

void SlotMatrices::backward(const SlotArguments& arguments, const SlotSizes& sizes, float scale) {
  const auto& w = arguments.weights;
  query = as_it_is(w[kQueryWeight], sizes.d, scale);
  key = turned(w[kKeyWeight], sizes.width, sizes.d);
  value = as_it_is(w[kValueWeight], sizes.c);
  gates_ih = as_it_is(w[kGruWeightIh], sizes.d);
  gates_hh = as_it_is(w[kGruWeightHh], sizes.d);
  mlp_in = as_it_is(w[kMlpInWeight], sizes.d);
  mlp_out = as_it_is(w[kMlpOutWeight], sizes.f);
}

float* SlotMatrices::take(std::int64_t count) {
  float* taken = next_;
  next_ += count;
  return taken;
}

const float* SlotMatrices::vector(const View& view, std::int64_t padded_size, float factor) {
  float* to = take(padded_size);
  const std::int64_t size = view.data == nullptr ? 0 : view.sizes[0];
  if (size != 0) view.read(0, 0, size, to);
  for (std::int64_t j = 0; j < size; ++j) to[j] *= factor;
  std::fill(to + size, to + padded_size, 0.0F);
  return to;
}

Matrix SlotMatrices::as_it_is(const View& view, std::int64_t columns, float factor) {
  if (in_place(view, columns, factor)) return {static_cast<const float*>(view.data), view.strides[0]};
  float* to = take(view.sizes[0] * columns);
  for (std::int64_t row = 0; row < view.sizes[0]; ++row) {
    float* line = to + row * columns;
    view.read(row * view.strides[0], 1, view.sizes[1], line);
    for (std::int64_t j = 0; j < view.sizes[1]; ++j) line[j] *= factor;
    std::fill(line + view.sizes[1], line + columns, 0.0F);
  }
  return {to, columns};
}

Matrix SlotMatrices::turned(const View& view, std::int64_t size, std::int64_t padded_size, float factor) {
  const std::int64_t blocks = size == 0 ? 0 : view.sizes[0] / size;
  const std::int64_t depth = view.sizes[1];
  const std::int64_t columns = blocks * padded_size;
  float* to = take(depth * columns);
  const bool direct = in_place(view, depth, 1.0F);
  Buffer lines(direct ? 0 : kSlotPadding * depth);
  for (std::int64_t block = 0; block < blocks; ++block) {
    for (std::int64_t first = 0; first < padded_size; first += kSlotPadding) {
      const std::int64_t count = std::clamp<std::int64_t>(size - first, 0, kSlotPadding);
      const float* from[kSlotPadding];
      for (std::int64_t i = 0; i < count; ++i) {
        const std::int64_t start = (block * size + first + i) * view.strides[0];
        from[i] = direct ? static_cast<const float*>(view.data) + start : lines.data() + i * depth;
        if (!direct) view.read(start, 1, depth, lines.data() + i * depth);
      }
      for (std::int64_t k = 0; k < depth; ++k) {
        float* line = to + k * columns + block * padded_size + first;
        for (std::int64_t i = 0; i < count; ++i) line[i] = factor * from[i][k];
        std::fill(line + count, line + kSlotPadding, 0.0F);
      }
    }
  }
  return {to, columns};
}

void scale_queries(const SlotSizes& sizes, const SlotMatrices& matrices, const SavedPlanes& planes, SlotRows scaled,
                   float* offsets, std::int64_t first, std::int64_t last) {
  for (std::int64_t r = first; r < last; ++r) {
    const float* seen = planes.seen + r * sizes.c;
    const float* query = planes.query + r * sizes.d;
    float offset = 0.0F;
    for (std::int64_t j = 0; j < sizes.c; ++j) {
      scaled.row(r)[j] = seen[j] * matrices.norm_inputs_weight[j];
      offset += seen[j] * matrices.norm_inputs_bias[j];
    }
    for (std::int64_t j = 0; j < sizes.d; ++j) offset += query[j] * matrices.key_bias[j];
    offsets[r] = offset;
  }
}

}  // namespace aime
