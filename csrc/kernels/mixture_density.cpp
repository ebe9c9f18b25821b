#include "mixture_density.hpp"

#include <algorithm>
#include <memory>
#include <vector>

#include "buffer.hpp"
#include "instruction_set.hpp"
#include "parallel.hpp"

namespace aime {
namespace {

constexpr double kLog2Pi = 1.8378770664093454836;
constexpr std::int64_t kMaxPartials = 64;  // partial sums of the gradients of shared components

std::int64_t padded(std::int64_t count, std::int64_t lanes) { return (count + lanes - 1) / lanes * lanes; }

// Sizes, and how rows are cut into tiles: by the sizes alone, so that sums have one order for any number of threads.
struct Plan {
  Plan(const DensityInputs& inputs, const InstructionSet& set)
      : samples(inputs.z.size(0)),
        rows(inputs.z.size(1)),
        components(inputs.log_pi.size(1)),
        width(inputs.z.size(2)),
        lane_width(padded(width, set.lanes)),
        lane_samples(padded(samples, set.lanes)),
        lane_components(padded(components, set.lanes)) {
    const std::int64_t work = components * lane_width * (samples + 4);
    rows_per_tile = std::min<std::int64_t>(std::max<std::int64_t>(32768 / work, 1), 256);
    if (inputs.shared()) rows_per_tile = std::max(rows_per_tile, (rows + kMaxPartials - 1) / kMaxPartials);
    tiles = (rows + rows_per_tile - 1) / rows_per_tile;
    // measured with AVX-512: .15 ns a sample and element forward, .3 backward, .4 for reading an element
    nanoseconds = static_cast<double>(rows) * static_cast<double>(work) * 0.15;
  }

  std::int64_t samples;
  std::int64_t rows;
  std::int64_t components;
  std::int64_t width;
  std::int64_t lane_width;
  std::int64_t lane_samples;
  std::int64_t lane_components;
  std::int64_t rows_per_tile = 1;
  std::int64_t tiles = 0;
  double nanoseconds = 0.0;
};

// One thread's memory.
class Worker {
 public:
  Worker(const DensityInputs& inputs, const Plan& plan, const InstructionSet& set)
      : inputs_(inputs),
        plan_(plan),
        set_(set),
        in_place_(inputs.means.dtype == Dtype::kFloat32 && inputs.log_scales.dtype == Dtype::kFloat32 &&
                  plan.width == plan.lane_width && inputs.means.strides.back() == 1 &&
                  inputs.log_scales.strides.back() == 1 && component_stride(inputs.means) == plan.width &&
                  component_stride(inputs.log_scales) == plan.width),
        samples_(3 * plan.samples * plan.lane_width),
        posterior_(2 * plan.lane_width),
        log_pi_(2 * plan.lane_components),
        scratch_(plan.lane_width + (plan.lane_components + 2) * (plan.lane_samples + 1)),
        per_sample_(2 * plan.lane_samples),
        components_(in_place_ ? 0 : 2 * plan.components * plan.lane_width),
        gradients_(in_place_ ? 0 : 2 * plan.components * plan.lane_width) {
    block_.samples = plan.samples;
    block_.components = plan.components;
    block_.width = plan.lane_width;
    block_.constant = static_cast<float>(0.5 * kLog2Pi * static_cast<double>(plan.width));
    block_.stride = plan.lane_width;
    block_.g_stride = plan.lane_width;
    block_.z = samples_.data();
    block_.spread = block_.z + plan.samples * plan.lane_width;
    block_.g_z = block_.spread + plan.samples * plan.lane_width;
    block_.log_pi = log_pi_.data();
    block_.g_log_pi = log_pi_.data() + plan.lane_components;
    block_.scratch = scratch_.data();
    block_.log_prob = per_sample_.data();
    block_.gradient = per_sample_.data() + plan.lane_samples;
    std::fill_n(per_sample_.data(), 2 * plan.lane_samples, 0.0F);
    std::fill_n(scratch_.data(), plan.lane_width + (plan.lane_components + 2) * (plan.lane_samples + 1), 0.0F);
    if (inputs.has_posterior()) {
      block_.mean_q = posterior_.data();
      block_.log_scale_q = posterior_.data() + plan.lane_width;
    }
  }

  void forward(std::int64_t tile, const DensityOutputs& outputs) {
    for (std::int64_t n = tile * plan_.rows_per_tile; n < last(tile); ++n) {
      place(n, n == tile * plan_.rows_per_tile);
      set_.density(block_);
      double mean = 0.0;
      for (std::int64_t s = 0; s < plan_.samples; ++s) {
        outputs.log_prob[s * plan_.rows + n] = block_.log_prob[s];
        mean += static_cast<double>(block_.log_prob[s]);
      }
      if (outputs.kl == nullptr) continue;
      double entropy = 0.5 * (kLog2Pi + 1) * static_cast<double>(plan_.width);
      for (std::int64_t d = 0; d < plan_.width; ++d) entropy += static_cast<double>(block_.log_scale_q[d]);
      outputs.kl[n] = static_cast<float>(-entropy - mean / static_cast<double>(plan_.samples));
    }
  }

