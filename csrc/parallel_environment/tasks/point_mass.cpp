// dm_control/suite/point_mass.py: PointMass. The hard task draws the actuators' gains, fields of the model.
#include "../episode.hpp"
#include "../geometry.hpp"
#include "../task.hpp"
#include "../tolerance.hpp"

namespace aime {
namespace {

class PointMass final : public Task {
 public:
  PointMass(const mjModel* model, bool randomize_gains)
      : randomize_gains_(randomize_gains),
        mass_(object_id(model, mjOBJ_GEOM, "pointmass")),
        target_(object_id(model, mjOBJ_GEOM, "target")) {
    fields_ = {{"position", {static_cast<int>(model->nq)}}, {"velocity", {static_cast<int>(model->nv)}}};
  }

  void observe(const mjModel* model, const mjData* data, double* out) const override {
    out = std::copy_n(data->qpos, model->nq, out);
    std::copy_n(data->qvel, model->nv, out);
  }

  double reward(const mjModel* model, const mjData* data) const override {
    const double size = model->geom_size[3 * target_];
    const double near =
        Tolerance{0.0, size, size}(distance(data->geom_xpos + 3 * target_, data->geom_xpos + 3 * mass_));
    return near * ((mean_small_control(model, data) + 4.0) / 5.0);
  }

  // The gains are directions normalised by BLAS, whose last bit depends on the processor: dm_control draws them.
  bool initialises() const override { return !randomize_gains_; }

  void initialise(mjModel* model, mjData* data, RandomState& random) const override {
    randomize_limited_and_rotational_joints(model, data, random);
  }

 private:
  bool randomize_gains_;
  int mass_;
  int target_;
};

}  // namespace

std::unique_ptr<Task> make_point_mass(const std::string& task, const mjModel* model) {
  return std::make_unique<PointMass>(model, task == "hard");
}

}  // namespace aime
