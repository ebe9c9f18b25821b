// dm_control/suite/humanoid.py: Humanoid.
#include "../task.hpp"
#include "../tolerance.hpp"

#include <algorithm>
#include <array>
#include <limits>

namespace aime {
namespace {

constexpr double kStandHeight = 1.4;
constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr int kRootPositions = 7;  // of the free joint

class Humanoid final : public Task {
 public:
  Humanoid(const mjModel* model, double move_speed, bool pure_state)
      : move_speed_(move_speed),
        pure_state_(pure_state),
        torso_(object_id(model, mjOBJ_BODY, "torso")),
        head_(object_id(model, mjOBJ_BODY, "head")),
        velocity_(sensor_address(model, "torso_subtreelinvel")),
        limbs_{object_id(model, mjOBJ_BODY, "left_hand"), object_id(model, mjOBJ_BODY, "left_foot"),
               object_id(model, mjOBJ_BODY, "right_hand"), object_id(model, mjOBJ_BODY, "right_foot")} {
    const int nq = static_cast<int>(model->nq);
    const int nv = static_cast<int>(model->nv);
    if (pure_state) {
      fields_ = {{"position", {nq}}, {"velocity", {nv}}};
    } else {
      fields_ = {{"joint_angles", {nq - kRootPositions}},
                 {"head_height", {}},
                 {"extremities", {12}},
                 {"torso_vertical", {3}},
                 {"com_velocity", {3}},
                 {"velocity", {nv}}};
    }
  }

  void observe(const mjModel* model, const mjData* data, double* out) const override {
    if (pure_state_) {
      out = std::copy_n(data->qpos, model->nq, out);
    } else {
      out = std::copy_n(data->qpos + kRootPositions, model->nq - kRootPositions, out);
      *out++ = data->xpos[3 * head_ + 2];
      out = extremities(data, out);
      out = std::copy_n(data->xmat + 9 * torso_ + kZX, 3, out);
      out = std::copy_n(data->sensordata + velocity_, 3, out);
    }
    std::copy_n(data->qvel, model->nv, out);
  }

  double reward(const mjModel* model, const mjData* data) const override {
    const double standing = Tolerance{kStandHeight, kInfinity, kStandHeight / 4.0}(data->xpos[3 * head_ + 2]);
    const double upright = Tolerance{0.9, kInfinity, 1.9, Sigmoid::kLinear, 0.0}(data->xmat[9 * torso_ + kZZ]);
    const double stand_reward = standing * upright;
    const Tolerance control{0.0, 0.0, 1.0, Sigmoid::kQuadratic, 0.0};
    double small_control = 0.0;
    for (int actuator = 0; actuator < model->nu; ++actuator) small_control += control(data->ctrl[actuator]);
    small_control = (4.0 + small_control / static_cast<double>(model->nu)) / 5.0;
    const double x = data->sensordata[velocity_];
    const double y = data->sensordata[velocity_ + 1];
    if (move_speed_ == 0.0) {
      const Tolerance still{0.0, 0.0, 2.0};
      return small_control * stand_reward * ((still(x) + still(y)) / 2.0);
    }
    const double move = Tolerance{move_speed_, kInfinity, move_speed_, Sigmoid::kLinear, 0.0}(std::sqrt(x * x + y * y));
    return small_control * stand_reward * ((5.0 * move + 1.0) / 6.0);
  }

 private:
  // Hands and feet relative to the torso, in the torso's frame.
  double* extremities(const mjData* data, double* out) const {
    const double* frame = data->xmat + 9 * torso_;
    for (const int limb : limbs_) {
      double offset[3];
      for (int axis = 0; axis < 3; ++axis) offset[axis] = data->xpos[3 * limb + axis] - data->xpos[3 * torso_ + axis];
      for (int axis = 0; axis < 3; ++axis) {
        *out++ = offset[0] * frame[axis] + offset[1] * frame[3 + axis] + offset[2] * frame[6 + axis];
      }
    }
    return out;
  }

  double move_speed_;
  bool pure_state_;
  int torso_;
  int head_;
  int velocity_;
  std::array<int, 4> limbs_;
};

}  // namespace

std::unique_ptr<Task> make_humanoid(const std::string& task, const mjModel* model) {
  if (task == "stand") return std::make_unique<Humanoid>(model, 0.0, false);
  if (task == "walk") return std::make_unique<Humanoid>(model, 1.0, false);
  if (task == "run") return std::make_unique<Humanoid>(model, 10.0, false);
  if (task == "run_pure_state") return std::make_unique<Humanoid>(model, 10.0, true);
  return nullptr;
}

}  // namespace aime
