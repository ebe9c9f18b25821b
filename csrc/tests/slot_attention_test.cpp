// Slot attention and vq_statistics: inside their memory, one answer on any number of threads, and gradients that are
// the slopes of what the forward pass computes.
#include "../kernels/slot_iterations.hpp"
#include "../kernels/vq_lookup.hpp"
#include "../kernels/vq_statistics.hpp"
#include "check.hpp"

#include <array>
#include <cmath>
#include <cstdint>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

using Values = std::vector<float>;

Values normal(std::int64_t count, unsigned seed, float scale = 1.0F) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> distribution(0.0F, scale);
  Values values(static_cast<std::size_t>(count));
  for (float& value : values) value = distribution(generator);
  return values;
}

aime::View view(const Values& values, std::int64_t first, std::int64_t second = 0, std::int64_t third = 0) {
  if (second == 0) return {values.data(), aime::Dtype::kFloat32, 1, {first, 0, 0}, {1, 0, 0}};
  if (third == 0) return {values.data(), aime::Dtype::kFloat32, 2, {first, second, 0}, {second, 1, 0}};
  return {values.data(), aime::Dtype::kFloat32, 3, {first, second, third}, {second * third, third, 1}};
}

std::int64_t padded(std::int64_t size) { return (size + 15) / 16 * 16; }

struct Sizes {
  std::int64_t batch, inputs, slots, channels, width, hidden;
};

// Every tensor is allocated to its last float.
struct Problem {
  explicit Problem(const Sizes& given) : size(given) {
    const auto [b, n, s, c, d, f] = size;
    const std::array<std::array<std::int64_t, 2>, aime::kSlotWeights> shapes = {
        {{c, 0},     {c, 0}, {d, 0}, {d, 0}, {d, d}, {d, c}, {d, c}, {3 * d, d}, {3 * d, d}, {3 * d, 0},
         {3 * d, 0}, {d, 0}, {d, 0}, {f, d}, {f, 0}, {d, f}, {d, 0}, {d, 0},     {d, 0},     {d, 0}}};
    inputs = normal(b * n * c, 1);
    slots = normal(b * s * d, 2);
    arguments.inputs = view(inputs, b, n, c);
    arguments.slots = view(slots, b, s, d);
    for (std::size_t i = 0; i < aime::kSlotWeights; ++i) {
      const auto [rows, columns] = shapes[i];
      const float scale = columns == 0 ? 0.5F : 1.0F / std::sqrt(static_cast<float>(columns));
      weights[i] = normal(columns == 0 ? rows : rows * columns, 3 + static_cast<unsigned>(i), scale);
    }
    for (std::size_t i = 0; i < aime::kSlotWeights; ++i) {
      arguments.weights[i] = view(weights[i], shapes[i][0], shapes[i][1]);
    }
    arguments.iters = 2;
    arguments.eps = 1e-8F;
    arguments.gelu = true;
    upstream = normal(b * s * d, 40);
    out.resize(slots.size());
    attention.resize(static_cast<std::size_t>(b * s * n));
    saved.resize(static_cast<std::size_t>(arguments.iters * b * s * (7 * padded(d) + padded(f) + 2 * padded(c) + 1)));
  }

  void forward(int threads, const std::string& instructions, bool save = true) {
    aime::slot_iterations(arguments, {out.data(), attention.data(), save ? saved.data() : nullptr}, threads,
                          instructions);
  }

  void backward(int threads, const std::string& instructions) {
    g_inputs.assign(inputs.size(), NAN);
    g_slots.assign(slots.size(), NAN);
    aime::SlotArgumentGradients gradients{};
    gradients.slots = view(upstream, size.batch, size.slots, size.width);
    gradients.saved = saved.data();
    gradients.inputs = g_inputs.data();
    gradients.initial = g_slots.data();
    for (std::size_t i = 0; i < aime::kSlotWeights; ++i) {
      g_weights[i].assign(weights[i].size(), NAN);
      gradients.weights[i] = g_weights[i].data();
    }
    aime::slot_iterations_backward(arguments, gradients, threads, instructions);
  }