  // `partial` is where the tile sums the gradients of shared components, (2, K, lane_width), or null.
  void backward(std::int64_t tile, const DensityGradients& gradients, float* partial) {
    const std::int64_t size = plan_.components * plan_.lane_width;
    block_.accumulate = partial != nullptr;
    if (partial != nullptr) {
      std::fill_n(partial, 2 * size, 0.0F);
      block_.g_means = partial;
      block_.g_log_scales = partial + size;
    }
    for (std::int64_t n = tile * plan_.rows_per_tile; n < last(tile); ++n) {
      place(n, n == tile * plan_.rows_per_tile);
      float* per_sample = per_sample_.data();
      gradients.log_prob.read(n * gradients.log_prob.stride(1), gradients.log_prob.stride(0), plan_.samples,
                              per_sample);
      float* upstream = per_sample + plan_.lane_samples;
      if (inputs_.has_posterior()) {
        gradients.gradient.read(n * gradients.gradient.stride(0), 1, 1, upstream);
        std::fill_n(upstream, plan_.samples, -*upstream / static_cast<float>(plan_.samples));
      } else {
        gradients.gradient.read(n * gradients.gradient.stride(1), gradients.gradient.stride(0), plan_.samples,
                                upstream);
      }
      std::fill_n(block_.g_z, plan_.samples * plan_.lane_width, 0.0F);
      const std::int64_t at = n * plan_.components * plan_.width;
      if (partial == nullptr) {
        block_.g_means = in_place_ ? gradients.means + at : gradients_.data();
        block_.g_log_scales = in_place_ ? gradients.log_scales + at : gradients_.data() + size;
      }
      set_.density_backward(block_);
      write(n, gradients, upstream[0]);
      if (partial == nullptr && !in_place_) {
        unpad(block_.g_means, gradients.means + at);
        unpad(block_.g_log_scales, gradients.log_scales + at);
      }
    }
  }

 private:
  static std::int64_t component_stride(const Tensor& tensor) { return tensor.strides[tensor.strides.size() - 2]; }
  std::int64_t last(std::int64_t tile) const { return std::min(plan_.rows, (tile + 1) * plan_.rows_per_tile); }

  void read_row(const Tensor& tensor, std::int64_t start, std::int64_t step, float* to) const {
    tensor.read(start, step, plan_.width, to);
    std::fill(to + plan_.width, to + plan_.lane_width, 0.0F);
  }

  // Points the block at row n.
  void place(std::int64_t n, bool first_of_tile) {
    const Tensor& z = inputs_.z;
    for (std::int64_t s = 0; s < plan_.samples; ++s) {
      read_row(z, s * z.stride(0) + n * z.stride(1), z.stride(2), block_.z + s * plan_.lane_width);
    }
    if (inputs_.has_posterior()) {
      read_row(inputs_.mean_q, n * inputs_.mean_q.stride(0), inputs_.mean_q.stride(1), posterior_.data());
      read_row(inputs_.log_scale_q, n * inputs_.log_scale_q.stride(0), inputs_.log_scale_q.stride(1),
               posterior_.data() + plan_.lane_width);
    }
    inputs_.log_pi.read(n * inputs_.log_pi.stride(0), inputs_.log_pi.stride(1), plan_.components, log_pi_.data());
    const std::int64_t row = inputs_.shared() ? 0 : n;
    if (in_place_) {
      block_.means = inputs_.means.floats(row * (inputs_.shared() ? 0 : inputs_.means.stride(0)));
      block_.log_scales = inputs_.log_scales.floats(row * (inputs_.shared() ? 0 : inputs_.log_scales.stride(0)));
    } else if (!inputs_.shared() || first_of_tile) {
      block_.means = components_.data();
      block_.log_scales = components_.data() + plan_.components * plan_.lane_width;
      read_components(inputs_.means, row, components_.data());
      read_components(inputs_.log_scales, row, components_.data() + plan_.components * plan_.lane_width);
    }
  }

  void read_components(const Tensor& tensor, std::int64_t row, float* to) const {
    const std::int64_t start = inputs_.shared() ? 0 : row * tensor.stride(0);
    for (std::int64_t k = 0; k < plan_.components; ++k) {
      read_row(tensor, start + k * component_stride(tensor), tensor.strides.back(), to + k * plan_.lane_width);
    }
  }

