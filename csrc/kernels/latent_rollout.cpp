#include "latent_rollout.hpp"

#include <algorithm>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <vector>

#include "buffer.hpp"
#include "instruction_set.hpp"
#include "strided.hpp"

namespace aime {
namespace {

std::int64_t whole(std::int64_t count, std::int64_t step) { return (count + step - 1) / step * step; }

void check_sizes(const RolloutSizes& sizes) {
  const auto expect = [](bool holds, const std::string& name, std::int64_t found, const std::string& expected) {
    if (!holds) {
      throw std::invalid_argument("latent_rollout: " + name + ": expected " + expected + ", found " +
                                  std::to_string(found));
    }
  };
  const std::string multiple = "a positive multiple of " + std::to_string(kRolloutMultiple);
  const auto is_multiple = [](std::int64_t size) { return size > 0 && size % kRolloutMultiple == 0; };
  expect(is_multiple(sizes.hidden), "hidden", sizes.hidden, multiple);
  expect(is_multiple(sizes.width), "width", sizes.width, multiple);
  expect(sizes.components >= 1, "components", sizes.components, "at least 1");
  expect(sizes.components == 1 || is_multiple(sizes.stick_width), "stick_width", sizes.stick_width, multiple);
  expect(sizes.frames >= 1, "frames", sizes.frames, "at least 1");
  expect(sizes.batch >= 1, "batch", sizes.batch, "at least 1");
  expect(sizes.latent >= 1, "latent", sizes.latent, "at least 1");
  expect(sizes.action >= 0, "action", sizes.action, "at least 0");
}

float rounded(float value) { return bfloat16_to_float(to_bfloat16(value)); }

// Element (k, c) of a matrix lies at data[k * row_stride + c * column_stride].
struct Source {
  const float* data;
  std::int64_t row_stride;
  std::int64_t column_stride;
};

// A panel of float32; columns beyond `columns` are left alone.
void pack_floats(std::int64_t rows, std::int64_t columns, std::int64_t panel, const Source& from, bool bfloat16,
                 float* to) {
  for (std::int64_t k = 0; k < rows; ++k) {
    const float* row = from.data + k * from.row_stride;
    for (std::int64_t c = 0; c < columns; ++c) {
      const float value = row[c * from.column_stride];
      to[k * panel + c] = bfloat16 ? rounded(value) : value;
    }
  }
}

// A panel of bfloat16 pairs, rows 2 k and 2 k + 1 in the low and the high half of a word.
void pack_pairs(std::int64_t rows, std::int64_t columns, std::int64_t panel, const Source& from, float* to) {
  for (std::int64_t k = 0; k < rows; k += 2) {
    const float* low = from.data + k * from.row_stride;
    const float* high = low + from.row_stride;
    const bool whole_pair = k + 1 < rows;
    for (std::int64_t c = 0; c < columns; ++c) {
      const std::uint32_t first = to_bfloat16(low[c * from.column_stride]);
      const std::uint32_t second = whole_pair ? to_bfloat16(high[c * from.column_stride]) : 0U;
      const std::uint32_t word = first | second << 16;
      std::memcpy(to + k / 2 * panel + c, &word, sizeof(word));
    }
  }
}

// The instruction set, the memory and the packed matrices of one call.
class Call {
 public:
  Call(const RolloutSizes& sizes, const RolloutWeights& weights, const RolloutInputs& inputs,
       const RolloutRecord& record, const std::string& instructions)
      : set_(choose_instruction_set("latent_rollout", instructions)) {
    check_sizes(sizes);
    block.sizes = sizes;
    block.weights = weights;
    block.inputs = inputs;
    block.record = record;
    padded_latent_ = whole(sizes.latent, set_.lanes);
    float* persistence = zeros(padded_latent_);
    std::copy_n(weights.persistence, sizes.latent, persistence);
    block.persistence = persistence;
  }

  void forward() {
    const RolloutSizes& sizes = block.sizes;
    const RolloutWeights& weights = block.weights;
    const std::int64_t inputs = sizes.inputs();
    block.first = pack(sizes.hidden, sizes.width, {weights.first, 1, sizes.hidden}, sizes.bfloat16);
    block.joint = pack(inputs + sizes.hidden, 4 * sizes.hidden, {join(), 1, inputs + sizes.hidden}, sizes.bfloat16);
    if (sizes.components > 1) pack_sticks();
    pack_components();
    allocate();
    set_.rollout(block);
  }

  void backward(const RolloutGradients& gradients) {
    const RolloutSizes& sizes = block.sizes;
    const RolloutWeights& weights = block.weights;
    const std::int64_t inputs = sizes.inputs();
    block.gradients = gradients;
    block.first = pack(sizes.width, sizes.hidden, {weights.first, sizes.hidden, 1}, sizes.bfloat16);
    block.joint = pack(4 * sizes.hidden, inputs + sizes.hidden, {join(), inputs + sizes.hidden, 1}, sizes.bfloat16);
    float* last = zeros(sizes.outputs() * sizes.width);
    for (std::int64_t i = 0; i < sizes.outputs() * sizes.width; ++i) last[i] = narrowed(weights.last[i]);
    block.last = last;
    allocate();
    set_.rollout_backward(block);
  }

  RolloutBlock block{};

 private:
  float* memory(std::int64_t count) {
    buffers_.push_back(std::make_unique<Buffer>(count));
    return buffers_.back()->data();
  }

  float* zeros(std::int64_t count) {
    float* to = memory(count);
    std::fill_n(to, count, 0.0F);
    return to;
  }

