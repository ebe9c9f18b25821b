// Small vector algebra of rewards and observations, as numpy's in dm_control.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>

namespace aime {

using Vector3 = std::array<double, 3>;

inline Vector3 difference(const double* left, const double* right) {
  return {left[0] - right[0], left[1] - right[1], left[2] - right[2]};
}

template <typename Vector>
double norm(const Vector& vector, std::size_t size) {
  double square = 0.0;
  for (std::size_t axis = 0; axis < size; ++axis) square += vector[axis] * vector[axis];
  return std::sqrt(square);
}

inline double distance(const double* left, const double* right) { return norm(difference(left, right), 3); }

// vector.dot(frame): a vector of the world in the axes of a row-major 3 x 3 frame.
inline Vector3 in_frame(const Vector3& vector, const double* frame) {
  Vector3 local{};
  for (std::size_t axis = 0; axis < 3; ++axis) {
    local[axis] = vector[0] * frame[axis] + vector[1] * frame[3 + axis] + vector[2] * frame[6 + axis];
  }
  return local;
}

inline double* write(const Vector3& vector, double* out) { return std::copy(vector.begin(), vector.end(), out); }

}  // namespace aime
