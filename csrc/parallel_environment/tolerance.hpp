// dm_control.utils.rewards.tolerance: 1 inside the bounds, falling to `value_at_margin` at distance `margin` outside.
#pragma once

#include <cmath>

namespace aime {

enum class Sigmoid { kGaussian, kLinear, kQuadratic, kLongTail, kReciprocal };

struct Tolerance {
  double lower = 0.0;
  double upper = 0.0;
  double margin = 0.0;
  Sigmoid sigmoid = Sigmoid::kGaussian;
  double value_at_margin = 0.1;

  double operator()(double x) const {
    if (lower <= x && x <= upper) return 1.0;
    if (margin == 0.0) return 0.0;
    const double distance = (x < lower ? lower - x : x - upper) / margin;
    switch (sigmoid) {
      case Sigmoid::kLinear: {
        const double scaled = distance * (1.0 - value_at_margin);
        return std::abs(scaled) < 1.0 ? 1.0 - scaled : 0.0;
      }
      case Sigmoid::kQuadratic: {
        const double scaled = distance * std::sqrt(1.0 - value_at_margin);
        return std::abs(scaled) < 1.0 ? 1.0 - scaled * scaled : 0.0;
      }
      case Sigmoid::kLongTail: {
        const double scaled = distance * std::sqrt(1.0 / value_at_margin - 1.0);
        return 1.0 / (scaled * scaled + 1.0);
      }
      case Sigmoid::kReciprocal:
        return 1.0 / (distance * (1.0 / value_at_margin - 1.0) + 1.0);
      case Sigmoid::kGaussian:
        break;
    }
    const double scaled = distance * std::sqrt(-2.0 * std::log(value_at_margin));
    return std::exp(-0.5 * (scaled * scaled));
  }
};

}  // namespace aime
