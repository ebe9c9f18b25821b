// dm_control/suite/humanoid.py: Humanoid, and humanoid_CMU.py: HumanoidCMU, the same task of another body.
#include "../geometry.hpp"
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

// How each of the two models calls its parts; "upright" is the entry of the torso's rotation that is 1 when standing.
struct Names {
  const char* torso;
  const char* velocity;
  std::array<const char*, 4> limbs;
  MatrixEntry upright;
};

constexpr Names kHumanoid = {
    "torso", "torso_subtreelinvel", {"left_hand", "left_foot", "right_hand", "right_foot"}, kZZ};
constexpr Names kHumanoidCmu = {"thorax", "thorax_subtreelinvel", {"lhand", "lfoot", "rhand", "rfoot"}, kZY};

class Humanoid final : public Task {
 public:
  Humanoid(const mjModel* model, const Names& names, double move_speed, bool pure_state)
      : move_speed_(move_speed),
        pure_state_(pure_state),
        upright_(names.upright),
        torso_(object_id(model, mjOBJ_BODY, names.torso)),
        head_(object_id(model, mjOBJ_BODY, "head")),
        velocity_(sensor_address(model, names.velocity)) {
    for (std::size_t limb = 0; limb < limbs_.size(); ++limb) {
      limbs_[limb] = object_id(model, mjOBJ_BODY, names.limbs[limb]);
    }
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
    const double upright = Tolerance{0.9, kInfinity, 1.9, Sigmoid::kLinear, 0.0}(data->xmat[9 * torso_ + upright_]);
    const double stand_reward = standing * upright;
    const double small_control = (4.0 + mean_small_control(model, data)) / 5.0;
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
    for (const int limb : limbs_) {
      out = write(in_frame(difference(data->xpos + 3 * limb, data->xpos + 3 * torso_), data->xmat + 9 * torso_), out);
    }
    return out;
  }

  double move_speed_;
  bool pure_state_;
  MatrixEntry upright_;
  int torso_;
  int head_;
  int velocity_;
  std::array<int, 4> limbs_{};
};

}  // namespace

std::unique_ptr<Task> make_humanoid(const std::string& task, const mjModel* model) {
  const double speed = task == "stand" ? 0.0 : task == "walk" ? 1.0 : 10.0;
  return std::make_unique<Humanoid>(model, kHumanoid, speed, task == "run_pure_state");
}

std::unique_ptr<Task> make_humanoid_cmu(const std::string& task, const mjModel* model) {
  const double speed = task == "stand" ? 0.0 : task == "walk" ? 1.0 : 10.0;
  return std::make_unique<Humanoid>(model, kHumanoidCmu, speed, false);
}

}  // namespace aime
