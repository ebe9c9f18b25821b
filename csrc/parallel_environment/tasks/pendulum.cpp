// dm_control/suite/pendulum.py: SwingUp.
#include "../task.hpp"
#include "../tolerance.hpp"

#include <algorithm>

namespace aime {
namespace {

constexpr double kAngleBound = 8.0 * kPi / 180.0;

class Pendulum final : public Task {
 public:
  explicit Pendulum(const mjModel* model)
      : pole_(object_id(model, mjOBJ_BODY, "pole")),
        velocity_(model->jnt_dofadr[object_id(model, mjOBJ_JOINT, "hinge")]) {
    fields_ = {{"orientation", {2}}, {"velocity", {1}}};
  }

  void observe(const mjModel* /*model*/, const mjData* data, double* out) const override {
    *out++ = data->xmat[9 * pole_ + kZZ];
    *out++ = data->xmat[9 * pole_ + kXZ];
    *out = data->qvel[velocity_];
  }

  double reward(const mjModel* /*model*/, const mjData* data) const override {
    return Tolerance{std::cos(kAngleBound), 1.0}(data->xmat[9 * pole_ + kZZ]);
  }

 private:
  int pole_;
  int velocity_;
};

}  // namespace

std::unique_ptr<Task> make_pendulum(const std::string& /*task*/, const mjModel* model) {
  return std::make_unique<Pendulum>(model);
}

}  // namespace aime
