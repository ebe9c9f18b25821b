// dm_control/suite/finger.py: Spin and Turn. The hinge's damping and the target are fields of the model.
#include "../episode.hpp"
#include "../task.hpp"

#include <algorithm>
#include <cmath>

namespace aime {
namespace {

constexpr double kSpinVelocity = 15.0;
constexpr double kSpinDamping = .03;
constexpr double kEasyTargetSize = .07;
constexpr double kHardTargetSize = .03;
constexpr int kAttempts = 1000;

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

  bool initialises() const override { return true; }

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
  explicit Spin(const mjModel* model)
      : Finger(model),
        target_(object_id(model, mjOBJ_SITE, "target")),
        tip_site_(object_id(model, mjOBJ_SITE, "tip")),
        hinge_(model->jnt_dofadr[object_id(model, mjOBJ_JOINT, "hinge")]) {
    model_ranges_ = {range_of(model, model->site_rgba + 4 * target_ + 3, 1),
                     range_of(model, model->site_rgba + 4 * tip_site_ + 3, 1),
                     range_of(model, model->dof_damping + hinge_, 1)};
  }

  void initialise(mjModel* model, mjData* data, RandomState& random) const override {
    // The target and the tip are not to be seen.
    model->site_rgba[4 * target_ + 3] = 0.0F;
    model->site_rgba[4 * tip_site_ + 3] = 0.0F;
    model->dof_damping[hinge_] = kSpinDamping;
    randomize_until_free(model, data, random, kAttempts);
  }

  double reward(const mjModel* /*model*/, const mjData* data) const override {
    return data->sensordata[velocities_[2]] <= -kSpinVelocity ? 1.0 : 0.0;
  }

 private:
  int target_;
  int tip_site_;
  int hinge_;  // in qvel
};

class Turn final : public Finger {
 public:
  Turn(const mjModel* model, double target_size)
      : Finger(model),
        target_size_(target_size),
        target_(sensor_address(model, "target")),
        site_(object_id(model, mjOBJ_SITE, "target")),
        cap_(object_id(model, mjOBJ_GEOM, "cap1")),
        hinge_(object_id(model, mjOBJ_JOINT, "hinge")) {
    model_ranges_ = {range_of(model, model->site_pos + 3 * site_, 3), range_of(model, model->site_size + 3 * site_, 1)};
    fields_.push_back({"target_position", {2}});
    fields_.push_back({"dist_to_target", {}});
  }

  double reward(const mjModel* model, const mjData* data) const override {
    return distance_to_target(model, data) <= 0.0 ? 1.0 : 0.0;
  }

  void initialise(mjModel* model, mjData* data, RandomState& random) const override {
    const double angle = random.uniform(-kPi, kPi);
    const double* size = model->geom_size + 3 * cap_;
    const double radius = size[0] + size[1] + size[2];
    model->site_pos[3 * site_] = data->xanchor[3 * hinge_] + radius * std::sin(angle);
    model->site_pos[3 * site_ + 2] = data->xanchor[3 * hinge_ + 2] + radius * std::cos(angle);
    model->site_size[3 * site_] = target_size_;
    randomize_until_free(model, data, random, kAttempts);
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

  double target_size_;
  int target_;  // in sensordata
  int site_;
  int cap_;
  int hinge_;
};

}  // namespace

std::unique_ptr<Task> make_finger(const std::string& task, const mjModel* model) {
  if (task == "spin") return std::make_unique<Spin>(model);
  return std::make_unique<Turn>(model, task == "turn_easy" ? kEasyTargetSize : kHardTargetSize);
}

}  // namespace aime
