#include "frame_patches.hpp"

#include <memory>

#include "buffer.hpp"
#include "instruction_set.hpp"
#include "parallel.hpp"

namespace aime {
namespace {

constexpr double kNanoseconds = 0.5;  // a value written

// One thread's memory and the rows of patches in hand.
class Worker {
 public:
  Worker(const PatchInputs& inputs, void* patches, bool halves, std::int64_t lines, const InstructionSet& set)
      : inputs_(inputs),
        set_(set),
        patches_(patches),
        halves_(halves),
        channels_(inputs.frames.size(2)),
        width_(inputs.frames.size(4)),
        lines_(lines),
        all_lines_(inputs.frames.size(3) / inputs.patch),
        band_(lines * channels_ * inputs.patch * width_),
        memory_((2 * inputs.changes + 1) * band_ + 2 * inputs.patch * width_) {}

  void operator()(std::int64_t tile) {
    const Tensor& frames = inputs_.frames;
    const std::int64_t sequence = tile * lines_ / all_lines_;
    const std::int64_t line = tile * lines_ % all_lines_;
    const std::int64_t top = line * inputs_.patch;
    const std::int64_t size = (1 + inputs_.changes) * channels_ * inputs_.patch * inputs_.patch;
    const std::int64_t line_size = width_ / inputs_.patch * size;
    const std::int64_t start = sequence * frames.stride(0) + top * frames.stride(3);
    const std::int64_t to = (sequence * frames.size(1) * all_lines_ + line) * line_size;
    PatchBlock block = {};
    block.bytes = inputs_.bytes;
    block.frames = static_cast<const char*>(frames.data) + start * (inputs_.bytes ? 1 : 4);
    block.length = frames.size(1);
    block.lines = lines_;
    block.channels = channels_;
    block.patch = inputs_.patch;
    block.width = width_;
    for (std::size_t axis = 0; axis < 4; ++axis) block.strides[axis] = frames.stride(axis + 1);
    block.mean = inputs_.mean + top * width_;
    block.factor = inputs_.factor + top * width_;
    block.plane = frames.size(3) * width_;
    block.changes = inputs_.changes;
    block.before = read_before(sequence, top);
    block.ring = memory_.data() + inputs_.changes * band_;
    block.values = block.ring + (1 + inputs_.changes) * band_;
    block.size = size;
    block.stride = all_lines_ * line_size;
    block.halves = halves_;
    block.out = static_cast<char*>(patches_) + to * (halves_ ? 2 : 4);
    set_.frame_patches(block);
  }

 private:
  // The rows in hand of the frames before, (S - 1, lines, C, patch, W); null where there are none.
  const float* read_before(std::int64_t sequence, std::int64_t top) {
    const Tensor& before = inputs_.before;
    if (before.data == nullptr || inputs_.changes == 0) return nullptr;
    float* to = memory_.data();
    for (std::int64_t band = 0; band < inputs_.changes * lines_ * channels_; ++band) {
      const std::int64_t k = band / channels_ / lines_;
      const std::int64_t first = top + band / channels_ % lines_ * inputs_.patch;
      const std::int64_t start =
          sequence * before.stride(0) + k * before.stride(1) + band % channels_ * before.stride(2);
      for (std::int64_t row = first; row < first + inputs_.patch; ++row, to += width_) {
        before.read(start + row * before.stride(3), before.stride(4), width_, to);
      }
    }
    return memory_.data();
  }

  const PatchInputs& inputs_;
  const InstructionSet& set_;
  void* patches_;
  bool halves_;
  std::int64_t channels_;
  std::int64_t width_;
  std::int64_t lines_;  // in hand
  std::int64_t all_lines_;
  std::int64_t band_;  // values of one frame in the rows in hand
  Buffer memory_;      // of the frames before, of the last S frames, and of one channel with its bfloat16 twin
};

}  // namespace

void frame_patches(const PatchInputs& inputs, void* patches, bool halves, int threads,
                   const std::string& instructions) {
  const InstructionSet& set = choose_instruction_set("frame_patches", instructions);
  const Tensor& frames = inputs.frames;
  const std::int64_t all_lines = frames.size(3) / inputs.patch;
  const std::int64_t lines = frames.size(0) >= threads ? all_lines : 1;
  const std::int64_t tiles = frames.size(0) * (all_lines / lines);
  const std::int64_t values = frames.size(0) * frames.size(1) * frames.size(2) * frames.size(3) * frames.size(4);
  run_tiles(tiles, threads, kNanoseconds * static_cast<double>(values * (1 + inputs.changes)), [&]() -> TileWork {
    const auto worker = std::make_shared<Worker>(inputs, patches, halves, lines, set);
    return [worker](std::int64_t tile) { (*worker)(tile); };
  });
}

}  // namespace aime
