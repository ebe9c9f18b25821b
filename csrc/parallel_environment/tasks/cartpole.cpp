// dm_control/suite/cartpole.py: Balance, with one to three poles.
#include "../episode.hpp"
#include "../task.hpp"
#include "../tolerance.hpp"

#include <algorithm>

namespace aime {
namespace {

class Cartpole final : public Task {
 public:
  Cartpole(const mjModel* model, bool swing_up, bool sparse)
      : swing_up_(swing_up),
        sparse_(sparse),
        hinge_(model->jnt_qposadr[object_id(model, mjOBJ_JOINT, "hinge_1")]),
        slider_(model->jnt_qposadr[object_id(model, mjOBJ_JOINT, "slider")]) {
    const int poles = static_cast<int>(model->nbody) - 2;
    fields_ = {{"position", {1 + 2 * poles}}, {"velocity", {static_cast<int>(model->nv)}}};
  }

  void observe(const mjModel* model, const mjData* data, double* out) const override {
    *out++ = data->qpos[slider_];
    for (int body = 2; body < model->nbody; ++body) {
      *out++ = data->xmat[9 * body + kZZ];
      *out++ = data->xmat[9 * body + kXZ];
    }
    std::copy_n(data->qvel, model->nv, out);
  }

  double reward(const mjModel* model, const mjData* data) const override {
    return sparse_ ? sparse_reward(model, data) : smooth_reward(model, data);
  }

  bool initialises() const override { return true; }

  void initialise(mjModel* model, mjData* data, RandomState& random) const override {
    if (swing_up_) {
      data->qpos[slider_] = .01 * random.randn();
      data->qpos[hinge_] = kPi + .01 * random.randn();
      for (int position = 2; position < model->nq; ++position) data->qpos[position] = .1 * random.randn();
    } else {
      data->qpos[slider_] = random.uniform(-.1, .1);
      for (int position = 1; position < model->nq; ++position) data->qpos[position] = random.uniform(-.034, .034);
    }
    for (int velocity = 0; velocity < model->nv; ++velocity) data->qvel[velocity] = 0.01 * random.randn();
  }

 private:
  double sparse_reward(const mjModel* model, const mjData* data) const {
    const Tolerance cart{-.25, .25};
    const Tolerance cosine{.995, 1.0};
    double angle_in_bounds = 1.0;
    for (int body = 2; body < model->nbody; ++body) angle_in_bounds *= cosine(data->xmat[9 * body + kZZ]);
    return cart(data->qpos[slider_]) * angle_in_bounds;
  }

  double smooth_reward(const mjModel* model, const mjData* data) const {
    double upright = 0.0;
    for (int body = 2; body < model->nbody; ++body) upright += (data->xmat[9 * body + kZZ] + 1.0) / 2.0;
    upright /= static_cast<double>(model->nbody - 2);
    const double centered = (1.0 + Tolerance{0.0, 0.0, 2.0}(data->qpos[slider_])) / 2.0;
    const double small_control = (4.0 + Tolerance{0.0, 0.0, 1.0, Sigmoid::kQuadratic, 0.0}(data->ctrl[0])) / 5.0;
    double small_velocity = 1.0;
    for (int dof = 1; dof < model->nv; ++dof) {
      small_velocity = std::min(small_velocity, Tolerance{0.0, 0.0, 5.0}(data->qvel[dof]));
    }
    small_velocity = (1.0 + small_velocity) / 2.0;
    return upright * small_control * small_velocity * centered;
  }

  bool swing_up_;
  bool sparse_;
  int hinge_;  // in qpos
  int slider_;
};

}  // namespace

std::unique_ptr<Task> make_cartpole(const std::string& task, const mjModel* model) {
  return std::make_unique<Cartpole>(model, task != "balance" && task != "balance_sparse",
                                    task == "balance_sparse" || task == "swingup_sparse");
}

}  // namespace aime
