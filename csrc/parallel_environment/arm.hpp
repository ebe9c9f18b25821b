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
      positions_[joint] = model->jnt_qposadr[id];
      velocities_[joint] = model->jnt_dofadr[id];
    }
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
  int hand_;
  std::array<int, kArmJoints.size()> positions_{};
  std::array<int, kArmJoints.size()> velocities_{};
};

}  // namespace aime
