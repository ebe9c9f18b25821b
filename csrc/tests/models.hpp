// Models for the tests: the suite's own XML files and small ones, compiled by the MuJoCo library of the wheel.
#pragma once

#include "../parallel_environment/mujoco_api.hpp"

#include <memory>
#include <string>

namespace aime::tests {

struct ModelDeleter {
  void operator()(mjModel* model) const { mujoco().mj_deleteModel(model); }
};
struct DataDeleter {
  void operator()(mjData* data) const { mujoco().mj_deleteData(data); }
};
using Model = std::unique_ptr<mjModel, ModelDeleter>;
using Data = std::unique_ptr<mjData, DataDeleter>;

// Loads the library named by AIME_TEST_MUJOCO on first use, as every function below does.
void load_library();

// dm_control/suite/<domain>.xml below the directory AIME_TEST_SUITE.
Model suite_model(const std::string& domain);

// A model from MJCF text.
Model text_model(const std::string& text);

Data make_data(const mjModel* model);

// One hinge with a motor: small, fast, and it fails where its velocity is made infinite.
extern const char* const kPendulum;

}  // namespace aime::tests
