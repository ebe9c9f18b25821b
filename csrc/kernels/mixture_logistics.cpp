#include "mixture_logistics.hpp"

#include <algorithm>
#include <memory>
#include <vector>

#include "buffer.hpp"
#include "instruction_set.hpp"
#include "parallel.hpp"

namespace aime {
namespace {

constexpr std::int64_t kChunk = 256;  // pixels of a tile: rows of 1 KiB, some 130 of them at ten components
constexpr std::int64_t kChannels = 3;

// A tensor whose last two axes are pixels, seen as planes.
class Planes {
 public:
  explicit Planes(const Tensor& tensor)
      : tensor_(tensor),
        width_(tensor.sizes.back()),
        across_(tensor.strides.back()),
        down_(tensor.strides[tensor.strides.size() - 2]),
        even_(width_ <= 1 || tensor.size(tensor.sizes.size() - 2) <= 1 || down_ == width_ * across_) {}

  // Pixels [first, first + count) of the plane at `start`: a pointer into the tensor, or to `scratch`, where `padded`
  // values then stand.
  const float* pixels(std::int64_t start, std::int64_t first, std::int64_t count, std::int64_t padded,
                      float* scratch) const {
    const std::int64_t step = width_ == 1 ? down_ : across_;
    if (even_ && (step == 1 || count == 1) && count == padded) {
      if (const float* from = tensor_.floats(start + first * step)) return from;
    }
    if (even_) {
      tensor_.read(start + first * step, step, count, scratch);
    } else {
      for (std::int64_t done = 0; done < count;) {
        const std::int64_t row = (first + done) / width_;
        const std::int64_t column = (first + done) % width_;
        const std::int64_t run = std::min(width_ - column, count - done);
        tensor_.read(start + row * down_ + column * across_, across_, run, scratch + done);
        done += run;
      }
    }
    std::fill(scratch + count, scratch + padded, 0.0F);
    return scratch;
  }

 private:
  const Tensor& tensor_;
  std::int64_t width_;
  std::int64_t across_;
  std::int64_t down_;
  bool even_;
};

// One thread's pointers and memory for the block of pixels in hand.
class Worker {
 public:
  Worker(const LogisticsInputs& inputs, const InstructionSet& set)
      : inputs_(inputs),
        set_(set),
        components_(inputs.logits.size(1)),
        area_(inputs.logits.size(2) * inputs.logits.size(3)),
        chunks_((area_ + kChunk - 1) / kChunk),
        in_(10 * components_ + 13),
        memory_((2 * (10 * components_ + 13) + 2 * components_) * kChunk) {}

  // Points the block at the inputs of a tile.
  void place(std::int64_t tile) {
    image_ = tile / chunks_;
    first_ = (tile % chunks_) * kChunk;
    count_ = std::min(kChunk, area_ - first_);
    padded_ = (count_ + set_.lanes - 1) / set_.lanes * set_.lanes;
    used_ = 0;
    next_ = 0;
    x_ = rows(inputs_.x, kChannels, 1);
    logits_ = rows(inputs_.logits, components_, 1);
    means_ = rows(inputs_.means, components_, kChannels);
    log_scales_ = rows(inputs_.log_scales, components_, kChannels);
    coefficients_ = rows(inputs_.coefficients, components_, kChannels);
    float* scratch = memory_.data() + 2 * (10 * components_ + 13) * kChunk;
    block_ = {};
    block_.components = components_;
    block_.pixels = padded_;
    block_.x = x_;
    block_.logits = logits_;
    block_.means = means_;
    block_.log_scales = log_scales_;
    block_.coefficients = coefficients_;
    block_.scratch = scratch;
  }

  // Pointers to the planes of the image in hand, outer x inner of them (inner: the axis before the pixels, if any).
  const float** rows(const Tensor& tensor, std::int64_t outer, std::int64_t inner) {
    const Planes planes(tensor);
    const float** result = in_.data() + next_;
    const std::int64_t inner_stride = inner > 1 ? tensor.stride(2) : 0;
    const std::int64_t outer_stride = tensor.sizes.size() > 3 ? tensor.stride(1) : 0;
    for (std::int64_t o = 0; o < outer; ++o) {
      for (std::int64_t i = 0; i < inner; ++i) {
        const std::int64_t start = image_ * tensor.stride(0) + o * outer_stride + i * inner_stride;
        in_[static_cast<std::size_t>(next_++)] = planes.pixels(start, first_, count_, padded_, scratch_row());
      }
    }
    return result;
  }

  // Where the block writes a plane of a row-major result: in place, or beside it if the block is padded.
  float* target(float* plane) { return count_ == padded_ ? plane + first_ : scratch_row(); }
  void finish(const float* written, float* plane) const {
    if (count_ != padded_) std::copy_n(written, count_, plane + first_);
  }

  void forward(std::int64_t tile, const LogisticsOutputs& outputs, double* partial) {
    place(tile);
    float* planes[kChannels];
    float* mean[kChannels];
    for (std::int64_t c = 0; c < kChannels; ++c) {
      planes[c] = outputs.mean + (image_ * kChannels + c) * area_;
      mean[c] = target(planes[c]);
    }
    float* joint_plane = outputs.joint + image_ * area_;
    float* normaliser_plane = outputs.normaliser + image_ * area_;
    block_.mean = mean;
    block_.joint = target(joint_plane);
    block_.normaliser = target(normaliser_plane);
    set_.logistics(block_);
    double sum = 0.0;
    const float* weights = inputs_.weights.data == nullptr ? nullptr : *rows(inputs_.weights, 1, 1);
    for (std::int64_t p = 0; p < count_; ++p) {
      sum -= static_cast<double>(block_.joint[p]) * (weights == nullptr ? 1.0 : static_cast<double>(weights[p]));
    }
    *partial = sum;
    for (std::int64_t c = 0; c < kChannels; ++c) finish(mean[c], planes[c]);
    finish(block_.joint, joint_plane);
    finish(block_.normaliser, normaliser_plane);
  }