  void unpad(const float* from, float* to) const {
    for (std::int64_t k = 0; k < plan_.components; ++k) {
      std::copy_n(from + k * plan_.lane_width, plan_.width, to + k * plan_.width);
    }
  }

  void write(std::int64_t n, const DensityGradients& gradients, float upstream) const {
    std::copy_n(block_.g_log_pi, plan_.components, gradients.log_pi + n * plan_.components);
    if (!inputs_.has_posterior()) {
      for (std::int64_t s = 0; s < plan_.samples; ++s) {
        std::copy_n(block_.g_z + s * plan_.lane_width, plan_.width, gradients.z + (s * plan_.rows + n) * plan_.width);
      }
      return;
    }
    const float entropy = upstream * static_cast<float>(plan_.samples);  // minus the gradient of the divergence
    for (std::int64_t d = 0; d < plan_.width; ++d) {
      float mean = 0.0F;
      float log_scale = entropy;
      for (std::int64_t s = 0; s < plan_.samples; ++s) {
        const std::int64_t at = s * plan_.lane_width + d;
        mean += block_.g_z[at];
        log_scale += block_.g_z[at] * block_.spread[at];
      }
      gradients.mean_q[n * plan_.width + d] = mean;
      gradients.log_scale_q[n * plan_.width + d] = log_scale;
    }
  }

  const DensityInputs& inputs_;
  const Plan& plan_;
  const InstructionSet& set_;
  bool in_place_;
  Buffer samples_;
  Buffer posterior_;
  Buffer log_pi_;
  Buffer scratch_;
  Buffer per_sample_;
  Buffer components_;
  Buffer gradients_;
  DensityBlock block_{};
};

// Adds the tiles' partial sums in their order.
void add_partials(const Plan& plan, const float* partials, float* means, float* log_scales) {
  const std::int64_t size = plan.components * plan.lane_width;
  for (std::int64_t k = 0; k < plan.components; ++k) {
    for (std::int64_t d = 0; d < plan.width; ++d) {
      float mean = 0.0F;
      float log_scale = 0.0F;
      for (std::int64_t tile = 0; tile < plan.tiles; ++tile) {
        const float* partial = partials + 2 * tile * size + k * plan.lane_width + d;
        mean += partial[0];
        log_scale += partial[size];
      }
      means[k * plan.width + d] = mean;
      log_scales[k * plan.width + d] = log_scale;
    }
  }
}

}  // namespace

void mixture_density(const DensityInputs& inputs, const DensityOutputs& outputs, int threads,
                     const std::string& instructions) {
  const InstructionSet& set = choose_instruction_set("mixture_kl", instructions);
  const Plan plan(inputs, set);
  run_tiles(plan.tiles, threads, plan.nanoseconds, [&]() -> TileWork {
    const auto worker = std::make_shared<Worker>(inputs, plan, set);
    return [&, worker](std::int64_t tile) { worker->forward(tile, outputs); };
  });
}

void mixture_density_backward(const DensityInputs& inputs, const DensityGradients& gradients, int threads,
                              const std::string& instructions) {
  const InstructionSet& set = choose_instruction_set("mixture_kl", instructions);
  const Plan plan(inputs, set);
  const std::int64_t size = 2 * plan.components * plan.lane_width;
  Buffer partials(inputs.shared() ? plan.tiles * size : 0);
  run_tiles(plan.tiles, threads, 2 * plan.nanoseconds, [&]() -> TileWork {
    const auto worker = std::make_shared<Worker>(inputs, plan, set);
    return [&, worker](std::int64_t tile) {
      worker->backward(tile, gradients, inputs.shared() ? partials.data() + tile * size : nullptr);
    };
  });
  if (inputs.shared()) add_partials(plan, partials.data(), gradients.means, gradients.log_scales);
}

namespace {

constexpr std::int64_t kSticksPerTile = 2048;
constexpr double kNanosecondsPerStick = 8.0;  // measured with AVX-512, forward; backward the same

// Rows of a (N, columns) tensor, packed one after another.
void pack(const Tensor& tensor, std::int64_t first, std::int64_t rows, std::int64_t columns, float* to) {
  for (std::int64_t r = 0; r < rows; ++r) {
    tensor.read((first + r) * tensor.stride(0), tensor.stride(1), columns, to + r * columns);
  }
}

// One thread's arrays for the rows of a tile.
struct StickArrays {
  StickArrays(const StickInputs& inputs, std::int64_t rows_per_tile, const InstructionSet& set)
      : columns(inputs.u.size(1)), capacity(padded(rows_per_tile * columns, set.lanes)), memory(8 * capacity) {}

