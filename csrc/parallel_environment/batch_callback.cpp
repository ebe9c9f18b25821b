// The parts of Batch for tasks that are asked through a TaskCallback.
#include <algorithm>
#include <stdexcept>

#include "batch.hpp"

namespace aime {

void CallbackTask::observe(const mjModel* /*model*/, const mjData* /*data*/, double* /*out*/) const {
  throw std::logic_error("a callback task is observed by its environment");
}

double CallbackTask::reward(const mjModel* /*model*/, const mjData* /*data*/) const {
  throw std::logic_error("a callback task is rewarded by its environment");
}

namespace {

std::string layout_of(const mjModel* model) {
  return "nq " + std::to_string(model->nq) + ", nv " + std::to_string(model->nv) + ", nu " + std::to_string(model->nu) +
         ", nsensordata " + std::to_string(model->nsensordata) + ", " + std::to_string(model->nbuffer) + " bytes";
}

}  // namespace

// The physics belongs to the callback: its model and data, as they are after the last call.
void Batch::adopt_physics(Environment& environment) const {
  const TaskCallback::Physics physics = environment.callback->physics();
  const mjModel* model = physics.model;
  if (model->nbuffer != base_->nbuffer || model->nq != base_->nq || model->nv != base_->nv || model->nu != base_->nu ||
      model->nsensordata != base_->nsensordata) {
    throw std::runtime_error("the model has another layout (" + layout_of(model) + ") than the first one (" +
                             layout_of(base_.get()) + "): all environments need the same");
  }
  environment.current.borrow(physics.data);
  environment.model = physics.model;
}

// An environment whose callback failed begins a new episode next, as after a physics fault.
void Batch::abandon(Environment& environment) const {
  environment.report.reward = 0.0;
  environment.report.discount = 0.0;
  environment.report.type = kLast;
}

// Runs one callback; the physics may be another one afterwards, also where it threw.
template <typename Call>
void Batch::ask(Environment& environment, const Call& call) const {
  try {
    call(*environment.callback);
  } catch (...) {
    adopt_physics(environment);
    throw;
  }
  adopt_physics(environment);
}

void Batch::begin_with_callback(Environment& environment) {
  ask(environment, [](TaskCallback& callback) { callback.begin(); });
}

void Batch::step_with_callback(int worker, Environment& environment) {
  Report& report = environment.report;
  for (int repeat = 0; repeat < settings_.action_repeat; ++repeat) {
    ask(environment, [&](TaskCallback& callback) { callback.before_step(environment.action.data()); });
    if (!control_step(environment.model, environment)) {
      report.type = kLast;
      report.discount = 0.0;
      return;
    }
    ++environment.step_count;
    const bool time_limit = static_cast<double>(environment.step_count) >= settings_.step_limit;
    TaskCallback::Outcome outcome;
    ask(environment, [&](TaskCallback& callback) { outcome = callback.after_step(time_limit); });
    report.reward += outcome.reward;
    if (!time_limit && !outcome.end) continue;
    report.type = kLast;
    if (!time_limit) report.discount = *outcome.end;
    break;
  }
  observe(worker, environment, false);
}

// What the callback's Python may have written into its model.
void Batch::read_changes(Environment& environment) const {
  ModelChanges changes = compare_models(base_.get(), environment.model);
  environment.current.changes = changes.empty() ? nullptr : std::make_shared<const ModelChanges>(std::move(changes));
}

}  // namespace aime
