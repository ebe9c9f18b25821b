// dm_control/suite/ball_in_cup.py: BallInCup.
#include "../episode.hpp"
#include "../task.hpp"

#include <algorithm>
#include <cmath>

namespace aime {
namespace {

class BallInCup final : public Task {
 public:
  explicit BallInCup(const mjModel* model)
      : target_(object_id(model, mjOBJ_SITE, "target")),
        ball_x_(model->jnt_qposadr[object_id(model, mjOBJ_JOINT, "ball_x")]),
        ball_z_(model->jnt_qposadr[object_id(model, mjOBJ_JOINT, "ball_z")]),
        body_(object_id(model, mjOBJ_BODY, "ball")),
        geom_(object_id(model, mjOBJ_GEOM, "ball")) {
    fields_ = {{"position", {static_cast<int>(model->nq)}}, {"velocity", {static_cast<int>(model->nv)}}};
  }

  void observe(const mjModel* model, const mjData* data, double* out) const override {
    out = std::copy_n(data->qpos, model->nq, out);
    std::copy_n(data->qvel, model->nv, out);
  }

  double reward(const mjModel* model, const mjData* data) const override {
    for (const int axis : {0, 2}) {
      const double offset = std::abs(data->site_xpos[3 * target_ + axis] - data->xpos[3 * body_ + axis]);
      if (!(offset < model->site_size[3 * target_ + axis] - model->geom_size[3 * geom_])) return 0.0;
    }
    return 1.0;
  }

  bool initialises() const override { return true; }

  void initialise(mjModel* model, mjData* data, RandomState& random) const override {
    do {
      data->qpos[ball_x_] = random.uniform(-.2, .2);
      data->qpos[ball_z_] = random.uniform(.2, .5);
      forward_without_actuation(model, data);
    } while (data->ncon > 0);
  }

 private:
  int target_;
  int ball_x_;  // in qpos
  int ball_z_;
  int body_;
  int geom_;
};

}  // namespace

std::unique_ptr<Task> make_ball_in_cup(const std::string& /*task*/, const mjModel* model) {
  return std::make_unique<BallInCup>(model);
}

}  // namespace aime
