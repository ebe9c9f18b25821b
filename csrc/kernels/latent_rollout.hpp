// Rollouts of recurrence and prior on the model's own samples, and their gradient: aime/world_model/latent_rollout.py.
//
// N frames of B sequences, one after the other, on the calling thread: a frame is three products of B rows (the prior's
// first layer, the gates, and the sticks' network) and what lies between them, row by row in cache. Of the prior's last
// layer only the component that was chosen is computed.
#pragma once

#include <cstdint>
#include <string>

namespace aime {

// `hidden` (Hd), `width` (W) and `stick_width` are multiples of kRolloutMultiple.
struct RolloutSizes {
  std::int64_t frames;       // N
  std::int64_t batch;        // B
  std::int64_t hidden;       // Hd
  std::int64_t width;        // W, of the component network
  std::int64_t stick_width;  // of the sticks' network; any where there is one component
  std::int64_t components;   // K
  std::int64_t latent;       // D
  std::int64_t action;       // A
  bool bfloat16;             // matrices are multiplied in bfloat16 and summed in float32; else all is float32

  std::int64_t inputs() const { return latent + action; }
  std::int64_t joined() const { return (inputs() + hidden + 1) / 2 * 2; }  // stride of [z; a; h], a whole pair
  std::int64_t outputs() const { return 2 * components * latent; }
  // length of RolloutGradients::vectors
  std::int64_t vectors() const { return 3 * width + 6 * hidden + outputs() + latent; }
};

constexpr std::int64_t kRolloutMultiple = 16;

// Row-major float32, as PyTorch has them.
struct RolloutWeights {
  const float* first;  // (W, Hd)
  const float* first_bias;
  const float* norm;
  const float* norm_bias;
  const float* last;       // (2 K D, W): means, then raw log scales
  const float* last_bias;  // (2 K D)
  const float* persistence;
  const float* top_norm;
  const float* top_norm_bias;
  const float* input;        // (4 Hd, D + A): gates i, f, g, o
  const float* recurrent;    // (4 Hd, Hd)
  const float* gate_bias;    // (4 Hd), both biases together
  const float* stick_first;  // (stick_width, Hd); this and the rest null where there is one component
  const float* stick_first_bias;
  const float* stick_norm;
  const float* stick_norm_bias;
  const float* stick_last;  // (2 (K - 1), stick_width): log a, then log b
  const float* stick_last_bias;
};

// Row-major float32.
struct RolloutInputs {
  const float* actions;  // (B, N, A)
  const float* hidden;   // (B, Hd), as the model reads it
  const float* latent;   // (B, D)
  const float* raw;      // (B, Hd), of the recurrence
  const float* cell;     // (B, Hd)
  const float* sticks;   // (N, B, K - 1)
  const float* choice;   // (N, B, K)
  const float* normal;   // (N, B, D)
};

// What the forward pass finds and the backward pass needs. "Narrow" is bfloat16 or float32, see RolloutSizes.
struct RolloutRecord {
  float* hiddens;        // (B, N, Hd)
  float* latents;        // (B, N, D)
  void* conditions;      // (N, B, Hd) narrow: h before each frame
  void* active;          // (N, B, W) narrow: input of the prior's last layer
  void* joined;          // (N, B, joined()) narrow: [z; a; h of the recurrence before]
  float* gates;          // (N, B, 4 Hd), squashed
  float* cells;          // (N + 1, B, Hd)
  float* top_normal;     // (N, B, Hd), the recurrence's output normalised
  float* top_rstd;       // (N, B)
  float* normal;         // (N, B, W), the component network's first layer normalised
  float* rstd;           // (N, B)
  float* slope;          // (N, B, D): d z / d raw log scale
  std::int32_t* chosen;  // (N, B)
};

// Gradients of hiddens and latents in; out, all written: what the products over all frames need, and the rest.
struct RolloutGradients {
  const float* hiddens;  // (B, N, Hd)
  const float* latents;  // (B, N, D)
  void* gates;           // (N, B, 4 Hd) narrow, before squashing
  void* linear;          // (N, B, W) narrow, of the component network's first layer
  void* outputs;         // (N, B, 2 K D) narrow, of its last
  float* actions;        // (B, N, A)
  float* hidden;
  float* latent;
  float* raw;
  float* cell;
  // biases and LayerNorms: first_bias, norm, norm_bias (W each), top_norm, top_norm_bias (Hd each), gate_bias (4 Hd),
  // last_bias (2 K D), persistence (D)
  float* vectors;
};

// `instructions` as in vq_lookup. Throws std::invalid_argument for sizes that it cannot take.
void latent_rollout(const RolloutSizes& sizes, const RolloutWeights& weights, const RolloutInputs& inputs,
                    const RolloutRecord& record, const std::string& instructions);
void latent_rollout_backward(const RolloutSizes& sizes, const RolloutWeights& weights, const RolloutInputs& inputs,
                             const RolloutRecord& record, const RolloutGradients& gradients,
                             const std::string& instructions);

// ------------------------------------------------------------------ between the driver and the instruction sets

// A matrix (inputs x outputs) in panels of columns, each panel as its rows follow each other; bfloat16 pairs of rows
// side by side, with a row of zeros where their number is odd. Columns are padded with zeros to whole panels.
struct PackedMatrix {
  std::int64_t rows;     // float32: inputs; pairs: half of them
  std::int64_t columns;  // padded
  const void* data;
  bool pairs;
};

// Memory of a call, float32 and padded with zeros where the width is. A row of a product's result has the matrix's
// padded columns.
struct RolloutScratch {
  float* gates;        // result of the gates' product; backward: of the gradients' into [z; a; h]
  float* linear;       // result of the first layer's; backward: of the gradients' into h
  float* stick_first;  // results of the sticks' layers
  float* stick_last;
  float* sticks;   // 6 x stick_capacity
  float* rows;     // B x the longest row, widened
  float* row;      // 4 x the longest row
  float* latents;  // B x latent_width
  float* raw;      // B x Hd
  float* cell;     // B x Hd
  float* sums;     // backward: vectors() of one frame
  std::int64_t stick_capacity;
  std::int64_t latent_width;  // D, padded to whole vectors
  std::int64_t longest;
};

struct RolloutBlock {
  RolloutSizes sizes;
  RolloutWeights weights;
  RolloutInputs inputs;
  RolloutRecord record;
  RolloutGradients gradients;
  PackedMatrix first;        // forward: Hd x W; backward: W x Hd
  PackedMatrix joint;        // forward: (D + A + Hd) x 4 Hd; backward: 4 Hd x (D + A + Hd)
  PackedMatrix stick_first;  // forward only, float32
  PackedMatrix stick_last;
  const float* last;             // forward: K x W x (means, scales: latent_width each); backward: 2 K D x W
  const float* last_bias;        // K x (means, scales: latent_width each)
  const float* stick_last_bias;  // padded columns of stick_last
  const float* persistence;      // latent_width
  RolloutScratch scratch;
};

}  // namespace aime
