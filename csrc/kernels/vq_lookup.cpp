#include "vq_lookup.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <stdexcept>

#include "buffer.hpp"
#include "parallel.hpp"
#include "vq_assign.hpp"

namespace aime {
namespace {

std::vector<const TileKernel*> available_kernels() {
  std::vector<const TileKernel*> kernels;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f")) kernels.push_back(&kAvx512Kernel);
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) kernels.push_back(&kAvx2Kernel);
#endif
  kernels.push_back(&kBaselineKernel);
  return kernels;
}

const TileKernel& choose_kernel(const std::string& name) {
  static const std::vector<const TileKernel*> kernels = available_kernels();
  if (name.empty()) return *kernels.front();
  for (const TileKernel* kernel : kernels) {
    if (name == kernel->name) return *kernel;
  }
  throw std::invalid_argument("vq_lookup: this processor cannot run instruction set '" + name + "'");
}

// The power of two that codes are multiplied by for the scores, as kernels/vq_lookup/codes.py explains: 2^-k with 2^k
// about their largest finite value, and ten bits below where there is room.
float score_factor(const float* codes, std::int64_t count) {
  float largest = 0.0F;
  for (std::int64_t i = 0; i < count; ++i) {
    const float size = std::fabs(codes[i]);
    if (size <= std::numeric_limits<float>::max()) largest = std::max(largest, size);
  }
  constexpr int kHeadroom = 10;
  constexpr int kSmall = -64;
  constexpr int kLimit = 126;  // the factor and its inverse are normal numbers
  int exponent = 0;
  std::frexp(largest, &exponent);
  if (exponent > kSmall) exponent += kHeadroom;
  return std::ldexp(1.0F, -std::clamp(exponent, -kLimit, kLimit));
}

// The codes of one head as the tile kernel reads them, and as rows for the distance. One that is not finite is packed
// as zeros with half a norm of Inf: it is nobody's nearest.
struct PackedCodes {
  PackedCodes(const LookupArguments& arguments, std::int64_t head, std::int64_t group)
      : groups((arguments.code_count + group - 1) / group),
        packed(groups * group * arguments.width),
        half_norms(groups * group),
        plain(arguments.code_count * arguments.width) {
    const std::int64_t width = arguments.width;
    std::fill_n(packed.data(), groups * group * width, 0.0F);
    std::fill_n(half_norms.data(), groups * group, std::numeric_limits<float>::infinity());
    for (std::int64_t code = 0; code < arguments.code_count; ++code) {
      arguments.codes.read(head * arguments.codes_head_stride + arguments.codes.offset(code), width,
                           plain.data() + code * width);
    }
    const float factor = score_factor(plain.data(), arguments.code_count * width);
    for (std::int64_t code = 0; code < arguments.code_count; ++code) {
      const float* row = plain.data() + code * width;
      if (!std::all_of(row, row + width, [](float value) { return std::isfinite(value); })) continue;
      float* to = packed.data() + (code / group) * group * width + code % group;
      double norm = 0.0;
      for (std::int64_t d = 0; d < width; ++d) {
        to[d * group] = row[d] * factor;
        norm += static_cast<double>(row[d]) * static_cast<double>(to[d * group]);
      }
      half_norms.data()[code] = static_cast<float>(norm / 2);
    }
  }

  std::int64_t groups;
  Buffer packed;
  Buffer half_norms;
  Buffer plain;
};

float squared_distance(const float* a, const float* b, std::int64_t width) {
  constexpr int kParts = 8;  // independent sums, so that the compiler may use vectors
  float parts[kParts] = {};
  std::int64_t d = 0;
  for (; d + kParts <= width; d += kParts) {
    for (int p = 0; p < kParts; ++p) {
      const float difference = a[d + p] - b[d + p];
      parts[p] += difference * difference;
    }
  }
  float sum = 0.0F;
  for (; d < width; ++d) sum += (a[d] - b[d]) * (a[d] - b[d]);
  for (const float part : parts) sum += part;
  return sum;
}

// Work is handed out tile by tile: (head, block of rows), head-major.
class Lookup {
 public:
  Lookup(const LookupArguments& arguments, const TileKernel& kernel)
      : arguments_(arguments), kernel_(kernel), blocks_((arguments.row_count + kMaxTileRows - 1) / kMaxTileRows) {
    codes_.reserve(static_cast<std::size_t>(arguments.heads));
    for (std::int64_t head = 0; head < arguments.heads; ++head) {
      codes_.push_back(std::make_unique<PackedCodes>(arguments, head, kernel.group));
    }
  }
  std::int64_t tiles() const { return blocks_ * arguments_.heads; }

  void run(std::int64_t tile, float* rows) const {
    const std::int64_t head = tile / blocks_;
    const std::int64_t first = (tile % blocks_) * kMaxTileRows;
    const std::int64_t count = std::min(kMaxTileRows, arguments_.row_count - first);
    const std::int64_t padded = (count + kernel_.step - 1) / kernel_.step * kernel_.step;
    const std::int64_t width = arguments_.width;
    const PackedCodes& codes = *codes_[static_cast<std::size_t>(head)];
    for (std::int64_t r = 0; r < count; ++r) {
      arguments_.rows.read(head * arguments_.head_stride + arguments_.rows.offset(first + r), width, rows + r * width);
    }
    std::fill(rows + count * width, rows + padded * width, 0.0F);
    std::int32_t best[kMaxTileRows];
    kernel_.run({rows, codes.packed.data(), codes.half_norms.data(), padded, codes.groups, width, best});
    for (std::int64_t r = 0; r < count; ++r) {
      const std::int64_t out = (first + r) * arguments_.heads + head;
      arguments_.indices[out] = best[r];
      const float* code = codes.plain.data() + best[r] * width;
      arguments_.distance[out] = squared_distance(rows + r * width, code, width);
      if (arguments_.quantized != nullptr) std::copy_n(code, width, arguments_.quantized + out * width);
    }
  }

 private:
  const LookupArguments& arguments_;
  const TileKernel& kernel_;
  std::int64_t blocks_;
  std::vector<std::unique_ptr<PackedCodes>> codes_;
};

}  // namespace

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const TileKernel* kernel : available_kernels()) names.emplace_back(kernel->name);
  return names;
}

void vq_lookup(const LookupArguments& arguments, int threads, const std::string& instructions) {
  const Lookup lookup(arguments, choose_kernel(instructions));
  const double work = static_cast<double>(arguments.row_count) * static_cast<double>(arguments.heads) *
                      static_cast<double>(arguments.code_count) * static_cast<double>(arguments.width);
  constexpr double kNanoseconds = 0.015;  // a multiplication and an addition, AVX-512
  run_tiles(lookup.tiles(), threads, work * kNanoseconds, [&] {
    const auto rows = std::make_shared<Buffer>(kMaxTileRows * arguments.width);
    return [&lookup, rows](std::int64_t tile) { lookup.run(tile, rows->data()); };
  });
}

}  // namespace aime
