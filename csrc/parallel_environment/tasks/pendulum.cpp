// dm_control/suite/pendulum.py: SwingUp.
#include "../episode.hpp"
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
        position_(model->jnt_qposadr[object_id(model, mjOBJ_JOINT, "hinge")]),
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

  bool initialises() const override { return true; }

  void initialise(mjModel* /*model*/, mjData* data, RandomState& random) const override {
    data->qpos[position_] = random.uniform(-kPi, kPi);
  }

 private:
  int pole_;
  int position_;
  int velocity_;
};

}  // namespace

std::unique_ptr<Task> make_pendulum(const std::string& /*task*/, const mjModel* model) {
  return std::make_unique<Pendulum>(model);
}

}  // namespace aime
