// What slot attention's iterations share: sizes, the weights as the products read them, and matrices of one row a slot.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>

#include "buffer.hpp"
#include "instruction_set.hpp"
#include "parallel.hpp"
#include "slot_iterations.hpp"

namespace aime {

// Rows are padded to this, a multiple of every instruction set's lanes, so that what is saved has one form.
constexpr std::int64_t kSlotPadding = 16;
constexpr std::int64_t kSlotsPerTile = 48;  // rows of a tile: some passes of the products' register tile

struct SlotSizes {
  explicit SlotSizes(const SlotArguments& arguments);
  // floats of an iteration; kernels/slot_attention/cpp.py allocates them
  std::int64_t saved() const { return rows * (7 * d + f + 2 * c + 1); }

  std::int64_t batch;
  std::int64_t slots;
  std::int64_t rows;  // batch * slots
  std::int64_t inputs;
  std::int64_t channels;
  std::int64_t width;
  std::int64_t hidden;
  std::int64_t c;  // channels, width and hidden, padded
  std::int64_t d;
  std::int64_t f;
};

// One iteration's part of what the forward pass keeps; each is rows x the width named.
struct SavedPlanes {
  SavedPlanes(const SlotSizes& sizes, float* base);

  float* before;   // d: slots at the iteration's begin
  float* query;    // d: with the factor 1 / sqrt(D)
  float* updates;  // d
  float* gates;    // 4 d: r, z, n, the state's share of n
  float* hidden;   // f: before the activation
  float* means;    // c: weighted means of the normalised inputs
  float* seen;     // c: the query seen from input space
  float* totals;   // 1: sums of the coefficients
};

struct Matrix {
  const float* data;
  std::int64_t stride;
};

// Weights in float32, padded; matrices either as they are or turned, so that columns lie side by side. What is float32
// and of whole vectors is read where it lies.
class SlotMatrices {
 public:
  SlotMatrices(const SlotArguments& arguments, const SlotSizes& sizes, bool backward);

  Matrix query{};     // forward: width x d, turned; backward: as it is; both times 1 / sqrt(D)
  Matrix key{};       // forward: width x c; backward: channels x d, turned
  Matrix value{};     // forward: channels x d, turned; backward: width x c
  Matrix gates_ih{};  // forward: width x 3 d, turned; backward: 3 width x d
  Matrix gates_hh{};
  Matrix mlp_in{};   // forward: width x f, turned; backward: hidden x d
  Matrix mlp_out{};  // forward: hidden x d, turned; backward: width x f
  const float* norm_inputs_weight = nullptr;
  const float* norm_inputs_bias = nullptr;
  const float* norm_slots_weight = nullptr;
  const float* norm_mlp_weight = nullptr;
  const float* key_bias = nullptr;
  // forward alone
  const float* norm_slots_bias = nullptr;
  const float* norm_mlp_bias = nullptr;
  const float* query_bias = nullptr;
  const float* value_bias = nullptr;
  const float* gates_bias = nullptr;  // 4 d
  const float* mlp_in_bias = nullptr;
  const float* mlp_out_bias = nullptr;

 private:
  float* take(std::int64_t count);
  const float* vector(const View& view, std::int64_t padded, float factor = 1.0F);
  Matrix as_it_is(const View& view, std::int64_t padded, float factor = 1.0F);
  // (blocks of `size` rows, depth) to depth x (blocks of `padded`)
  Matrix turned(const View& view, std::int64_t size, std::int64_t padded, float factor = 1.0F);
  void forward(const SlotArguments& arguments, const SlotSizes& sizes, float scale);
  void backward(const SlotArguments& arguments, const SlotSizes& sizes, float scale);

  Buffer buffer_;
  float* next_;
};

// A matrix of one row a slot, in rows of `stride`.
struct SlotRows {
  float* data;
  std::int64_t stride;
  float* row(std::int64_t r) const { return data + r * stride; }
};

// `to` (columns) of rows [first, last) = `from` (depth) times the matrix, plus the bias.
struct SlotProduct {
  SlotRows from;
  std::int64_t depth;
  Matrix matrix;
  SlotRows to;
  std::int64_t columns;
  const float* bias = nullptr;
  bool accumulate = false;

  void run(const InstructionSet& set, std::int64_t first, std::int64_t last) const {
    set.product({from.row(first), from.stride, 1, matrix.data, matrix.stride, bias, to.row(first), to.stride,
                 last - first, columns, depth, accumulate});
  }
};

// seen w and seen.b + q.bk of rows [first, last): what the pass over normalised inputs takes.
void scale_queries(const SlotSizes& sizes, const SlotMatrices& matrices, const SavedPlanes& planes, SlotRows scaled,
                   float* offsets, std::int64_t first, std::int64_t last);

// Work on the slots, tile by tile; scratch is floats_a_slot floats for every slot of a tile.
template <class Work>
void over_slots(const SlotSizes& sizes, int threads, std::int64_t floats_a_slot, const Work& work) {
  const std::int64_t tiles = (sizes.rows + kSlotsPerTile - 1) / kSlotsPerTile;
  // a multiply-add is some 20 picoseconds with AVX-512
  const double products = static_cast<double>(sizes.d * (8 * sizes.d + 2 * sizes.c + 2 * sizes.f));
  run_tiles(tiles, threads, 0.02 * static_cast<double>(sizes.rows) * products, [&]() -> TileWork {
    const auto scratch = std::make_shared<Buffer>(std::min(sizes.rows, kSlotsPerTile) * floats_a_slot);
    return [&, scratch](std::int64_t tile) {
      const std::int64_t first = tile * kSlotsPerTile;
      work(first, std::min(sizes.rows, first + kSlotsPerTile), scratch->data());
    };
  });
}

}  // namespace aime
