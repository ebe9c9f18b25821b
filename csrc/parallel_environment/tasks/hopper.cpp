// dm_control/suite/hopper.py: Hopper.
#include "../episode.hpp"
#include "../task.hpp"
#include "../tolerance.hpp"

#include <algorithm>
#include <limits>

namespace aime {
namespace {

constexpr double kStandHeight = 0.6;
constexpr double kHopSpeed = 2.0;

class Hopper final : public Task {
 public:
  Hopper(const mjModel* model, bool hopping)
      : hopping_(hopping),
        torso_(object_id(model, mjOBJ_BODY, "torso")),
        foot_(object_id(model, mjOBJ_BODY, "foot")),
        velocity_(sensor_address(model, "torso_subtreelinvel")),
        touch_{sensor_address(model, "touch_toe"), sensor_address(model, "touch_heel")} {
    fields_ = {
        {"position", {static_cast<int>(model->nq) - 1}}, {"velocity", {static_cast<int>(model->nv)}}, {"touch", {2}}};
  }

  void observe(const mjModel* model, const mjData* data, double* out) const override {
    // Without the horizontal position, as the task is translation invariant.
    out = std::copy_n(data->qpos + 1, model->nq - 1, out);
    out = std::copy_n(data->qvel, model->nv, out);
    for (const int touch : touch_) *out++ = std::log1p(data->sensordata[touch]);
  }

  double reward(const mjModel* model, const mjData* data) const override {
    const double height = data->xipos[3 * torso_ + 2] - data->xipos[3 * foot_ + 2];
    const double standing = Tolerance{kStandHeight, 2.0}(height);
    if (hopping_) {
      const double infinity = std::numeric_limits<double>::infinity();
      const Tolerance fast{kHopSpeed, infinity, kHopSpeed / 2.0, Sigmoid::kLinear, 0.5};
      return standing * fast(data->sensordata[velocity_]);
    }
    return standing * ((mean_small_control(model, data) + 4.0) / 5.0);
  }

  bool initialises() const override { return true; }

  void initialise(mjModel* model, mjData* data, RandomState& random) const override {
    randomize_limited_and_rotational_joints(model, data, random);
  }

 private:
  bool hopping_;
  int torso_;
  int foot_;
  int velocity_;
  std::array<int, 2> touch_;
};

}  // namespace

std::unique_ptr<Task> make_hopper(const std::string& task, const mjModel* model) {
  return std::make_unique<Hopper>(model, task == "hop");
}

}  // namespace aime
