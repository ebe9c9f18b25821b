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
    block.first = pack(sizes.hidden, sizes.width, sizes.bfloat16,
                       [&](std::int64_t k, std::int64_t c) { return weights.first[c * sizes.hidden + k]; });
    block.joint = pack(inputs + sizes.hidden, 4 * sizes.hidden, sizes.bfloat16, [&](std::int64_t k, std::int64_t c) {
      return k < inputs ? weights.input[c * inputs + k] : weights.recurrent[c * sizes.hidden + k - inputs];
    });
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
    block.first = pack(sizes.width, sizes.hidden, sizes.bfloat16,
                       [&](std::int64_t k, std::int64_t c) { return weights.first[k * sizes.hidden + c]; });
    block.joint = pack(4 * sizes.hidden, inputs + sizes.hidden, sizes.bfloat16, [&](std::int64_t k, std::int64_t c) {
      return c < inputs ? weights.input[k * inputs + c] : weights.recurrent[k * sizes.hidden + c - inputs];
    });
    float* last = zeros(sizes.outputs() * sizes.width);
    for (std::int64_t i = 0; i < sizes.outputs() * sizes.width; ++i) last[i] = narrowed(weights.last[i]);
    block.last = last;
    allocate();
    set_.rollout_backward(block);
  }

  RolloutBlock block{};

 private:
  float* zeros(std::int64_t count) {
    buffers_.push_back(std::make_unique<Buffer>(count));
    std::fill_n(buffers_.back()->data(), count, 0.0F);
    return buffers_.back()->data();
  }

  float narrowed(float value) const { return block.sizes.bfloat16 ? bfloat16_to_float(to_bfloat16(value)) : value; }

  // `value(k, c)` for rows k and columns c of a matrix.
  template <typename Value>
  PackedMatrix pack(std::int64_t rows, std::int64_t columns, bool bfloat16, const Value& value) {
    const bool pairs = bfloat16 && set_.multiplies_bfloat16_pairs();
    const std::int64_t step = pairs ? 2 : 1;
    PackedMatrix matrix{(rows + step - 1) / step, whole(columns, set_.panel_columns), nullptr, pairs};
    float* data = zeros(matrix.rows * matrix.columns);
    matrix.data = data;
    for (std::int64_t c = 0; c < columns; ++c) {
      const std::int64_t panel = c / set_.panel_columns;
      const std::int64_t start = panel * matrix.rows * set_.panel_columns + c % set_.panel_columns;
      for (std::int64_t k = 0; k < rows; ++k) {
        float* to = data + start + k / step * set_.panel_columns;
        if (pairs) {
          const std::uint16_t half = to_bfloat16(value(k, c));
          std::memcpy(reinterpret_cast<char*>(to) + 2 * (k % 2), &half, sizeof(half));
        } else {
          *to = bfloat16 ? narrowed(value(k, c)) : value(k, c);
        }
      }
    }
    return matrix;
  }

  void pack_sticks() {
    const RolloutSizes& sizes = block.sizes;
    const RolloutWeights& weights = block.weights;
    block.stick_first = pack(sizes.hidden, sizes.stick_width, false, [&](std::int64_t k, std::int64_t c) {
      return weights.stick_first[c * sizes.hidden + k];
    });
    const std::int64_t outputs = 2 * (sizes.components - 1);
    block.stick_last = pack(sizes.stick_width, outputs, false, [&](std::int64_t k, std::int64_t c) {
      return weights.stick_last[c * sizes.stick_width + k];
    });
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
    scratch.longest = whole(std::max({4 * sizes.hidden, sizes.width, sizes.outputs(), sizes.joined()}), 16) +
                      2 * padded_latent_;
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
