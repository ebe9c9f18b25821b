// latent_rollout forward and backward: memory that is allocated to the last element, every instruction set, both types.
// What it computes is held to autograd in tests/world_model/test_compiled_rollout.py.
#include "../kernels/latent_rollout.hpp"
#include "../kernels/vq_lookup.hpp"
#include "check.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <deque>
#include <random>
#include <string>
#include <vector>

namespace {

// Arrays of one rollout; rows in groups of 8, 4 and 1, widths that are no whole panels, an odd number of inputs.
class Problem {
 public:
  explicit Problem(bool bfloat16) : sizes{3, 13, 32, 48, 16, 3, 6, 1, bfloat16} {}

  // Forward and backward; the largest size of a gradient of a bias or LayerNorm.
  float run(const std::string& instructions) {
    const std::int64_t frames = sizes.frames;
    const std::int64_t batch = sizes.batch;
    const std::int64_t rows = frames * batch;
    const std::int64_t hidden = sizes.hidden;
    const std::int64_t width = sizes.width;
    const std::int64_t sticks = 2 * (sizes.components - 1);
    const aime::RolloutWeights weights{normal(width * hidden),
                                       normal(width),
                                       normal(width),
                                       normal(width),
                                       normal(sizes.outputs() * width),
                                       normal(sizes.outputs()),
                                       normal(sizes.latent),
                                       normal(hidden),
                                       normal(hidden),
                                       normal(4 * hidden * sizes.inputs()),
                                       normal(4 * hidden * hidden),
                                       normal(4 * hidden),
                                       normal(sizes.stick_width * hidden),
                                       normal(sizes.stick_width),
                                       normal(sizes.stick_width),
                                       normal(sizes.stick_width),
                                       normal(sticks * sizes.stick_width),
                                       normal(sticks)};
    float* uniform = array(rows * sticks / 2);
    std::fill_n(uniform, rows * sticks / 2, 0.3F);
    const aime::RolloutInputs inputs{normal(rows * sizes.action),     normal(batch * hidden),
                                     normal(batch * sizes.latent),    normal(batch * hidden),
                                     normal(batch * hidden),          uniform,
                                     normal(rows * sizes.components), normal(rows * sizes.latent)};
    std::vector<std::int32_t> chosen(static_cast<std::size_t>(rows), -1);
    const aime::RolloutRecord record{array(rows * hidden),
                                     array(rows * sizes.latent),
                                     narrow(rows * hidden),
                                     narrow(rows * width),
                                     narrow(rows * sizes.joined()),
                                     array(rows * 4 * hidden),
                                     array((rows + batch) * hidden),
                                     array(rows * hidden),
                                     array(rows),
                                     array(rows * width),
                                     array(rows),
                                     array(rows * sizes.latent),
                                     chosen.data()};
    aime::latent_rollout(sizes, weights, inputs, record, instructions);
    for (const std::int32_t component : chosen) CHECK(component >= 0 && component < sizes.components);
    const aime::RolloutGradients gradients{
        normal(rows * hidden), normal(rows * sizes.latent),    narrow(rows * 4 * hidden),
        narrow(rows * width),  narrow(rows * sizes.outputs()), array(rows * sizes.action),
        array(batch * hidden), array(batch * sizes.latent),    array(batch * hidden),
        array(batch * hidden), array(sizes.vectors())};
    aime::latent_rollout_backward(sizes, weights, inputs, record, gradients, instructions);
    float largest = 0.0F;
    for (std::int64_t i = 0; i < sizes.vectors(); ++i) {
      CHECK(std::isfinite(gradients.vectors[i]));
      largest = std::max(largest, std::abs(gradients.vectors[i]));
    }
    return largest;
  }

  aime::RolloutSizes sizes;

 private:
  float* array(std::int64_t count) {
    arrays_.emplace_back(static_cast<std::size_t>(count), 0.0F);
    return arrays_.back().data();
  }

  float* normal(std::int64_t count) {
    std::normal_distribution<float> distribution(0.0F, 0.2F);
    float* values = array(count);
    for (std::int64_t i = 0; i < count; ++i) values[i] = distribution(generator_);
    return values;
  }

  void* narrow(std::int64_t count) {
    if (!sizes.bfloat16) return array(count);
    halves_.emplace_back(static_cast<std::size_t>(count), std::uint16_t{0});
    return halves_.back().data();
  }

  std::mt19937 generator_{1};
  std::deque<std::vector<float>> arrays_;
  std::deque<std::vector<std::uint16_t>> halves_;
};

}  // namespace

TEST(latent_rollout_stays_within_its_arrays) {
  for (const std::string& instructions : aime::instruction_sets()) {
    for (const bool bfloat16 : {false, true}) CHECK(Problem(bfloat16).run(instructions) > 0.0F);
  }
}

TEST(latent_rollout_refuses_sizes_that_it_cannot_take) {
  Problem problem(false);
  problem.sizes.width = 24;
  CHECK_THROWS(std::invalid_argument, "width: expected a positive multiple of 16, found 24", problem.run(""));
  problem.sizes.width = 48;
  problem.sizes.frames = 0;
  CHECK_THROWS(std::invalid_argument, "frames: expected at least 1, found 0", problem.run(""));
}