  double loss(const std::string& instructions) {
    forward(1, instructions, false);
    double sum = 0.0;
    for (std::size_t i = 0; i < out.size(); ++i) sum += static_cast<double>(out[i]) * static_cast<double>(upstream[i]);
    return sum;
  }

  // Slope of the loss along random directions of one tensor, by the gradient and by two forward passes.
  void check_slope(Values& values, const Values& gradient, const std::string& instructions) {
    const Values direction = normal(static_cast<std::int64_t>(values.size()), 50);
    const Values before = values;
    constexpr float kStep = 3e-3F;
    double expected = 0.0;
    double norm = 0.0;
    std::array<double, 2> losses{};
    for (int side = 0; side < 2; ++side) {
      for (std::size_t i = 0; i < values.size(); ++i) {
        values[i] = before[i] + (side == 0 ? -kStep : kStep) * direction[i];
      }
      losses[static_cast<std::size_t>(side)] = loss(instructions);
    }
    values = before;
    for (std::size_t i = 0; i < values.size(); ++i) {
      expected += static_cast<double>(gradient[i]) * static_cast<double>(direction[i]);
      norm += static_cast<double>(gradient[i]) * static_cast<double>(gradient[i]);
    }
    const double found = (losses[1] - losses[0]) / (2.0 * static_cast<double>(kStep));
    CHECK(std::abs(found - expected) <= 2e-2 * std::sqrt(norm) + 2e-2);
  }

  Sizes size;
  Values inputs, slots, upstream, out, attention, saved, g_inputs, g_slots;
  std::array<Values, aime::kSlotWeights> weights, g_weights;
  aime::SlotArguments arguments{};
};

}  // namespace

TEST(slot_attention_gradients_are_slopes_of_the_forward_pass) {
  for (const std::string& instructions : aime::instruction_sets()) {
    for (const Sizes& size : {Sizes{1, 1, 1, 1, 1, 1}, Sizes{2, 7, 3, 5, 6, 9}, Sizes{3, 20, 17, 18, 33, 20}}) {
      Problem problem(size);
      problem.forward(1, instructions);
      problem.backward(1, instructions);
      problem.check_slope(problem.inputs, problem.g_inputs, instructions);
      problem.check_slope(problem.slots, problem.g_slots, instructions);
      for (std::size_t i = 0; i < aime::kSlotWeights; ++i) {
        problem.check_slope(problem.weights[i], problem.g_weights[i], instructions);
      }
    }
  }
}

TEST(slot_attention_gives_one_answer_on_any_number_of_threads) {
  const Sizes size{24, 600, 5, 20, 40, 50};
  Problem alone(size);
  Problem shared(size);
  alone.forward(1, "");
  shared.forward(4, "");
  CHECK(alone.out == shared.out);
  CHECK(alone.attention == shared.attention);
  alone.backward(1, "");
  shared.backward(4, "");
  CHECK(alone.g_inputs == shared.g_inputs);
  CHECK(alone.g_slots == shared.g_slots);
  CHECK(alone.g_weights == shared.g_weights);
}

TEST(vq_statistics_adds_rows_and_refuses_indices_of_no_code) {
  const Values rows = normal(6 * 2 * 3, 1);
  std::vector<std::int32_t> indices = {0, 1, 2, 0, 0, 1, 1, 1, 2, 2, 0, 0};  // (6, 2)
  Values counts(2 * 3);
  Values sums(2 * 3 * 3);
  const auto call = [&](const std::string& instructions) {
    const aime::Rows row_tensor{rows.data(), aime::Dtype::kFloat32, {6}, {6}, 1};
    aime::vq_statistics({row_tensor, 3, {indices.data(), false, {6}, {2}, 1}, 6, 2, 3, 3, counts.data(), sums.data()},
                        2, instructions);
  };
  for (const std::string& instructions : aime::instruction_sets()) {
    call(instructions);
    CHECK((counts == Values{3, 1, 2, 2, 3, 1}));
    CHECK_EQUAL(sums[0], rows[0] + rows[12] + rows[30]);
  }
  for (const std::int32_t wrong : {-1, 3}) {
    indices[7] = wrong;
    CHECK_THROWS(std::invalid_argument, "vq_statistics: indices: expected 0 to 2, found", call(""));
  }
}
