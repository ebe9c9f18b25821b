// dm_control/suite/finger.py: Spin and Turn. The hinge's damping and the target are fields of the model.
#include "../task.hpp"

#include <algorithm>
#include <cmath>

namespace aime {
namespace {

constexpr double kSpinVelocity = 15.0;

class Finger : public Task {
 public:
  explicit Finger(const mjModel* model)
      : proximal_(sensor_address(model, "proximal")),
        distal_(sensor_address(model, "distal")),
        tip_(sensor_address(model, "tip")),
        spinner_(sensor_address(model, "spinner")),
        velocities_{sensor_address(model, "proximal_velocity"), sensor_address(model, "distal_velocity"),
                    sensor_address(model, "hinge_velocity")},
        touch_{sensor_address(model, "touchtop"), sensor_address(model, "touchbottom")} {
    fields_ = {{"position", {4}}, {"velocity", {3}}, {"touch", {2}}};
  }

  void observe(const mjModel* model, const mjData* data, double* out) const override {
    const double* sensors = data->sensordata;
    *out++ = sensors[proximal_];
    *out++ = sensors[distal_];
    for (const int axis : {0, 2}) *out++ = from_hinge(data, tip_, axis);
    for (const int velocity : velocities_) *out++ = sensors[velocity];
    for (const int touch : touch_) *out++ = std::log1p(sensors[touch]);
    observe_target(model, data, out);
  }

 protected:
  virtual void observe_target(const mjModel* /*model*/, const mjData* /*data*/, double* /*out*/) const {}

  // A position sensor relative to the hinge.
  double from_hinge(const mjData* data, int sensor, int axis) const {
    return data->sensordata[sensor + axis] - data->sensordata[spinner_ + axis];
  }

  int proximal_;
  int distal_;
  int tip_;
  int spinner_;
  std::array<int, 3> velocities_;
  std::array<int, 2> touch_;
};

class Spin final : public Finger {
 public:
  using Finger::Finger;

  double reward(const mjModel* /*model*/, const mjData* data) const override {
    return data->sensordata[velocities_[2]] <= -kSpinVelocity ? 1.0 : 0.0;
  }
};

class Turn final : public Finger {
 public:
  explicit Turn(const mjModel* model)
      : Finger(model), target_(sensor_address(model, "target")), site_(object_id(model, mjOBJ_SITE, "target")) {
    fields_.push_back({"target_position", {2}});
    fields_.push_back({"dist_to_target", {}});
  }

  double reward(const mjModel* model, const mjData* data) const override {
    return distance_to_target(model, data) <= 0.0 ? 1.0 : 0.0;
  }

 private:
  void observe_target(const mjModel* model, const mjData* data, double* out) const override {
    for (const int axis : {0, 2}) *out++ = from_hinge(data, target_, axis);
    *out = distance_to_target(model, data);
  }

  // To the target's surface; negative inside.
  double distance_to_target(const mjModel* model, const mjData* data) const {
    const double x = from_hinge(data, target_, 0) - from_hinge(data, tip_, 0);
    const double z = from_hinge(data, target_, 2) - from_hinge(data, tip_, 2);
    return std::sqrt(x * x + z * z) - model->site_size[3 * site_];
  }

  int target_;
  int site_;
};

}  // namespace

std::unique_ptr<Task> make_finger(const std::string& task, const mjModel* model) {
  if (task == "spin") return std::make_unique<Spin>(model);
  return std::make_unique<Turn>(model);
}

}  // namespace aime
