// dm_control/suite/cheetah.py: Cheetah.
#include "../episode.hpp"
#include "../task.hpp"
#include "../tolerance.hpp"

#include <algorithm>
#include <limits>

namespace aime {
namespace {

constexpr double kRunSpeed = 10.0;
constexpr int kSettlingSteps = 200;

class Cheetah final : public Task {
 public:
  explicit Cheetah(const mjModel* model) : velocity_(sensor_address(model, "torso_subtreelinvel")) {
    fields_ = {{"position", {static_cast<int>(model->nq) - 1}}, {"velocity", {static_cast<int>(model->nv)}}};
  }

  void observe(const mjModel* model, const mjData* data, double* out) const override {
    // Without the horizontal position, as the task is translation invariant.
    out = std::copy_n(data->qpos + 1, model->nq - 1, out);
    std::copy_n(data->qvel, model->nv, out);
  }

  double reward(const mjModel* /*model*/, const mjData* data) const override {
    return Tolerance{kRunSpeed, std::numeric_limits<double>::infinity(), kRunSpeed, Sigmoid::kLinear,
                     0.0}(data->sensordata[velocity_]);
  }

  bool initialises() const override { return true; }

  void initialise(mjModel* model, mjData* data, RandomState& random) const override {
    for (int joint = 0; joint < model->njnt; ++joint) {
      if (!model->jnt_limited[joint]) continue;
      data->qpos[joint] = random.uniform(model->jnt_range[2 * joint], model->jnt_range[2 * joint + 1]);
    }
    // It falls to the ground before the episode begins.
    physics_steps(model, data, kSettlingSteps);
    data->time = 0.0;
  }

 private:
  int velocity_;
};

}  // namespace

std::unique_ptr<Task> make_cheetah(const std::string& /*task*/, const mjModel* model) {
  return std::make_unique<Cheetah>(model);
}

}  // namespace aime