  StickBlock read(const StickInputs& inputs, std::int64_t first, std::int64_t rows, const InstructionSet& set) {
    const std::int64_t count = rows * columns;
    StickBlock block{};
    block.count = padded(count, set.lanes);
    pack(inputs.log_a, first, rows, columns, row(0));
    pack(inputs.log_b, first, rows, columns, row(1));
    pack(inputs.u, first, rows, columns, row(2));
    for (int i = 0; i < 3; ++i) std::fill(row(i) + count, row(i) + block.count, i == 2 ? 0.5F : 0.0F);
    block.log_a = row(0);
    block.log_b = row(1);
    block.u = row(2);
    return block;
  }
  float* row(int index) { return memory.data() + index * capacity; }

  std::int64_t columns;
  std::int64_t capacity;
  Buffer memory;
};

std::int64_t rows_per_tile(std::int64_t columns) {
  return std::max<std::int64_t>(1, kSticksPerTile / std::max<std::int64_t>(columns, 1));
}

}  // namespace

void stick_log_weights(const StickInputs& inputs, float* log_pi, float* log_v, float* log_q, int threads,
                       const std::string& instructions) {
  const InstructionSet& set = choose_instruction_set("stick_log_weights", instructions);
  const std::int64_t rows = inputs.u.size(0);
  const std::int64_t columns = inputs.u.size(1);
  const std::int64_t step = rows_per_tile(columns);
  const double cost = static_cast<double>(rows * columns) * kNanosecondsPerStick;
  run_tiles((rows + step - 1) / step, threads, cost, [&]() -> TileWork {
    const auto arrays = std::make_shared<StickArrays>(inputs, step, set);
    return [&, arrays](std::int64_t tile) {
      const std::int64_t first = tile * step;
      const std::int64_t count = std::min(step, rows - first);
      StickBlock block = arrays->read(inputs, first, count, set);
      block.log_v = arrays->row(3);
      block.log_rest = arrays->row(4);
      block.log_q = arrays->row(5);
      set.sticks(block);
      std::copy_n(block.log_v, count * columns, log_v + first * columns);
      std::copy_n(block.log_q, count * columns, log_q + first * columns);
      for (std::int64_t r = 0; r < count; ++r) {
        float* to = log_pi + (first + r) * (columns + 1);
        float remaining = 0.0F;
        for (std::int64_t k = 0; k < columns; ++k) {
          to[k] = remaining + block.log_v[r * columns + k];
          remaining += block.log_rest[r * columns + k];
        }
        to[columns] = remaining;
      }
    };
  });
}

void stick_log_weights_backward(const StickInputs& inputs, const StickGradients& gradients, int threads,
                                const std::string& instructions) {
  const InstructionSet& set = choose_instruction_set("stick_log_weights", instructions);
  const std::int64_t rows = inputs.u.size(0);
  const std::int64_t columns = inputs.u.size(1);
  const std::int64_t step = rows_per_tile(columns);
  const double cost = static_cast<double>(rows * columns) * kNanosecondsPerStick;
  run_tiles((rows + step - 1) / step, threads, cost, [&]() -> TileWork {
    const auto arrays = std::make_shared<StickArrays>(inputs, step, set);
    const auto weights = std::make_shared<Buffer>(columns + 1);
    return [&, arrays, weights](std::int64_t tile) {
      const std::int64_t first = tile * step;
      const std::int64_t count = std::min(step, rows - first);
      StickBlock block = arrays->read(inputs, first, count, set);
      float* g_log_v = arrays->row(3);
      float* g_rest = arrays->row(4);
      float* g_log_q = arrays->row(5);
      for (int i = 3; i < 6; ++i) std::fill_n(arrays->row(i), block.count, 0.0F);
      pack(gradients.g_log_v, first, count, columns, g_log_v);
      pack(gradients.g_log_q, first, count, columns, g_log_q);
      for (std::int64_t r = 0; r < count; ++r) {
        float* g_pi = weights->data();
        gradients.g_log_pi.read((first + r) * gradients.g_log_pi.stride(0), gradients.g_log_pi.stride(1), columns + 1,
                                g_pi);
        float behind = 0.0F;  // the gradient of log(1 - v_k) sums those of the weights behind k
        for (std::int64_t k = columns; k-- > 0;) {
          behind += g_pi[k + 1];
          g_rest[r * columns + k] = behind;
          g_log_v[r * columns + k] += g_pi[k];
        }
      }
      block.g_log_v = g_log_v;
      block.g_rest = g_rest;
      block.g_log_q = g_log_q;
      block.g_log_a = arrays->row(6);
      block.g_log_b = arrays->row(7);
      set.sticks_backward(block);
      std::copy_n(block.g_log_a, count * columns, gradients.log_a + first * columns);
      std::copy_n(block.g_log_b, count * columns, gradients.log_b + first * columns);
    };
  });
}

}  // namespace aime