  float narrowed(float value) const { return block.sizes.bfloat16 ? rounded(value) : value; }

  // Input and recurrent weights side by side, (4 Hd, D + A + Hd).
  const float* join() {
    const std::int64_t inputs = block.sizes.inputs();
    const std::int64_t hidden = block.sizes.hidden;
    float* joined = memory(4 * hidden * (inputs + hidden));
    for (std::int64_t gate = 0; gate < 4 * hidden; ++gate) {
      float* row = joined + gate * (inputs + hidden);
      std::copy_n(block.weights.input + gate * inputs, inputs, row);
      std::copy_n(block.weights.recurrent + gate * hidden, hidden, row + inputs);
    }
    return joined;
  }

  PackedMatrix pack(std::int64_t rows, std::int64_t columns, const Source& from, bool bfloat16) {
    const bool pairs = bfloat16 && set_.multiplies_bfloat16_pairs();
    const std::int64_t panel = set_.panel_columns;
    PackedMatrix matrix{pairs ? (rows + 1) / 2 : rows, whole(columns, panel), nullptr, pairs};
    float* data = zeros(matrix.rows * matrix.columns);
    matrix.data = data;
    for (std::int64_t c = 0; c < columns; c += panel) {
      const Source columns_of_panel{from.data + c * from.column_stride, from.row_stride, from.column_stride};
      const std::int64_t count = std::min(panel, columns - c);
      float* to = data + c * matrix.rows;
      if (pairs) {
        pack_pairs(rows, count, panel, columns_of_panel, to);
      } else {
        pack_floats(rows, count, panel, columns_of_panel, bfloat16, to);
      }
    }
    return matrix;
  }

  void pack_sticks() {
    const RolloutSizes& sizes = block.sizes;
    const RolloutWeights& weights = block.weights;
    block.stick_first = pack(sizes.hidden, sizes.stick_width, {weights.stick_first, 1, sizes.hidden}, false);
    const std::int64_t outputs = 2 * (sizes.components - 1);
    block.stick_last = pack(sizes.stick_width, outputs, {weights.stick_last, 1, sizes.stick_width}, false);
    float* bias = zeros(block.stick_last.columns);
    std::copy_n(weights.stick_last_bias, outputs, bias);
    block.stick_last_bias = bias;
  }

  void pack_components() {
    const RolloutSizes& sizes = block.sizes;
    float* last = zeros(sizes.components * sizes.width * 2 * padded_latent_);
    float* bias = zeros(sizes.components * 2 * padded_latent_);
    for (std::int64_t k = 0; k < sizes.components; ++k) {
      for (std::int64_t i = 0; i < 2 * sizes.latent; ++i) {
        const std::int64_t side = i / sizes.latent;
        const std::int64_t from = (side * sizes.components + k) * sizes.latent + i % sizes.latent;
        const std::int64_t column = side * padded_latent_ + i % sizes.latent;
        bias[k * 2 * padded_latent_ + column] = block.weights.last_bias[from];
        for (std::int64_t w = 0; w < sizes.width; ++w) {
          last[(k * sizes.width + w) * 2 * padded_latent_ + column] =
              narrowed(block.weights.last[from * sizes.width + w]);
        }
      }
    }
    block.last = last;
    block.last_bias = bias;
  }

  void allocate() {
    const RolloutSizes& sizes = block.sizes;
    RolloutScratch& scratch = block.scratch;
    scratch.latent_width = padded_latent_;
    scratch.longest =
        whole(std::max({4 * sizes.hidden, sizes.width, sizes.outputs(), sizes.joined()}), 16) + 2 * padded_latent_;
    scratch.stick_capacity = whole(sizes.batch * (sizes.components - 1), set_.lanes);
    scratch.gates = zeros(sizes.batch * block.joint.columns);
    scratch.linear = zeros(sizes.batch * block.first.columns);
    scratch.stick_first = zeros(sizes.batch * block.stick_first.columns);
    scratch.stick_last = zeros(sizes.batch * block.stick_last.columns);
    scratch.sticks = zeros(6 * scratch.stick_capacity);
    // sticks beyond the last row are computed and not read
    std::fill_n(scratch.sticks + 2 * scratch.stick_capacity, scratch.stick_capacity, 0.5F);
    scratch.rows = zeros(sizes.batch * std::max({4 * sizes.hidden, sizes.width, sizes.joined()}));
    scratch.row = zeros(4 * scratch.longest);
    scratch.latents = zeros(sizes.batch * padded_latent_);
    scratch.raw = zeros(sizes.batch * sizes.hidden);
    scratch.cell = zeros(sizes.batch * sizes.hidden);
    scratch.sums = zeros(sizes.vectors());
  }

  const InstructionSet& set_;
  std::vector<std::unique_ptr<Buffer>> buffers_;
  std::int64_t padded_latent_ = 0;
};

}  // namespace

void latent_rollout(const RolloutSizes& sizes, const RolloutWeights& weights, const RolloutInputs& inputs,
                    const RolloutRecord& record, const std::string& instructions) {
  Call(sizes, weights, inputs, record, instructions).forward();
}

void latent_rollout_backward(const RolloutSizes& sizes, const RolloutWeights& weights, const RolloutInputs& inputs,
                             const RolloutRecord& record, const RolloutGradients& gradients,
                             const std::string& instructions) {
  Call(sizes, weights, inputs, record, instructions).backward(gradients);
}

}  // namespace aime
