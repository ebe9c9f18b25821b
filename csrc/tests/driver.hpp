// Drives a batch as ParallelEnvironment does, without Python.
#pragma once

#include "../parallel_environment/batch.hpp"
#include "models.hpp"

#include <cstdint>
#include <memory>
#include <vector>

namespace aime::tests {

using Bytes = std::vector<std::uint8_t>;

inline std::vector<std::uint32_t> seeds_of(int envs) {
  std::vector<std::uint32_t> seeds;
  for (int env = 0; env < envs; ++env) seeds.push_back(static_cast<std::uint32_t>(31 + env));
  return seeds;
}

// A batch, the model it came from, and the episodes of tasks that C++ does not draw.
class Driver {
 public:
  explicit Driver(const BatchSettings& settings) : model(aime::tests::suite_model(settings.domain)) {
    batch = std::make_unique<Batch>(model.get(), settings, seeds_of(settings.num_envs));
  }

  void reset() {
    load(batch->lacking(nullptr, true));
    batch->start_episodes(nullptr);
    batch->finish();
  }

  void step(const std::vector<double>& actions) {
    load(batch->lacking(nullptr, false));
    batch->start_steps(actions.data());
    batch->finish();
  }

  void load(const std::vector<int>& envs) {
    for (const int env : envs) {
      const Data data = aime::tests::make_data(model.get());
      for (int index = 0; index < model->nv; ++index) data->qvel[index] = 0.01 * (1 + (env + index) % 5);
      aime::mujoco().mj_forward(model.get(), data.get());
      batch->load(env, model.get(), data.get());
    }
  }

  const Results& results() const { return *batch->blocks()[static_cast<std::size_t>(batch->block())]; }

  // Everything a caller sees of the last step.
  Bytes seen() const {
    const Results& from = results();
    Bytes bytes = from.rows.observation;
    const auto append = [&](const auto& values) {
      const auto* start = reinterpret_cast<const std::uint8_t*>(values.data());
      bytes.insert(bytes.end(), start, start + values.size() * sizeof(values[0]));
    };
    append(from.rows.qpos);
    append(from.rows.qvel);
    append(from.reward);
    append(from.discount);
    append(from.step_type);
    append(from.has_final);
    if (!from.has_final.empty()) append(from.final_rows.observation);
    return bytes;
  }

  Model model;
  std::unique_ptr<Batch> batch;
};

}  // namespace aime::tests
