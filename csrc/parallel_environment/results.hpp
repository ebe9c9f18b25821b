// What a step reports: one environment's report, and the blocks of rows that the caller sees.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

namespace aime {

enum StepType : std::int8_t { kFirst = 0, kMid = 1, kLast = 2 };  // dm_env's

// The sizes of one row.
struct RowShape {
  std::size_t observation = 0, qpos = 0, qvel = 0;
  std::size_t area = 0;         // pixels of one picture; 0 without pictures
  std::size_t frame_stack = 1;  // pictures in one row
  bool segmentation = false;
  bool depth = false;
  bool single = false;  // observation, qpos and qvel in float32 instead of float64

  std::size_t frame() const { return area * 3; }
  std::size_t number() const { return single ? sizeof(float) : sizeof(double); }
};

// The last time step of one environment. It belongs to the environment, so that it can be reported again.
struct Report {
  explicit Report(const RowShape& shape);

  double reward = 0.0;
  double discount = 1.0;
  StepType type = kFirst;
  std::vector<double> observation, qpos, qvel;
  std::vector<std::uint8_t> frames;  // the newest picture last
  std::vector<std::int32_t> segmentation;
  std::vector<std::uint8_t> body_mask;
  std::vector<float> depth;

  // Where the newest picture is to be drawn; moves the older ones back. At an episode's start there are none.
  std::uint8_t* next_frame(const RowShape& shape);
  // Fills the whole stack with the newest picture.
  void repeat_frame(const RowShape& shape);
};

// Observation and pictures of rows, in the memory that numpy sees. Numbers are float32 or float64, see RowShape.
struct Rows {
  void allocate(const RowShape& shape, std::size_t count);
  void write(const RowShape& shape, const Report& report, std::size_t row);

  std::vector<std::uint8_t> observation, qpos, qvel;
  std::vector<std::uint8_t> pixels, body_mask;
  std::vector<std::int32_t> segmentation;
  std::vector<float> depth;
};

// One step's results. Blocks alternate, so a result is valid until the second next step.
struct Results {
  Results(const RowShape& shape, std::size_t count, bool keeps_final);

  Rows rows;
  std::vector<double> reward, discount;
  std::vector<std::int8_t> step_type;
  std::vector<std::int32_t> env_id;
  // Same-step autoreset: the last observation of the episodes that ended in this step.
  Rows final_rows;
  std::vector<std::uint8_t> has_final;

  // Rare: a physics fault, by environment; an exception of the engine.
  void add_fault(int env, const std::string& reason);
  void add_failure(const std::string& reason);
  std::vector<std::pair<int, std::string>> faults;
  std::string failure;
  std::atomic<bool> troubled{false};

  std::atomic<int> written{0};
  // Before the block is filled anew.
  void clear();

 private:
  std::mutex mutex_;
};

}  // namespace aime