  void backward(std::int64_t tile, const LogisticsGradients& gradients) {
    place(tile);
    block_.g_mean = rows(gradients.g_mean, kChannels, 1);
    const float** mean = rows(gradients.mean, kChannels, 1);
    float* means[kChannels];
    for (std::int64_t c = 0; c < kChannels; ++c) means[c] = const_cast<float*>(mean[c]);  // read only in this direction
    block_.mean = means;
    block_.joint = const_cast<float*>(*rows(gradients.joint, 1, 1));
    block_.normaliser = const_cast<float*>(*rows(gradients.normaliser, 1, 1));
    float gradient = 0.0F;
    gradients.g_nll.read(image_ * gradients.g_nll.stride(0), 1, 1, &gradient);
    float* upstream = scratch_row();
    std::fill_n(upstream, padded_, gradient);
    if (inputs_.weights.data != nullptr) {
      const float* weights = *rows(inputs_.weights, 1, 1);
      for (std::int64_t p = 0; p < padded_; ++p) upstream[p] *= weights[p];
    }
    block_.upstream = upstream;
    out_.clear();
    targets(gradients.logits, 1);
    targets(gradients.means, kChannels);
    targets(gradients.log_scales, kChannels);
    targets(gradients.coefficients, kChannels);
    block_.g_logits = written_.data();
    block_.g_means = block_.g_logits + components_;
    block_.g_log_scales = block_.g_means + kChannels * components_;
    block_.g_coefficients = block_.g_log_scales + kChannels * components_;
    set_.logistics_backward(block_);
    for (std::size_t row = 0; row < out_.size(); ++row) finish(written_[row], out_[row]);
    written_.clear();
  }

 private:
  void targets(float* tensor, std::int64_t inner) {
    for (std::int64_t row = 0; row < components_ * inner; ++row) {
      out_.push_back(tensor + (image_ * components_ * inner + row) * area_);
      written_.push_back(target(out_.back()));
    }
  }
  float* scratch_row() { return memory_.data() + kChunk * used_++; }

  const LogisticsInputs& inputs_;
  const InstructionSet& set_;
  std::int64_t components_;
  std::int64_t area_;
  std::int64_t chunks_;
  std::vector<const float*> in_;
  std::vector<float*> out_;
  std::vector<float*> written_;
  Buffer memory_;
  LogisticsBlock block_{};
  const float** x_ = nullptr;
  const float** logits_ = nullptr;
  const float** means_ = nullptr;
  const float** log_scales_ = nullptr;
  const float** coefficients_ = nullptr;
  std::int64_t image_ = 0;
  std::int64_t first_ = 0;
  std::int64_t count_ = 0;
  std::int64_t padded_ = 0;
  std::int64_t used_ = 0;
  std::int64_t next_ = 0;
};

std::int64_t chunks_of(const LogisticsInputs& inputs) {
  return (inputs.logits.size(2) * inputs.logits.size(3) + kChunk - 1) / kChunk;
}

// Measured with AVX-512: 3 ns a pixel and component forward, 4 backward.
double nanoseconds(const LogisticsInputs& inputs) {
  double elements = 4.0;
  for (const std::int64_t size : inputs.logits.sizes) elements *= static_cast<double>(size);
  return elements;
}

}  // namespace

void mixture_logistics(const LogisticsInputs& inputs, const LogisticsOutputs& outputs, int threads,
                       const std::string& instructions) {
  const InstructionSet& set = choose_instruction_set("mixture_logistics_nll", instructions);
  const std::int64_t images = inputs.logits.size(0);
  const std::int64_t chunks = chunks_of(inputs);
  std::vector<double> partial(static_cast<std::size_t>(images * chunks));
  run_tiles(images * chunks, threads, nanoseconds(inputs), [&]() -> TileWork {
    const auto worker = std::make_shared<Worker>(inputs, set);
    return [&, worker](std::int64_t tile) { worker->forward(tile, outputs, partial.data() + tile); };
  });
  for (std::int64_t image = 0; image < images; ++image) {
    double sum = 0.0;
    for (std::int64_t chunk = 0; chunk < chunks; ++chunk)
      sum += partial[static_cast<std::size_t>(image * chunks + chunk)];
    outputs.nll[image] = static_cast<float>(sum);
  }
}

void mixture_logistics_backward(const LogisticsInputs& inputs, const LogisticsGradients& gradients, int threads,
                                const std::string& instructions) {
  const InstructionSet& set = choose_instruction_set("mixture_logistics_nll", instructions);
  run_tiles(inputs.logits.size(0) * chunks_of(inputs), threads, nanoseconds(inputs), [&]() -> TileWork {
    const auto worker = std::make_shared<Worker>(inputs, set);
    return [&, worker](std::int64_t tile) { worker->backward(tile, gradients); };
  });
}

}  // namespace aime
