// The floor: mj_step and nothing else. N environments of one model, shared out among threads, each with its own
// control that stays. No reward, no observation, no reset, no waiting for one another within a call.
#include <mujoco/mujoco.h>

#include <algorithm>
#include <cstdint>
#include <random>
#include <thread>
#include <vector>

namespace {

struct Floor {
  const mjModel* model = nullptr;
  std::vector<mjData*> data;
  std::vector<std::vector<double>> controls;  // a few for each environment, held one after another
  int threads = 1;
  std::int64_t turn = 0;
};

constexpr int kControls = 16;

}  // namespace

extern "C" {

// `states`: (count, size) of the signature, where each environment begins.
void* floor_make(std::uintptr_t model, int count, int threads, const double* states, int size, unsigned signature) {
  auto* floor = new Floor;
  floor->model = mj_copyModel(nullptr, reinterpret_cast<const mjModel*>(model));
  floor->threads = threads;
  std::mt19937 generator(0);
  for (int env = 0; env < count; ++env) {
    mjData* data = mj_makeData(floor->model);
    mj_setState(floor->model, data, states + static_cast<std::ptrdiff_t>(env) * size, static_cast<int>(signature));
    mj_forward(floor->model, data);
    floor->data.push_back(data);
    std::vector<double> controls;
    for (int entry = 0; entry < kControls * floor->model->nu; ++entry) {
      controls.push_back(std::uniform_real_distribution<double>(-1.0, 1.0)(generator));
    }
    floor->controls.push_back(std::move(controls));
  }
  return floor;
}

// `actions` times: every environment takes its next control and does `steps` physics steps with it.
void floor_run(void* handle, int actions, int steps) {
  auto* floor = static_cast<Floor*>(handle);
  const int count = static_cast<int>(floor->data.size());
  const auto work = [&](int thread) {
    for (int action = 0; action < actions; ++action) {
      for (int env = thread; env < count; env += floor->threads) {
        mjData* data = floor->data[static_cast<std::size_t>(env)];
        const double* controls = floor->controls[static_cast<std::size_t>(env)].data();
        std::copy_n(controls + (floor->turn + action) % kControls * floor->model->nu, floor->model->nu, data->ctrl);
        for (int step = 0; step < steps; ++step) mj_step(floor->model, data);
      }
    }
  };
  std::vector<std::thread> threads;
  for (int thread = 1; thread < floor->threads; ++thread) threads.emplace_back(work, thread);
  work(0);
  for (std::thread& thread : threads) thread.join();
  floor->turn += actions;
}

void floor_free(void* handle) {
  auto* floor = static_cast<Floor*>(handle);
  for (mjData* data : floor->data) mj_deleteData(data);
  mj_deleteModel(const_cast<mjModel*>(floor->model));
  delete floor;
}

}  // extern "C"
