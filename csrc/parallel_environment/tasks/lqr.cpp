// dm_control/suite/lqr.py: LQRLevel. The stiffness of its springs is drawn with the model, once for each seed.
#include "../geometry.hpp"
#include "../task.hpp"

namespace aime {
namespace {

constexpr double kControlCost = 0.1;
constexpr double kTerminalNorm = 1e-6;

double square(const double* values, mjtSize size) {
  double sum = 0.0;
  for (mjtSize entry = 0; entry < size; ++entry) sum += values[entry] * values[entry];
  return sum;
}

class Lqr final : public Task {
 public:
  explicit Lqr(const mjModel* model) {
    fields_ = {{"position", {static_cast<int>(model->nq)}}, {"velocity", {static_cast<int>(model->nv)}}};
  }

  void observe(const mjModel* model, const mjData* data, double* out) const override {
    out = std::copy_n(data->qpos, model->nq, out);
    std::copy_n(data->qvel, model->nv, out);
  }

  double reward(const mjModel* model, const mjData* data) const override {
    const double state_cost = 0.5 * square(data->qpos, model->nq);
    const double control_cost = 0.5 * square(data->ctrl, model->nu);
    return 1.0 - (state_cost + control_cost * kControlCost);
  }

  std::optional<double> termination(const mjModel* model, const mjData* data) const override {
    const double norm = std::sqrt(square(data->qpos, model->nq) + square(data->qvel, model->nv));
    if (norm < kTerminalNorm) return 0.0;
    return std::nullopt;
  }
};

}  // namespace

std::unique_ptr<Task> make_lqr(const std::string& /*task*/, const mjModel* model) {
  return std::make_unique<Lqr>(model);
}

}  // namespace aime
