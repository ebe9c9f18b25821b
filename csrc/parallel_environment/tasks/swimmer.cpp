// dm_control/suite/swimmer.py: Swimmer. The target's place is a field of the model.
#include "../episode.hpp"
#include "../geometry.hpp"
#include "../task.hpp"
#include "../tolerance.hpp"

namespace aime {
namespace {

constexpr int kRootPositions = 3;
constexpr int kFirstSegmentSensor = 12;  // each segment has a velocimeter and a gyro, three numbers each

class Swimmer final : public Task {
 public:
  explicit Swimmer(const mjModel* model)
      : head_(object_id(model, mjOBJ_BODY, "head")),
        nose_(object_id(model, mjOBJ_GEOM, "nose")),
        target_(object_id(model, mjOBJ_GEOM, "target")),
        light_(object_id(model, mjOBJ_LIGHT, "target_light")),
        sensors_(static_cast<int>(model->nsensordata)) {
    model_ranges_ = {range_of(model, model->geom_pos + 3 * target_, 2),
                     range_of(model, model->light_pos + 3 * light_, 2)};
    const int segments = (sensors_ - kFirstSegmentSensor) / 6;
    fields_ = {{"joints", {static_cast<int>(model->nq) - kRootPositions}},
               {"to_target", {2}},
               {"body_velocities", {3 * segments}}};
  }

  void observe(const mjModel* model, const mjData* data, double* out) const override {
    out = std::copy_n(data->qpos + kRootPositions, model->nq - kRootPositions, out);
    const Vector3 offset = nose_to_target(data);
    *out++ = offset[0];
    *out++ = offset[1];
    for (int sensor = kFirstSegmentSensor; sensor < sensors_; sensor += 6) {
      *out++ = data->sensordata[sensor];      // linear, x
      *out++ = data->sensordata[sensor + 1];  // linear, y
      *out++ = data->sensordata[sensor + 5];  // rotational, z
    }
  }

  double reward(const mjModel* model, const mjData* data) const override {
    const double size = model->geom_size[3 * target_];
    return Tolerance{0.0, size, 5.0 * size, Sigmoid::kLongTail}(norm(nose_to_target(data), 2));
  }

  bool initialises() const override { return true; }

  void initialise(mjModel* model, mjData* data, RandomState& random) const override {
    randomize_limited_and_rotational_joints(model, data, random);
    const double box = random.random() < .2 ? .3 : 2.0;  // a close target now and then
    for (int axis = 0; axis < 2; ++axis) {
      const double place = random.uniform(-box, box);
      model->geom_pos[3 * target_ + axis] = place;
      model->light_pos[3 * light_ + axis] = place;
    }
  }

 private:
  // In the head's frame; the third number is not used.
  Vector3 nose_to_target(const mjData* data) const {
    return in_frame(difference(data->geom_xpos + 3 * target_, data->geom_xpos + 3 * nose_), data->xmat + 9 * head_);
  }

  int head_;
  int nose_;
  int target_;
  int light_;
  int sensors_;
};

}  // namespace

std::unique_ptr<Task> make_swimmer(const std::string& /*task*/, const mjModel* model) {
  return std::make_unique<Swimmer>(model);
}

}  // namespace aime
