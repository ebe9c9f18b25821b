#include "slot_weight_gradients.hpp"

#include <cmath>
#include <functional>

namespace aime {
namespace {

constexpr std::int64_t kDepth = 64;          // slots of a product at a time: their rows stay in the first cache
constexpr std::int64_t kRowsPerTask = 24;    // of a weight: some register tiles of the products
constexpr double kPicosecondsAProduct = 20;  // of a multiply-add with AVX-512

// Where an iteration keeps a matrix of one row a slot: among what was made in the backward pass, or saved by the
// forward one, or the gradient of the slots that the iteration gives.
struct Source {
  float* GradientPlanes::* made = nullptr;
  float* SavedPlanes::* kept = nullptr;
  bool after = false;
  std::int64_t stride = 0;
  std::int64_t column = 0;

  bool absent() const { return made == nullptr && kept == nullptr && !after; }
  SlotRows in(const IterationPlanes& planes) const {
    if (absent()) return {nullptr, 0};
    float* const base = made != nullptr ? planes.gradients.*made : kept != nullptr ? planes.saved.*kept : planes.after;
    return {base + column, stride};
  }
};

Source made(float* GradientPlanes::* plane, std::int64_t stride, std::int64_t column = 0) {
  return {plane, nullptr, false, stride, column};
}
Source kept(float* SavedPlanes::* plane, std::int64_t stride) { return {nullptr, plane, false, stride, 0}; }
Source passed_on(std::int64_t stride) { return {nullptr, nullptr, true, stride, 0}; }

// gradient (outputs x inputs, row-major) = factor * sum over slots of g^T (x weight + bias)
struct MatrixTask {
  Source g;
  Source x;
  std::int64_t outputs;
  std::int64_t inputs;
  std::int64_t padded;  // inputs, in the rows of x
  const View* weight;   // of the layer norm that x has before its affine part, or null
  const View* bias;
  float factor;
  float* to;
};

// gradient (width) = factor * sum over slots and terms of a, times b and the row's factor where there are such
struct VectorTask {
  struct Term {
    Source a;
    Source b;
    Source factors;
  };
  std::vector<Term> terms;
  std::int64_t width;
  float factor;
  float* to;
};

class WeightGradients {
 public:
  WeightGradients(const SlotArguments& arguments, const SlotSizes& sizes,
                  const std::vector<IterationPlanes>& iterations, const InstructionSet& set)
      : arguments_(arguments), sizes_(sizes), iterations_(iterations), set_(set) {}

  void plan(const std::array<float*, kSlotWeights>& to);
  void run(int threads) const {
    run_tiles(static_cast<std::int64_t>(tasks_.size()), threads, nanoseconds_,
              [&]() -> TileWork { return [&](std::int64_t tile) { tasks_[static_cast<std::size_t>(tile)](); }; });
  }

 private:
  void plan_matrices(const std::array<float*, kSlotWeights>& to);
  void plan_vectors(const std::array<float*, kSlotWeights>& to);
  void add(const MatrixTask& task);
  void add(const VectorTask& task);
  void multiply(const MatrixTask& task, std::int64_t first, std::int64_t last) const;
  void sum(const VectorTask& task) const;

