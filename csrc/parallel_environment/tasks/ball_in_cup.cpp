// dm_control/suite/ball_in_cup.py: BallInCup.
#include "../task.hpp"

#include <algorithm>
#include <cmath>

namespace aime {
namespace {

class BallInCup final : public Task {
 public:
  explicit BallInCup(const mjModel* model)
      : target_(object_id(model, mjOBJ_SITE, "target")),
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

 private:
  int target_;
  int body_;
  int geom_;
};

}  // namespace

std::unique_ptr<Task> make_ball_in_cup(const std::string& /*task*/, const mjModel* model) {
  return std::make_unique<BallInCup>(model);
}

}  // namespace aime
