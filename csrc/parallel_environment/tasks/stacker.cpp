// dm_control/suite/stacker.py: Stack, fully observable. The target's place is a field of the model.
#include "../arm.hpp"
#include "../episode.hpp"
#include "../geometry.hpp"
#include "../task.hpp"
#include "../tolerance.hpp"

#include <limits>

namespace aime {
namespace {

constexpr double kClose = .01;

class Stacker final : public Task {
 public:
  Stacker(const mjModel* model, int boxes)
      : arm_(model),
        target_body_(object_id(model, mjOBJ_BODY, "target")),
        target_geom_(object_id(model, mjOBJ_GEOM, "target")),
        target_site_(object_id(model, mjOBJ_SITE, "target")),
        grasp_(object_id(model, mjOBJ_SITE, "grasp")) {
    for (int box = 0; box < boxes; ++box) {
      const std::string name = "box" + std::to_string(box);
      bodies_.push_back(object_id(model, mjOBJ_BODY, name.c_str()));
      sites_.push_back(object_id(model, mjOBJ_SITE, name.c_str()));
      for (const char axis : {'x', 'y', 'z'}) {
        const int joint = object_id(model, mjOBJ_JOINT, (name + "_" + axis).c_str());
        positions_.push_back(model->jnt_qposadr[joint]);
        velocities_.push_back(model->jnt_dofadr[joint]);
      }
    }
    model_ranges_ = {range_of(model, model->body_pos + 3 * target_body_, 3)};
    const int joints = static_cast<int>(kArmJoints.size());
    fields_ = {{"arm_pos", {joints, 2}}, {"arm_vel", {joints}},   {"touch", {static_cast<int>(model->nsensordata)}},
               {"hand_pos", {4}},        {"box_pos", {boxes, 4}}, {"box_vel", {3 * boxes}},
               {"target_pos", {2}}};
  }

  void observe(const mjModel* model, const mjData* data, double* out) const override {
    out = arm_.observe_joints(data, out);
    for (int sensor = 0; sensor < model->nsensordata; ++sensor) *out++ = std::log1p(data->sensordata[sensor]);
    out = arm_.observe_hand(data, out);
    for (const int body : bodies_) out = Arm::observe_pose(data, body, out);
    for (const int velocity : velocities_) *out++ = data->qvel[velocity];
    *out++ = data->xpos[3 * target_body_];
    *out = data->xpos[3 * target_body_ + 2];
  }

  double reward(const mjModel* model, const mjData* data) const override {
    const double* target = data->site_xpos + 3 * target_site_;
    double nearest = std::numeric_limits<double>::infinity();
    for (const int site : sites_) nearest = std::min(nearest, distance(data->site_xpos + 3 * site, target));
    const double box_is_close = Tolerance{0.0, 0.0, 2.0 * model->geom_size[3 * target_geom_]}(nearest);
    const Tolerance far{.1, std::numeric_limits<double>::infinity(), kClose};
    return box_is_close * far(distance(data->site_xpos + 3 * grasp_, target));
  }

  bool initialises() const override { return true; }

  void initialise(mjModel* model, mjData* data, RandomState& random) const override {
    const auto boxes = static_cast<std::uint32_t>(bodies_.size());
    do {
      arm_.randomize(model, data, random);
      const double height = static_cast<double>(2 * random.randint(boxes) + 1);
      model->body_pos[3 * target_body_ + 2] = model->geom_size[3 * target_geom_] * height;
      model->body_pos[3 * target_body_] = random.uniform(-.37, .37);
      for (std::size_t box = 0; box < boxes; ++box) {
        data->qpos[positions_[3 * box]] = random.uniform(.1, .3);
        data->qpos[positions_[3 * box + 2]] = random.uniform(0.0, .7);
        data->qpos[positions_[3 * box + 1]] = random.uniform(0.0, 2.0 * kPi);
      }
      forward_without_actuation(model, data);
    } while (data->ncon > 0);
  }

 private:
  Arm arm_;
  int target_body_;
  int target_geom_;
  int target_site_;
  int grasp_;
  std::vector<int> bodies_;
  std::vector<int> sites_;
  std::vector<int> positions_;  // x, y, z of each box
  std::vector<int> velocities_;
};

}  // namespace

std::unique_ptr<Task> make_stacker(const std::string& task, const mjModel* model) {
  return std::make_unique<Stacker>(model, task == "stack_4" ? 4 : 2);
}

}  // namespace aime
