// The planar arm with a hand that the manipulator and stacker domains share, and what both observe of their scene.
#pragma once

#include "task.hpp"

#include <array>
#include <cmath>
#include <string>
#include <vector>

namespace aime {

constexpr std::array<const char*, 8> kArmJoints = {"arm_root", "arm_shoulder", "arm_elbow", "arm_wrist",
                                                   "finger",   "fingertip",    "thumb",     "thumbtip"};

class Arm {
 public:
  explicit Arm(const mjModel* model) : hand_(object_id(model, mjOBJ_BODY, "hand")) {
    for (std::size_t joint = 0; joint < kArmJoints.size(); ++joint) {
      const int id = object_id(model, mjOBJ_JOINT, kArmJoints[joint]);
      joints_[joint] = id;
      positions_[joint] = model->jnt_qposadr[id];
      velocities_[joint] = model->jnt_dofadr[id];
    }
  }

  // Draws the joint angles; the finger mirrors the thumb.
  void randomize(const mjModel* model, mjData* data, RandomState& random) const {
    for (std::size_t joint = 0; joint < kArmJoints.size(); ++joint) {
      const double* range = model->jnt_range + 2 * joints_[joint];
      const bool limited = model->jnt_limited[joints_[joint]];
      data->qpos[positions_[joint]] = random.uniform(limited ? range[0] : -kPi, limited ? range[1] : kPi);
    }
    data->qpos[positions_[kFinger]] = data->qpos[positions_[kThumb]];
  }

  // Sine and cosine of every joint, then the velocities.
  double* observe_joints(const mjData* data, double* out) const {
    for (const int position : positions_) {
      *out++ = std::sin(data->qpos[position]);
      *out++ = std::cos(data->qpos[position]);
    }
    for (const int velocity : velocities_) *out++ = data->qvel[velocity];
    return out;
  }

  double* observe_hand(const mjData* data, double* out) const { return observe_pose(data, hand_, out); }

  // Position and orientation of a body in the plane: x, z, and the quaternion's w and y.
  static double* observe_pose(const mjData* data, int body, double* out) {
    *out++ = data->xpos[3 * body];
    *out++ = data->xpos[3 * body + 2];
    *out++ = data->xquat[4 * body];
    *out++ = data->xquat[4 * body + 2];
    return out;
  }

 private:
  static constexpr std::size_t kFinger = 4;  // in kArmJoints
  static constexpr std::size_t kThumb = 6;

  int hand_;
  std::array<int, kArmJoints.size()> joints_{};
  std::array<int, kArmJoints.size()> positions_{};
  std::array<int, kArmJoints.size()> velocities_{};
};

}  // namespace aime