  const SlotArguments& arguments_;
  const SlotSizes& sizes_;
  const std::vector<IterationPlanes>& iterations_;
  const InstructionSet& set_;
  std::vector<std::function<void()>> tasks_;
  double nanoseconds_ = 0.0;
};

void WeightGradients::add(const MatrixTask& task) {
  if (task.to == nullptr) return;
  for (std::int64_t first = 0; first < task.outputs; first += kRowsPerTask) {
    const std::int64_t last = std::min(task.outputs, first + kRowsPerTask);
    tasks_.emplace_back([=] { multiply(task, first, last); });
  }
  const auto rows = static_cast<double>(sizes_.rows) * static_cast<double>(iterations_.size());
  nanoseconds_ += 1e-3 * kPicosecondsAProduct * rows * static_cast<double>(task.outputs * task.padded);
}

void WeightGradients::add(const VectorTask& task) {
  if (task.to != nullptr) tasks_.emplace_back([=] { sum(task); });
}

void WeightGradients::multiply(const MatrixTask& task, std::int64_t first, std::int64_t last) const {
  const std::int64_t rows = last - first;
  const std::int64_t lanes = set_.lanes;
  Buffer results(rows * (task.padded + lanes) + lanes + 2 * task.padded);
  float* totals = results.data() + rows * task.padded;  // rows x lanes, all lanes alike
  float* ones = totals + rows * lanes;
  float* weight = ones + lanes;
  float* bias = weight + task.padded;
  std::fill_n(results.data(), rows * (task.padded + lanes), 0.0F);
  std::fill_n(ones, lanes, 1.0F);
  for (const IterationPlanes& planes : iterations_) {
    const SlotRows g = task.g.in(planes);
    const SlotRows x = task.x.in(planes);
    for (std::int64_t r = 0; r < sizes_.rows; r += kDepth) {
      const std::int64_t depth = std::min(kDepth, sizes_.rows - r);
      const float* from = g.row(r) + first;
      set_.product({from, 1, g.stride, x.row(r), x.stride, nullptr, results.data(), task.padded, rows, task.padded,
                    depth, true});
      if (task.bias == nullptr) continue;
      set_.product({from, 1, g.stride, ones, 0, nullptr, totals, lanes, rows, lanes, depth, true});
    }
  }
  if (task.weight != nullptr) {
    task.weight->read(0, 0, task.inputs, weight);
    task.bias->read(0, 0, task.inputs, bias);
  }
  for (std::int64_t n = 0; n < rows; ++n) {
    const float* row = results.data() + n * task.padded;
    float* to = task.to + (first + n) * task.inputs;
    const float total = totals[n * lanes];
    for (std::int64_t k = 0; k < task.inputs; ++k) {
      const float value = task.weight == nullptr ? row[k] : row[k] * weight[k] + total * bias[k];
      to[k] = task.factor * value;
    }
  }
}

void WeightGradients::sum(const VectorTask& task) const {
  const std::int64_t width = (task.width + kSlotPadding - 1) / kSlotPadding * kSlotPadding;
  Buffer total(width);
  std::fill_n(total.data(), width, 0.0F);
  for (const IterationPlanes& planes : iterations_) {
    for (const VectorTask::Term& term : task.terms) {
      const SlotRows a = term.a.in(planes);
      const SlotRows b = term.b.in(planes);
      const float* factors = term.factors.in(planes).data;
      set_.add_rows({sizes_.rows, width, a.data, a.stride, b.data, b.stride, factors, total.data()});
    }
  }
  for (std::int64_t j = 0; j < task.width; ++j) task.to[j] = task.factor * total.data()[j];
}

void WeightGradients::plan_matrices(const std::array<float*, kSlotWeights>& to) {
  using G = GradientPlanes;
  using S = SavedPlanes;
  const std::int64_t width = sizes_.width, channels = sizes_.channels, hidden = sizes_.hidden;
  const std::int64_t c = sizes_.c, d = sizes_.d, f = sizes_.f;
  const auto& w = arguments_.weights;
  const float scale = 1.0F / std::sqrt(static_cast<float>(width));
  add(MatrixTask{made(&G::query, d), made(&G::unit_slots, d), width, width, d, &w[kNormSlotsWeight], &w[kNormSlotsBias],
                 scale, to[kQueryWeight]});
  add(MatrixTask{kept(&S::query, d), made(&G::seen, c), width, channels, c, nullptr, nullptr, 1.0F, to[kKeyWeight]});
  add(MatrixTask{made(&G::updates, d), kept(&S::means, c), width, channels, c, &w[kNormInputsWeight],
                 &w[kNormInputsBias], 1.0F, to[kValueWeight]});
  for (std::int64_t gate = 0; gate < 3; ++gate) {
    const std::int64_t of_state = gate == 2 ? 3 : gate;
    const std::int64_t start = gate * width * width;
    float* ih = to[kGruWeightIh] == nullptr ? nullptr : to[kGruWeightIh] + start;
    float* hh = to[kGruWeightHh] == nullptr ? nullptr : to[kGruWeightHh] + start;
    add(MatrixTask{made(&G::gates, 4 * d, gate * d), kept(&S::updates, d), width, width, d, nullptr, nullptr, 1.0F,
                   ih});
    add(MatrixTask{made(&G::gates, 4 * d, of_state * d), kept(&S::before, d), width, width, d, nullptr, nullptr, 1.0F,
                   hh});
  }
  add(MatrixTask{made(&G::hidden, f), made(&G::unit_mlp, d), hidden, width, d, &w[kNormMlpWeight], &w[kNormMlpBias],
                 1.0F, to[kMlpInWeight]});
  add(MatrixTask{passed_on(d), made(&G::active, f), width, hidden, f, nullptr, nullptr, 1.0F, to[kMlpOutWeight]});
}

void WeightGradients::plan_vectors(const std::array<float*, kSlotWeights>& to) {
  using G = GradientPlanes;
  using S = SavedPlanes;
  const std::int64_t width = sizes_.width, channels = sizes_.channels, c = sizes_.c, d = sizes_.d, f = sizes_.f;
  const float scale = 1.0F / std::sqrt(static_cast<float>(width));
  const Source offset = made(&G::offset, 1), moved = made(&G::moved, c), seen = kept(&S::seen, c);
  const Source slots = made(&G::normed_slots, d), mlp = made(&G::normed_mlp, d);
  add(VectorTask{
      {{moved, kept(&S::means, c), {}}, {made(&G::scaled, c), seen, {}}}, channels, 1.0F, to[kNormInputsWeight]});
  add(VectorTask{{{moved, {}, {}}, {seen, {}, offset}}, channels, 1.0F, to[kNormInputsBias]});
  add(VectorTask{{{slots, made(&G::unit_slots, d), {}}}, width, 1.0F, to[kNormSlotsWeight]});
  add(VectorTask{{{slots, {}, {}}}, width, 1.0F, to[kNormSlotsBias]});
  for (std::int64_t gate = 0; gate < 3; ++gate) {
    const std::int64_t of_state = gate == 2 ? 3 : gate;
    float* ih = to[kGruBiasIh] == nullptr ? nullptr : to[kGruBiasIh] + gate * width;
    float* hh = to[kGruBiasHh] == nullptr ? nullptr : to[kGruBiasHh] + gate * width;
    add(VectorTask{{{made(&G::gates, 4 * d, gate * d), {}, {}}}, width, 1.0F, ih});
    add(VectorTask{{{made(&G::gates, 4 * d, of_state * d), {}, {}}}, width, 1.0F, hh});
  }
  add(VectorTask{{{mlp, made(&G::unit_mlp, d), {}}}, width, 1.0F, to[kNormMlpWeight]});
  add(VectorTask{{{mlp, {}, {}}}, width, 1.0F, to[kNormMlpBias]});
  add(VectorTask{{{made(&G::hidden, f), {}, {}}}, sizes_.hidden, 1.0F, to[kMlpInBias]});
  add(VectorTask{{{passed_on(d), {}, {}}}, width, 1.0F, to[kMlpOutBias]});
  add(VectorTask{{{made(&G::query, d), {}, {}}}, width, scale, to[kQueryBias]});
  add(VectorTask{{{kept(&S::query, d), {}, offset}}, width, 1.0F, to[kKeyBias]});
  add(VectorTask{{{made(&G::updates, d), {}, {}}}, width, 1.0F, to[kValueBias]});
}

void WeightGradients::plan(const std::array<float*, kSlotWeights>& to) {
  plan_matrices(to);  // the long tasks first
  plan_vectors(to);
}

}  // namespace

GradientPlanes::GradientPlanes(const SlotSizes& sizes, float* base)
    : active(base),
      unit_mlp(active + sizes.rows * sizes.f),
      unit_slots(unit_mlp + sizes.rows * sizes.d),
      hidden(unit_slots + sizes.rows * sizes.d),
      normed_mlp(hidden + sizes.rows * sizes.f),
      gates(normed_mlp + sizes.rows * sizes.d),
      updates(gates + 4 * sizes.rows * sizes.d),
      query(updates + sizes.rows * sizes.d),
      normed_slots(query + sizes.rows * sizes.d),
      moved(normed_slots + sizes.rows * sizes.d),
      scaled(moved + sizes.rows * sizes.c),
      seen(scaled + sizes.rows * sizes.c),
      offset(seen + sizes.rows * sizes.c) {}

void slot_weight_gradients(const SlotArguments& arguments, const SlotSizes& sizes,
                           const std::vector<IterationPlanes>& iterations,
                           const std::array<float*, kSlotWeights>& gradients, int threads, const InstructionSet& set) {
  WeightGradients work(arguments, sizes, iterations, set);
  work.plan(gradients);
  work.run(threads);
}

}  // namespace aime
