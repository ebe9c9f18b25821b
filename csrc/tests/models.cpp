#include "models.hpp"

#include <dlfcn.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <stdexcept>

namespace aime::tests {
namespace {

std::string variable(const char* name) {
  const char* value = std::getenv(name);
  if (value == nullptr) throw std::runtime_error(std::string(name) + " is not set: run scripts/sanitize.sh");
  return value;
}

Model load_file(const std::string& path) {
  load_library();
  // Not among the functions the extension calls: there dm_control compiles the models.
  using Load = mjModel* (*)(const char*, const mjVFS*, char*, int);
  void* library = dlopen(variable("AIME_TEST_MUJOCO").c_str(), RTLD_NOW | RTLD_NOLOAD);
  void* address = dlsym(library, "mj_loadXML");
  Load load = nullptr;
  std::memcpy(&load, &address, sizeof(address));
  char error[1000] = {};
  mjModel* model = nullptr;
  MujocoMessages messages;  // keeps deprecations in the suite's files out of the output
  guarded([&] { model = load(path.c_str(), nullptr, error, sizeof(error)); }, messages);
  if (model == nullptr) throw std::runtime_error(path + ": " + error);
  return Model(model);
}

}  // namespace

const char* const kPendulum = R"(
<mujoco>
  <option timestep="0.01"/>
  <worldbody>
    <light pos="0 0 3"/>
    <camera name="fixed" pos="0 -3 1" zaxis="0 -1 0"/>
    <geom name="floor" type="plane" size="1 1 .1" pos="0 0 -1"/>
    <body name="pole">
      <joint name="hinge" type="hinge" axis="0 1 0"/>
      <geom name="pole" type="capsule" fromto="0 0 0 0 0 .5" size=".05" mass="1"/>
    </body>
  </worldbody>
  <actuator><motor joint="hinge" ctrlrange="-1 1" ctrllimited="true"/></actuator>
</mujoco>
)";

void load_library() {
  static const int version = load_mujoco(variable("AIME_TEST_MUJOCO"));
  static_cast<void>(version);
}

Model suite_model(const std::string& domain) {
  static std::map<std::string, Model> compiled;  // that takes longer than most tests
  Model& model = compiled[domain];
  if (!model) model = load_file(variable("AIME_TEST_SUITE") + "/" + domain + ".xml");
  return Model(mujoco().mj_copyModel(nullptr, model.get()));
}

Model text_model(const std::string& text) {
  char path[] = "/tmp/aime_model_XXXXXX";
  const int file = mkstemp(path);
  if (file < 0) throw std::runtime_error("cannot make a temporary file");
  close(file);
  std::ofstream(path) << text;
  try {
    Model model = load_file(path);
    unlink(path);
    return model;
  } catch (...) {
    unlink(path);
    throw;
  }
}

Data make_data(const mjModel* model) {
  mjData* data = nullptr;
  guarded_or_throw([&] { data = mujoco().mj_makeData(model); }, "cannot make the simulation data");
  return Data(data);
}

}  // namespace aime::tests
