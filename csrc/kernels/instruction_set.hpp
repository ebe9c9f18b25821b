// The vectorised kernels, once per instruction set (instruction_set_*.cpp) and chosen at run time by what the processor
// reports, so that one binary serves every machine. A kernel works on rows in memory: float32, padded to whole vectors.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace aime {

// Pixels of one image, `pixels` a multiple of the lanes; pointers lead to one float a pixel.
struct LogisticsBlock {
  std::int64_t components;
  std::int64_t pixels;
  const float* const* x;             // 3
  const float* const* logits;        // components
  const float* const* means;         // components x 3
  const float* const* log_scales;    // components x 3
  const float* const* coefficients;  // components x 3
  float* scratch;                    // 2 components x pixels
  // forward: out; backward: in
  float* const* mean;  // 3
  float* joint;
  float* normaliser;
  // backward only
  const float* upstream;       // gradient of the likelihood times the pixel's weight
  const float* const* g_mean;  // 3
  float* const* g_logits;
  float* const* g_means;
  float* const* g_log_scales;
  float* const* g_coefficients;
};

// One row of a mixture density; `width` is a multiple of the lanes, padded with zeros.
struct DensityBlock {
  std::int64_t samples;
  std::int64_t components;
  std::int64_t width;
  float constant;           // width of the unpadded row times log(2 pi) / 2
  const float* log_pi;      // components
  const float* means;       // components x stride
  const float* log_scales;  // components x stride
  std::int64_t stride;
  float* z;                  // samples x width; noise on entry where there is a posterior, else samples
  const float* mean_q;       // width, or null
  const float* log_scale_q;  // width, or null
  float* spread;             // samples x width with a posterior: scale_q times noise, out
  float* log_prob;           // samples; forward: out, backward: in
  float* scratch;            // width + (components + 2) x samples, both padded to whole vectors
  // backward only
  const float* gradient;  // samples
  float* g_z;             // samples x width, zero on entry
  float* g_log_pi;        // components
  float* g_means;         // components x g_stride
  float* g_log_scales;    // components x g_stride
  std::int64_t g_stride;
  bool accumulate;  // add to g_means and g_log_scales instead of writing
};

// `count` sticks, a multiple of the lanes.
struct StickBlock {
  std::int64_t count;
  const float* log_a;
  const float* log_b;
  const float* u;
  float* log_v;     // forward: out
  float* log_rest;  // forward: out
  float* log_q;     // forward: out
  // backward only
  const float* g_log_v;  // of log v: from log_pi and log_v together
  const float* g_rest;   // of log(1 - v)
  const float* g_log_q;
  float* g_log_a;
  float* g_log_b;
};

// As many inputs of one batch entry as there are lanes; `width` is a multiple of the lanes, padded with zeros.
struct SlotBlock {
  std::int64_t slots;
  std::int64_t width;
  std::int64_t channels;  // of the width, what is no padding
  float eps;
  const float* x;  // lanes x x_stride
  std::int64_t x_stride;
  const float* keep;    // lanes: 1, or 0 for an input that takes no part
  const float* seen;    // slots x width
  const float* offset;  // slots
  float* normal;        // lanes x width, scratch
  float* attention;     // slots x lanes, out
  float* coefficients;  // slots x lanes, scratch
  // forward, added to
  float* sums;    // slots x width
  float* totals;  // slots x lanes
  // backward
  const float* g_sums;       // slots x width
  const float* g_totals;     // slots
  const float* g_attention;  // slots x lanes, or null
  float* g_logits;           // slots x lanes, scratch
  float* g_x;                // lanes x width, out
  float* g_seen;             // slots x width, added to
  float* g_offset;           // slots x lanes, added to
};

// `lines` rows of patches of the frames of one sequence. Strides are in values.
struct PatchBlock {
  const void* frames;  // the first row of frame 0
  bool bytes;          // uint8, else float32
  std::int64_t length;
  std::int64_t lines;
  std::int64_t channels;
  std::int64_t patch;
  std::int64_t width;       // of the frames
  std::int64_t strides[4];  // of frames, channels, rows and pixels
  const float* mean;        // channels x lines patch x width, channels `plane` apart
  const float* factor;      // likewise
  std::int64_t plane;
  std::int64_t changes;  // frames before each whose differences are given
  const float* before;   // changes x lines x channels x patch x width, or null
  float* ring;           // (changes + 1) x lines x channels x patch x width, scratch
  float* values;         // 2 x patch x width, scratch
  std::int64_t size;     // of a patch, in values
  std::int64_t stride;   // from a frame's patches to the next frame's
  bool halves;           // bfloat16, else float32
  void* out;
};

// One row of an image.
struct ErrorBlock {
  std::int64_t channels;
  std::int64_t width;
  std::int64_t padded;  // width x channels, up to a multiple of the lanes
  bool halves;          // decoded values are bfloat16, else float32
  const void* decoded;  // width x channels
  bool bytes;           // the frame's values are uint8, else float32
  const void* frame;
  std::int64_t channel_stride;  // of the frame
  std::int64_t pixel_stride;
  const float* mean;     // width x channels
  const float* factor;   // width x channels
  const float* weights;  // width, or null
  float* errors;         // padded, scratch
  float* weighted;       // padded, scratch
  // backward only
  float scale;     // twice the gradient of the sum
  void* gradient;  // width x channels, in the dtype of decoded
};

struct RolloutBlock;  // latent_rollout.hpp

struct InstructionSet {
  const char* name;
  std::int64_t lanes;
  double operations_per_iteration;                   // of multiply_adds
  double (*multiply_adds)(std::int64_t iterations);  // returns a sum that depends on all of them
  void (*logistics)(const LogisticsBlock& block);
  void (*logistics_backward)(const LogisticsBlock& block);
  void (*density)(const DensityBlock& block);
  void (*density_backward)(const DensityBlock& block);
  void (*sticks)(const StickBlock& block);
  void (*sticks_backward)(const StickBlock& block);
  void (*slot_attend)(const SlotBlock& block);
  void (*slot_attend_backward)(const SlotBlock& block);
  void (*frame_patches)(const PatchBlock& block);
  float (*frame_error)(const ErrorBlock& block);  // the sum of weighted squares
  void (*frame_error_backward)(const ErrorBlock& block);
  void (*rollout)(const RolloutBlock& block);
  void (*rollout_backward)(const RolloutBlock& block);
  std::int64_t panel_columns;           // of the rollout's packed matrices
  bool (*multiplies_bfloat16_pairs)();  // whether they hold bfloat16 pairs: this processor has an instruction for them
};

extern const InstructionSet kBaselineSet;
#if defined(__x86_64__)
extern const InstructionSet kAvx2Set;
extern const InstructionSet kAvx512Set;
#endif

// The named instruction set, or the best one for "".
// Throws std::invalid_argument where the processor cannot run it.
const InstructionSet& choose_instruction_set(const std::string& op, const std::string& name);

// float32 operations a second of this machine on `threads` threads: multiply-adds on registers for some 100 ms, the
// best of 60 tries.
double peak_operations(int threads, const std::string& instructions);

}  // namespace aime
