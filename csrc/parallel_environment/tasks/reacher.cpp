// dm_control/suite/reacher.py: Reacher. The target's size and place are fields of the model, drawn at each reset.
#include "../episode.hpp"
#include "../task.hpp"
#include "../tolerance.hpp"

#include <algorithm>

namespace aime {
namespace {

constexpr double kEasyTargetSize = .05;
constexpr double kHardTargetSize = .015;

class Reacher final : public Task {
 public:
  Reacher(const mjModel* model, double target_size)
      : target_size_(target_size),
        target_(object_id(model, mjOBJ_GEOM, "target")),
        finger_(object_id(model, mjOBJ_GEOM, "finger")) {
    model_ranges_ = {range_of(model, model->geom_size + 3 * target_, 1),
                     range_of(model, model->geom_pos + 3 * target_, 2)};
    fields_ = {
        {"position", {static_cast<int>(model->nq)}}, {"to_target", {2}}, {"velocity", {static_cast<int>(model->nv)}}};
  }

  void observe(const mjModel* model, const mjData* data, double* out) const override {
    out = std::copy_n(data->qpos, model->nq, out);
    *out++ = difference(data, 0);
    *out++ = difference(data, 1);
    std::copy_n(data->qvel, model->nv, out);
  }

  double reward(const mjModel* model, const mjData* data) const override {
    const double radii = model->geom_size[3 * target_] + model->geom_size[3 * finger_];
    const double x = difference(data, 0);
    const double y = difference(data, 1);
    return Tolerance{0.0, radii}(std::sqrt(x * x + y * y));
  }

  bool initialises() const override { return true; }

  void initialise(mjModel* model, mjData* data, RandomState& random) const override {
    model->geom_size[3 * target_] = target_size_;
    randomize_limited_and_rotational_joints(model, data, random);
    const double angle = random.uniform(0.0, 2.0 * kPi);
    const double radius = random.uniform(.05, .20);
    model->geom_pos[3 * target_] = radius * std::sin(angle);
    model->geom_pos[3 * target_ + 1] = radius * std::cos(angle);
  }

 private:
  double difference(const mjData* data, int axis) const {
    return data->geom_xpos[3 * target_ + axis] - data->geom_xpos[3 * finger_ + axis];
  }

  double target_size_;
  int target_;
  int finger_;
};

}  // namespace

std::unique_ptr<Task> make_reacher(const std::string& task, const mjModel* model) {
  return std::make_unique<Reacher>(model, task == "easy" ? kEasyTargetSize : kHardTargetSize);
}

}  // namespace aime
