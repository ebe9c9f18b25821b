// dm_control/suite/manipulator.py: Bring, fully observable. The target (and the receptacle) are fields of the model.
#include "../arm.hpp"
#include "../geometry.hpp"
#include "../task.hpp"
#include "../tolerance.hpp"

namespace aime {
namespace {

constexpr double kClose = .01;
constexpr std::array<const char*, 5> kTouchSensors = {"palm_touch", "finger_touch", "thumb_touch", "fingertip_touch",
                                                      "thumbtip_touch"};

class Manipulator final : public Task {
 public:
  Manipulator(const mjModel* model, bool use_peg)
      : use_peg_(use_peg),
        arm_(model),
        object_(object_id(model, mjOBJ_BODY, use_peg ? "peg" : "ball")),
        target_(object_id(model, mjOBJ_BODY, use_peg ? "target_peg" : "target_ball")) {
    const std::string prefix = use_peg ? "peg_" : "ball_";
    for (std::size_t axis = 0; axis < 3; ++axis) {
      const std::string name = prefix + "xzy"[axis];
      velocities_[axis] = model->jnt_dofadr[object_id(model, mjOBJ_JOINT, name.c_str())];
    }
    for (std::size_t sensor = 0; sensor < kTouchSensors.size(); ++sensor) {
      touch_[sensor] = sensor_address(model, kTouchSensors[sensor]);
    }
    const auto pair = [model](const char* left, const char* right) {
      return std::array<int, 2>{object_id(model, mjOBJ_SITE, left), object_id(model, mjOBJ_SITE, right)};
    };
    if (use_peg) {
      pairs_ = {pair("peg_grasp", "grasp"), pair("peg_pinch", "pinch"), pair("peg", "target_peg"),
                pair("target_peg_tip", "peg_tip")};
    } else {
      pairs_ = {pair("ball", "target_ball")};
    }
    const int joints = static_cast<int>(kArmJoints.size());
    fields_ = {{"arm_pos", {joints, 2}}, {"arm_vel", {joints}}, {"touch", {static_cast<int>(kTouchSensors.size())}},
               {"hand_pos", {4}},        {"object_pos", {4}},   {"object_vel", {3}},
               {"target_pos", {4}}};
  }

  void observe(const mjModel* /*model*/, const mjData* data, double* out) const override {
    out = arm_.observe_joints(data, out);
    for (const int touch : touch_) *out++ = std::log1p(data->sensordata[touch]);
    out = arm_.observe_hand(data, out);
    out = Arm::observe_pose(data, object_, out);
    for (const int velocity : velocities_) *out++ = data->qvel[velocity];
    Arm::observe_pose(data, target_, out);
  }

  double reward(const mjModel* /*model*/, const mjData* data) const override {
    if (!use_peg_) return is_close(data, 0);
    const double grasping = (is_close(data, 0) + is_close(data, 1)) / 2.0;
    const double bringing = (is_close(data, 2) + is_close(data, 3)) / 2.0;
    return std::max(bringing, grasping / 3.0);
  }

 private:
  double is_close(const mjData* data, std::size_t pair) const {
    const auto [left, right] = pairs_[pair];
    return Tolerance{0.0, kClose, kClose * 2.0}(distance(data->site_xpos + 3 * left, data->site_xpos + 3 * right));
  }

  bool use_peg_;
  Arm arm_;
  int object_;
  int target_;
  std::array<int, 3> velocities_{};
  std::array<int, kTouchSensors.size()> touch_{};
  std::vector<std::array<int, 2>> pairs_;  // of sites: those of the peg's or the ball's reward
};

}  // namespace

std::unique_ptr<Task> make_manipulator(const std::string& task, const mjModel* model) {
  return std::make_unique<Manipulator>(model, task == "bring_peg" || task == "insert_peg");
}

}  // namespace aime
