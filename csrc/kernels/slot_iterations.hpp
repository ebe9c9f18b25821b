// Slot attention whole: all iterations and their gradients. The passes over the inputs are those of slot_attention.hpp;
// the slot side between them (projections, GRU, layer norms, MLP) runs over tiles of slots.
#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "strided.hpp"

namespace aime {

// A tensor of up to three axes without memory of its own; strides are in elements. No data: absent.
struct View {
  const void* data = nullptr;
  Dtype dtype = Dtype::kFloat32;
  std::size_t axes = 0;
  std::array<std::int64_t, 3> sizes{};
  std::array<std::int64_t, 3> strides{};

  void read(std::int64_t start, std::size_t axis, std::int64_t count, float* to) const {
    read_strided(data, dtype, start, strides[axis], count, to);
  }
  Tensor tensor() const {
    return {data, dtype, {sizes.begin(), sizes.begin() + axes}, {strides.begin(), strides.begin() + axes}};
  }
};

// In the order of SlotAttentionWeights (kernels/slot_attention/weights.py).
enum SlotWeight : std::size_t {
  kNormInputsWeight,
  kNormInputsBias,
  kNormSlotsWeight,
  kNormSlotsBias,
  kQueryWeight,
  kKeyWeight,
  kValueWeight,
  kGruWeightIh,
  kGruWeightHh,
  kGruBiasIh,
  kGruBiasHh,
  kNormMlpWeight,
  kNormMlpBias,
  kMlpInWeight,
  kMlpInBias,
  kMlpOutWeight,
  kMlpOutBias,
  kQueryBias,
  kKeyBias,
  kValueBias,
  kSlotWeights
};

struct SlotArguments {
  View inputs;  // (B, N, C)
  View slots;   // (B, S, D)
  std::array<View, kSlotWeights> weights;
  View mask;  // (B, N) bytes, or no data
  std::int64_t iters;
  float eps;
  bool gelu;  // else ReLU
};

// Row-major float32.
struct SlotResults {
  float* slots;      // (B, S, D)
  float* attention;  // (B, S, N)
  float* saved;      // for the gradients: iterations x SlotSizes::saved(), or null
};

struct SlotArgumentGradients {
  View slots;      // upstream, (B, S, D)
  View attention;  // upstream, (B, S, N), or no data
  float* saved;    // of the forward pass, read only
  bool implicit;   // through the last iteration alone; `initial` is null then
  // out, row-major float32, null where not wanted
  float* inputs;
  float* initial;
  std::array<float*, kSlotWeights> weights;
};

// The same bits for any number of threads; `instructions` as in vq_lookup.
void slot_iterations(const SlotArguments& arguments, const SlotResults& results, int threads,
                     const std::string& instructions);
void slot_iterations_backward(const SlotArguments& arguments, const SlotArgumentGradients& gradients, int threads,
                              const std::string& instructions);

}  // namespace aime
