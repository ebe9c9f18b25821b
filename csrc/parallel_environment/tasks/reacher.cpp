// dm_control/suite/reacher.py: Reacher. The target's size and place are fields of the model, drawn at each reset.
#include "../task.hpp"
#include "../tolerance.hpp"

#include <algorithm>

namespace aime {
namespace {

class Reacher final : public Task {
 public:
  explicit Reacher(const mjModel* model)
      : target_(object_id(model, mjOBJ_GEOM, "target")), finger_(object_id(model, mjOBJ_GEOM, "finger")) {
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

 private:
  double difference(const mjData* data, int axis) const {
    return data->geom_xpos[3 * target_ + axis] - data->geom_xpos[3 * finger_ + axis];
  }

  int target_;
  int finger_;
};

}  // namespace

std::unique_ptr<Task> make_reacher(const std::string& /*task*/, const mjModel* model) {
  return std::make_unique<Reacher>(model);
}

}  // namespace aime
