// dm_control/suite/walker.py: PlanarWalker.
#include "../episode.hpp"
#include "../task.hpp"
#include "../tolerance.hpp"

#include <algorithm>
#include <limits>

namespace aime {
namespace {

constexpr double kStandHeight = 1.2;
constexpr double kInfinity = std::numeric_limits<double>::infinity();

class Walker final : public Task {
 public:
  Walker(const mjModel* model, double move_speed)
      : move_speed_(move_speed),
        torso_(object_id(model, mjOBJ_BODY, "torso")),
        velocity_(sensor_address(model, "torso_subtreelinvel")) {
    fields_ = {{"orientations", {2 * (static_cast<int>(model->nbody) - 1)}},
               {"height", {}},
               {"velocity", {static_cast<int>(model->nv)}}};
  }

  void observe(const mjModel* model, const mjData* data, double* out) const override {
    for (int body = 1; body < model->nbody; ++body) {
      *out++ = data->xmat[9 * body + kXX];
      *out++ = data->xmat[9 * body + kXZ];
    }
    *out++ = data->xpos[3 * torso_ + 2];
    std::copy_n(data->qvel, model->nv, out);
  }

  double reward(const mjModel* /*model*/, const mjData* data) const override {
    const double standing = Tolerance{kStandHeight, kInfinity, kStandHeight / 2.0}(data->xpos[3 * torso_ + 2]);
    const double upright = (1.0 + data->xmat[9 * torso_ + kZZ]) / 2.0;
    const double stand_reward = (3.0 * standing + upright) / 4.0;
    if (move_speed_ == 0.0) return stand_reward;
    const double move =
        Tolerance{move_speed_, kInfinity, move_speed_ / 2.0, Sigmoid::kLinear, 0.5}(data->sensordata[velocity_]);
    return stand_reward * (5.0 * move + 1.0) / 6.0;
  }

  bool initialises() const override { return true; }

  void initialise(mjModel* model, mjData* data, RandomState& random) const override {
    randomize_limited_and_rotational_joints(model, data, random);
  }

 private:
  double move_speed_;
  int torso_;
  int velocity_;
};

}  // namespace

std::unique_ptr<Task> make_walker(const std::string& task, const mjModel* model) {
  if (task == "stand") return std::make_unique<Walker>(model, 0.0);
  if (task == "walk") return std::make_unique<Walker>(model, 1.0);
  return std::make_unique<Walker>(model, 8.0);
}

}  // namespace aime
