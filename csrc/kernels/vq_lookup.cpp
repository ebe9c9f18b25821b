#include "vq_lookup.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
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

// Largest magnitude of values as bits, which order as magnitudes do; with and without those that are not finite. In
// integers, since compilers make no vectors of a maximum of floats.
struct Largest {
  std::int32_t any = 0;
  std::int32_t finite = 0;
};

constexpr std::int32_t kInfinity = 0x7F800000;

Largest largest(const float* values, std::int64_t count) {
  Largest result;
  for (std::int64_t i = 0; i < count; ++i) {
    std::int32_t bits;
    std::memcpy(&bits, values + i, sizeof(bits));
    bits &= 0x7FFFFFFF;
    const std::int32_t kept = bits < kInfinity ? bits : 0;
    result.any = bits > result.any ? bits : result.any;
    result.finite = kept > result.finite ? kept : result.finite;
  }
  return result;
}

// The power of two that codes are multiplied by for the scores, as kernels/vq_lookup/codes.py explains: 2^-k with 2^k
// about their largest finite value, and ten bits below where there is room.
float score_factor(float largest_value) {
  constexpr int kHeadroom = 10;
  constexpr int kSmall = -64;
  constexpr int kLimit = 126;  // the factor and its inverse are normal numbers
  int exponent = 0;
  std::frexp(largest_value, &exponent);
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
    std::vector<bool> finite(static_cast<std::size_t>(arguments.code_count));
    std::int32_t most = 0;
    for (std::int64_t code = 0; code < arguments.code_count; ++code) {
      float* row = plain.data() + code * width;
      arguments.codes.read(head * arguments.codes_head_stride + arguments.codes.offset(code), width, row);
      const Largest found = largest(row, width);
      finite[static_cast<std::size_t>(code)] = found.any < kInfinity;
      most = std::max(most, found.finite);
    }
    std::fill_n(half_norms.data(), groups * group, std::numeric_limits<float>::infinity());
    const float factor = score_factor(from_bits(static_cast<std::uint32_t>(most)));
    for (std::int64_t code = 0; code < groups * group; ++code) {
      float* to = packed.data() + (code / group) * group * width + code % group;
      if (code < arguments.code_count && finite[static_cast<std::size_t>(code)]) {
        half_norms.data()[code] = pack(plain.data() + code * width, width, factor, group, to);
      } else {
        for (std::int64_t d = 0; d < width; ++d) to[d * group] = 0.0F;
      }
    }
  }

  // Writes a code times the factor, `stride` apart; half its squared norm in that scale.
  static float pack(const float* row, std::int64_t width, float factor, std::int64_t stride, float* to) {
    constexpr int kParts = 4;  // sums that do not wait for each other
    double norm[kParts] = {};
    const auto add = [&](std::int64_t d, double& sum) {
      const float scaled = row[d] * factor;
      to[d * stride] = scaled;
      sum += static_cast<double>(row[d]) * static_cast<double>(scaled);
    };
    std::int64_t d = 0;
    for (; d + kParts <= width; d += kParts) {
      for (int p = 0; p < kParts; ++p) add(d + p, norm[p]);
    }
    for (; d < width; ++d) add(d, norm[0]);
    return static_cast<float>(((norm[0] + norm[1]) + (norm[2] + norm[3])) / 2);
  }

  std::int64_t groups;
  Buffer packed;
  Buffer half_norms;
  Buffer plain;
};

// Work is handed out tile by tile: (head, block of rows), head-major.
class Lookup {
 public:
  Lookup(const LookupArguments& arguments, const TileKernel& kernel)
      : arguments_(arguments),
        kernel_(kernel),
        blocks_((arguments.row_count + kMaxTileRows - 1) / kMaxTileRows),
        dense_(arguments.heads == 1 ? arguments.rows.dense(arguments.width) : nullptr) {
    codes_.reserve(static_cast<std::size_t>(arguments.heads));
    for (std::int64_t head = 0; head < arguments.heads; ++head) {
      codes_.push_back(std::make_unique<PackedCodes>(arguments, head, kernel.group));
    }
  }
  std::int64_t tiles() const { return blocks_ * arguments_.heads; }

  // `buffer` holds the rows of a tile that do not lie as the kernel reads them.
  void run(std::int64_t tile, float* buffer) const {
    const std::int64_t head = tile / blocks_;
    const std::int64_t first = (tile % blocks_) * kMaxTileRows;
    const std::int64_t count = std::min(kMaxTileRows, arguments_.row_count - first);
    const std::int64_t padded = (count + kernel_.step - 1) / kernel_.step * kernel_.step;
    const std::int64_t width = arguments_.width;
    const PackedCodes& codes = *codes_[static_cast<std::size_t>(head)];
    const float* rows = buffer;
    if (dense_ != nullptr && count == padded) {
      rows = dense_ + first * width;
    } else {
      for (std::int64_t r = 0; r < count; ++r) {
        const std::int64_t start = head * arguments_.head_stride + arguments_.rows.offset(first + r);
        arguments_.rows.read(start, width, buffer + r * width);
      }
      std::fill(buffer + count * width, buffer + padded * width, 0.0F);
    }
    const std::int64_t out = first * arguments_.heads + head;
    float* quantized = arguments_.quantized == nullptr ? nullptr : arguments_.quantized + out * width;
    kernel_.run({rows, codes.packed.data(), codes.half_norms.data(), codes.plain.data(), padded, count, codes.groups,
                 width, arguments_.heads, arguments_.indices + out, arguments_.distance + out, quantized});
  }

 private:
  const LookupArguments& arguments_;
  const TileKernel& kernel_;
  std::int64_t blocks_;
  const float* dense_;
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
