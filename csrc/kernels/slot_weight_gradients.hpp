// Gradients of slot attention's weights, each a product or a sum over the slots of all iterations.
#pragma once

#include <vector>

#include "slot_planes.hpp"

namespace aime {

// What the backward pass of one iteration leaves for them; each is rows x the width named.
struct GradientPlanes {
  static std::int64_t floats(const SlotSizes& sizes) {
    return sizes.rows * (10 * sizes.d + 2 * sizes.f + 3 * sizes.c + 1);
  }
  GradientPlanes(const SlotSizes& sizes, float* base);

  // values made again
  float* active;      // f: behind the activation
  float* unit_mlp;    // d: normalised, before the affine part
  float* unit_slots;  // d
  // gradients
  float* hidden;        // f: before the activation
  float* normed_mlp;    // d: of the layer norm's result
  float* gates;         // 4 d
  float* updates;       // d
  float* query;         // d
  float* normed_slots;  // d
  float* moved;         // c: of the means behind the affine part of the inputs' layer norm
  float* scaled;        // c: of the query as the pass over the inputs takes it
  float* seen;          // c
  float* offset;        // 1
};

struct IterationPlanes {
  SavedPlanes saved;
  GradientPlanes gradients;
  float* after;  // rows x d: gradient of the slots that the iteration gives
};

// The wanted ones (not null), each over all iterations; the same bits for any number of threads.
void slot_weight_gradients(const SlotArguments& arguments, const SlotSizes& sizes,
                           const std::vector<IterationPlanes>& iterations,
                           const std::array<float*, kSlotWeights>& gradients, int threads, const InstructionSet& set);

}  // namespace aime
