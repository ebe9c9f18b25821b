#include "frame_error.hpp"

#include <memory>

#include "buffer.hpp"
#include "instruction_set.hpp"
#include "parallel.hpp"

namespace aime {
namespace {

constexpr double kNanoseconds = 0.5;  // a value

// One thread's memory and the image in hand, which goes by row by row.
class Worker {
 public:
  Worker(const ErrorInputs& inputs, const InstructionSet& set)
      : inputs_(inputs),
        set_(set),
        channels_(inputs.decoded.size(1)),
        height_(inputs.decoded.size(2)),
        width_(inputs.decoded.size(3)),
        count_(channels_ * width_),
        padded_((count_ + set.lanes - 1) / set.lanes * set.lanes),
        memory_(2 * padded_ + width_) {}

  void forward(std::int64_t image, float* sums) {
    double sum = 0.0;
    for (std::int64_t row = 0; row < height_; ++row) {
      const ErrorBlock block = place(image, row);
      sum += static_cast<double>(set_.frame_error(block));
    }
    sums[image] = static_cast<float>(sum);
  }

  void backward(std::int64_t image, const Tensor& upstream, void* gradient) {
    float scale = 0.0F;
    upstream.read(image * upstream.stride(0), 1, 1, &scale);
    const std::int64_t bytes = inputs_.decoded.dtype == Dtype::kBFloat16 ? 2 : 4;
    for (std::int64_t row = 0; row < height_; ++row) {
      ErrorBlock block = place(image, row);
      block.scale = 2.0F * scale;
      block.gradient = static_cast<char*>(gradient) + (image * height_ + row) * count_ * bytes;
      set_.frame_error_backward(block);
    }
  }

 private:
  ErrorBlock place(std::int64_t image, std::int64_t row) {
    const Tensor& decoded = inputs_.decoded;
    const Tensor& frames = inputs_.frames;
    const Tensor& weights = inputs_.weights;
    ErrorBlock block = {};
    block.channels = channels_;
    block.width = width_;
    block.padded = padded_;
    block.halves = decoded.dtype == Dtype::kBFloat16;
    block.decoded = static_cast<const char*>(decoded.data) +
                    (image * decoded.stride(0) + row * decoded.stride(2)) * (block.halves ? 2 : 4);
    block.bytes = inputs_.bytes;
    block.frame = static_cast<const char*>(frames.data) +
                  (image * frames.stride(0) + row * frames.stride(2)) * (block.bytes ? 1 : 4);
    block.channel_stride = frames.stride(1);
    block.pixel_stride = frames.stride(3);
    block.mean = inputs_.mean + row * count_;
    block.factor = inputs_.factor + row * count_;
    block.errors = memory_.data();
    block.weighted = memory_.data() + padded_;
    if (weights.data != nullptr) {
      float* to = memory_.data() + 2 * padded_;
      weights.read(image * weights.stride(0) + row * weights.stride(1), weights.stride(2), width_, to);
      block.weights = to;
    }
    return block;
  }

  const ErrorInputs& inputs_;
  const InstructionSet& set_;
  std::int64_t channels_;
  std::int64_t height_;
  std::int64_t width_;
  std::int64_t count_;   // values of a row
  std::int64_t padded_;  // to whole vectors
  Buffer memory_;        // of errors, weighted errors and weights of a row
};

double cost(const ErrorInputs& inputs) {
  const Tensor& decoded = inputs.decoded;
  return kNanoseconds * static_cast<double>(decoded.size(0) * decoded.size(1) * decoded.size(2) * decoded.size(3));
}

}  // namespace

void frame_error(const ErrorInputs& inputs, float* sums, int threads, const std::string& instructions) {
  const InstructionSet& set = choose_instruction_set("frame_error", instructions);
  run_tiles(inputs.decoded.size(0), threads, cost(inputs), [&]() -> TileWork {
    const auto worker = std::make_shared<Worker>(inputs, set);
    return [worker, sums](std::int64_t tile) { worker->forward(tile, sums); };
  });
}

void frame_error_backward(const ErrorInputs& inputs, const Tensor& upstream, void* gradient, int threads,
                          const std::string& instructions) {
  const InstructionSet& set = choose_instruction_set("frame_error", instructions);
  run_tiles(inputs.decoded.size(0), threads, cost(inputs), [&]() -> TileWork {
    const auto worker = std::make_shared<Worker>(inputs, set);
    return [worker, &upstream, gradient](std::int64_t tile) { worker->backward(tile, upstream, gradient); };
  });
}

}  // namespace aime
