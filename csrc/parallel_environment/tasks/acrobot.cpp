// dm_control/suite/acrobot.py: Balance.
#include "../episode.hpp"
#include "../geometry.hpp"
#include "../task.hpp"
#include "../tolerance.hpp"

namespace aime {
namespace {

class Acrobot final : public Task {
 public:
  Acrobot(const mjModel* model, bool sparse)
      : sparse_(sparse),
        joints_{model->jnt_qposadr[object_id(model, mjOBJ_JOINT, "shoulder")],
                model->jnt_qposadr[object_id(model, mjOBJ_JOINT, "elbow")]},
        arms_{object_id(model, mjOBJ_BODY, "upper_arm"), object_id(model, mjOBJ_BODY, "lower_arm")},
        target_(object_id(model, mjOBJ_SITE, "target")),
        tip_(object_id(model, mjOBJ_SITE, "tip")) {
    fields_ = {{"orientations", {4}}, {"velocity", {static_cast<int>(model->nv)}}};
  }

  void observe(const mjModel* model, const mjData* data, double* out) const override {
    for (const int arm : arms_) *out++ = data->xmat[9 * arm + kXZ];
    for (const int arm : arms_) *out++ = data->xmat[9 * arm + kZZ];
    std::copy_n(data->qvel, model->nv, out);
  }

  double reward(const mjModel* model, const mjData* data) const override {
    const double to_target = distance(data->site_xpos + 3 * target_, data->site_xpos + 3 * tip_);
    return Tolerance{0.0, model->site_size[3 * target_], sparse_ ? 0.0 : 1.0}(to_target);
  }

  bool initialises() const override { return true; }

  void initialise(mjModel* /*model*/, mjData* data, RandomState& random) const override {
    for (const int joint : joints_) data->qpos[joint] = random.uniform(-kPi, kPi);
  }

 private:
  bool sparse_;
  std::array<int, 2> joints_;  // in qpos
  std::array<int, 2> arms_;
  int target_;
  int tip_;
};

}  // namespace

std::unique_ptr<Task> make_acrobot(const std::string& task, const mjModel* model) {
  return std::make_unique<Acrobot>(model, task == "swingup_sparse");
}

}  // namespace aime
