// vq_lookup against the plain definition: every instruction set, several threads, strides, dtypes and ragged sizes.
#include "../kernels/vq_lookup.hpp"
#include "check.hpp"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <random>
#include <thread>
#include <vector>

namespace {

struct Case {
  std::int64_t rows, heads, codes, width;
};

std::vector<float> normal(std::size_t count, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> distribution;
  std::vector<float> values(count);
  for (float& value : values) value = distribution(generator);
  return values;
}

// rows: (rows, heads, width), codes: (heads, codes, width), both contiguous and allocated to the last byte.
struct Problem {
  explicit Problem(const Case& size, unsigned seed)
      : size(size),
        rows(normal(static_cast<std::size_t>(size.rows * size.heads * size.width), seed)),
        codes(normal(static_cast<std::size_t>(size.heads * size.codes * size.width), seed + 1)),
        indices(static_cast<std::size_t>(size.rows * size.heads), -1),
        distance(static_cast<std::size_t>(size.rows * size.heads), -1.0F),
        quantized(rows.size(), -1.0F) {}

  void run(int threads, const std::string& instructions) {
    const aime::Rows row_tensor{rows.data(), aime::Dtype::kFloat32, {size.rows}, {size.heads * size.width}, 1};
    const aime::Rows code_tensor{codes.data(), aime::Dtype::kFloat32, {size.codes}, {size.width}, 1};
    const aime::LookupArguments arguments{row_tensor,     size.width,      code_tensor,     size.codes * size.width,
                                          size.rows,      size.heads,      size.codes,      size.width,
                                          indices.data(), distance.data(), quantized.data()};
    aime::vq_lookup(arguments, threads, instructions);
  }

  double squared(std::int64_t row, std::int64_t head, std::int64_t code) const {
    double sum = 0.0;
    for (std::int64_t d = 0; d < size.width; ++d) {
      const double difference =
          static_cast<double>(rows[static_cast<std::size_t>((row * size.heads + head) * size.width + d)]) -
          static_cast<double>(codes[static_cast<std::size_t>((head * size.codes + code) * size.width + d)]);
      sum += difference * difference;
    }
    return sum;
  }

  // The chosen code is nearest but for rounding, and its distance is right.
  void check() const {
    for (std::int64_t row = 0; row < size.rows; ++row) {
      for (std::int64_t head = 0; head < size.heads; ++head) {
        double least = std::numeric_limits<double>::infinity();
        for (std::int64_t code = 0; code < size.codes; ++code) least = std::min(least, squared(row, head, code));
        const auto place = static_cast<std::size_t>(row * size.heads + head);
        CHECK(indices[place] >= 0 && indices[place] < size.codes);
        const double chosen = squared(row, head, indices[place]);
        CHECK(chosen <= least + 1e-4 * (1.0 + least));
        CHECK(std::abs(chosen - static_cast<double>(distance[place])) <= 1e-4 * (1.0 + chosen));
        const auto code = codes.begin() + (head * size.codes + indices[place]) * size.width;
        CHECK(std::equal(code, code + size.width, quantized.begin() + (row * size.heads + head) * size.width));
      }
    }
  }

  Case size;
  std::vector<float> rows, codes;
  std::vector<std::int32_t> indices;
  std::vector<float> distance;
  std::vector<float> quantized;
};

}  // namespace

TEST(vq_lookup_reads_and_writes_inside_its_tensors) {
  for (const std::string& instructions : aime::instruction_sets()) {
    for (const Case& size : {Case{1, 1, 1, 1}, Case{3, 2, 5, 7}, Case{65, 1, 33, 16}, Case{130, 3, 100, 12}}) {
      Problem problem(size, 5);
      problem.run(1, instructions);
      problem.check();
    }
  }
}

TEST(vq_lookup_gives_one_answer_on_any_number_of_threads) {
  const Case size{1500, 2, 256, 16};  // 12 M multiply-adds: enough for it to start helpers
  for (const std::string& instructions : aime::instruction_sets()) {
    Problem alone(size, 11);
    Problem shared(size, 11);
    alone.run(1, instructions);
    shared.run(4, instructions);
    CHECK(alone.indices == shared.indices);
    CHECK(alone.distance == shared.distance);
  }
}

TEST(vq_lookup_may_be_called_by_several_threads_at_once) {
  std::vector<std::thread> callers;
  std::vector<Problem> problems;
  for (unsigned caller = 0; caller < 3; ++caller) problems.emplace_back(Case{300, 2, 64, 8}, caller);
  for (Problem& problem : problems) callers.emplace_back([&problem] { problem.run(2, ""); });
  for (std::thread& caller : callers) caller.join();
  for (const Problem& problem : problems) problem.check();
}

TEST(vq_lookup_reads_halves_and_strides) {
  // Codes 0.5, 1.0, 2.0 of width 1 in both half types, every second element.
  const std::vector<std::uint16_t> bfloat16 = {0x3F00, 0xFFFF, 0x3F80, 0xFFFF, 0x4000};
  const std::vector<std::uint16_t> float16 = {0x3800, 0xFFFF, 0x3C00, 0xFFFF, 0x4000};
  const std::vector<float> rows = {0.4F, 9.0F, 1.2F, 9.0F, 100.0F};
  for (const auto& [dtype, codes] : {std::pair(aime::Dtype::kBFloat16, &bfloat16), {aime::Dtype::kFloat16, &float16}}) {
    std::vector<std::int32_t> indices(3, -1);
    std::vector<float> distance(3, -1.0F);
    const aime::Rows row_tensor{rows.data(), aime::Dtype::kFloat32, {3}, {2}, 1};
    const aime::Rows code_tensor{codes->data(), dtype, {3}, {2}, 1};
    aime::vq_lookup({row_tensor, 0, code_tensor, 0, 3, 1, 3, 1, indices.data(), distance.data(), nullptr}, 2, "");
    CHECK((indices == std::vector<std::int32_t>{0, 1, 2}));
    CHECK_EQUAL(distance[2], 98.0F * 98.0F);
  }
}

TEST(vq_lookup_refuses_an_unknown_instruction_set) {
  Problem problem(Case{2, 1, 2, 2}, 1);
  CHECK_THROWS(std::invalid_argument, "altivec", problem.run(1, "altivec"));
}
