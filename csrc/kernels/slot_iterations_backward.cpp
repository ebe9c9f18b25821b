#include <vector>

#include "slot_attention.hpp"
#include "slot_iterations.hpp"
#include "slot_planes.hpp"
#include "slot_weight_gradients.hpp"

namespace aime {
namespace {

class SlotBackward {
 public:
  SlotBackward(const SlotArguments& arguments, const SlotArgumentGradients& gradients, int threads,
               const InstructionSet& set)
      : arguments_(arguments),
        gradients_(gradients),
        threads_(threads),
        set_(set),
        sizes_(arguments),
        matrices_(arguments, sizes_, true),
        first_(gradients.implicit ? arguments.iters - 1 : 0),
        keep_(std::any_of(gradients.weights.begin(), gradients.weights.end(), [](float* g) { return g != nullptr; })),
        planes_((keep_ ? arguments.iters - first_ : 1) * GradientPlanes::floats(sizes_)),
        after_((arguments.iters - first_ + 1) * sizes_.rows * sizes_.d),
        passing_(sizes_.rows * (2 * sizes_.c + 2)) {}

  void run() {
    const std::int64_t iters = arguments_.iters;
    over_slots(sizes_, threads_, 1, [&](std::int64_t first, std::int64_t last, float*) { read_upstream(first, last); });
    for (std::int64_t iteration = iters - 1; iteration >= first_; --iteration) {
      over_slots(sizes_, threads_, 2 * sizes_.d + 1, [&](std::int64_t first, std::int64_t last, float* scratch) {
        update(iteration, first, last, scratch);
      });
      attend(iteration);
      over_slots(sizes_, threads_, 1, [&](std::int64_t first, std::int64_t last, float* scratch) {
        project_queries(iteration, first, last, scratch);
      });
    }
    write_initial();
    if (!keep_) return;
    std::vector<IterationPlanes> every;
    for (std::int64_t iteration = first_; iteration < iters; ++iteration) {
      every.push_back({saved(iteration), planes(iteration), after(iteration + 1)});
    }
    slot_weight_gradients(arguments_, sizes_, every, gradients_.weights, threads_, set_);
  }

 private:
  SavedPlanes saved(std::int64_t iteration) const { return {sizes_, gradients_.saved + iteration * sizes_.saved()}; }
  // Where no weight wants a gradient one iteration's planes serve all of them.
  GradientPlanes planes(std::int64_t iteration) {
    return {sizes_, planes_.data() + (keep_ ? iteration - first_ : 0) * GradientPlanes::floats(sizes_)};
  }
  // Gradient of the slots before an iteration, rows x d.
  float* after(std::int64_t iteration) { return after_.data() + (iteration - first_) * sizes_.rows * sizes_.d; }
  float* g_sums() { return passing_.data(); }
  float* g_totals() { return g_sums() + sizes_.rows * sizes_.c; }
  float* scaled() { return g_totals() + sizes_.rows; }
  float* offsets() { return scaled() + sizes_.rows * sizes_.c; }

  void read_upstream(std::int64_t first, std::int64_t last) {
    const View& g = gradients_.slots;
    for (std::int64_t r = first; r < last; ++r) {
      float* row = after(arguments_.iters) + r * sizes_.d;
      g.read(r / sizes_.slots * g.strides[0] + r % sizes_.slots * g.strides[1], 2, sizes_.width, row);
      std::fill(row + sizes_.width, row + sizes_.d, 0.0F);
    }
  }

  void write_initial() {
    if (gradients_.initial == nullptr) return;
    for (std::int64_t r = 0; r < sizes_.rows; ++r) {
      std::copy_n(after(first_) + r * sizes_.d, sizes_.width, gradients_.initial + r * sizes_.width);
    }
  }

  // From the slots that an iteration gives to its weighted sums and to the slots before it, as far as the GRU passes
  // them on.
  void update(std::int64_t iteration, std::int64_t first, std::int64_t last, float* scratch) {
    const SavedPlanes s = saved(iteration);
    const GradientPlanes p = planes(iteration);
    const std::int64_t rows = last - first, width = sizes_.width, c = sizes_.c, d = sizes_.d, f = sizes_.f;
    const SlotRows upstream{after(iteration + 1), d}, hidden{p.hidden, f}, normed{p.normed_mlp, d};
    SlotProduct{upstream, width, matrices_.mlp_out, hidden, f}.run(set_, first, last);
    set_.slot_activate_backward(
        {rows * f, arguments_.gelu, s.hidden + first * f, p.active + first * f, hidden.row(first)});
    SlotProduct{hidden, sizes_.hidden, matrices_.mlp_in, normed, d}.run(set_, first, last);
    float* state = scratch;  // made again; then its gradient
    float* inverse = scratch + rows * d;
    for (std::int64_t r = first; r < last; ++r) {
      const float* update = s.gates + r * 4 * d + d;
      for (std::int64_t j = 0; j < d; ++j) {
        state[(r - first) * d + j] = update[d + j] + update[j] * (s.before[r * d + j] - update[d + j]);
      }
    }
    set_.slot_normalise({rows, width, d, state, p.unit_mlp + first * d, inverse, nullptr, nullptr, nullptr});
    std::copy_n(upstream.row(first), rows * d, state);
    set_.slot_normalise_backward(
        {rows, width, d, p.unit_mlp + first * d, inverse, matrices_.norm_mlp_weight, normed.row(first), state});
    const SlotRows before{after(iteration), d};
    set_.slot_gates_backward(
        {rows, d, s.gates + first * 4 * d, s.before + first * d, state, p.gates + first * 4 * d, before.row(first)});
    const SlotRows updates{p.updates, d};
    for (std::int64_t gate = 0; gate < 3; ++gate) {
      const SlotRows of_state{p.gates + (gate == 2 ? 3 : gate) * d, 4 * d}, of_updates{p.gates + gate * d, 4 * d};
      SlotProduct{of_state, width, rows_of(matrices_.gates_hh, gate), before, d, nullptr, true}.run(set_, first, last);
      SlotProduct{of_updates, width, rows_of(matrices_.gates_ih, gate), updates, d, nullptr, gate != 0}.run(set_, first,
                                                                                                            last);
    }
    SlotProduct{updates, width, matrices_.value, {p.moved, c}, c}.run(set_, first, last);
    for (std::int64_t r = first; r < last; ++r) divide(s, p, r);
    scale_queries(sizes_, matrices_, s, {scaled(), c}, offsets(), first, last);
  }

  Matrix rows_of(const Matrix& gates, std::int64_t gate) const {
    return {gates.data + gate * sizes_.width * gates.stride, gates.stride};
  }

  // Through mean = sums / total of row r.
  void divide(const SavedPlanes& s, const GradientPlanes& p, std::int64_t r) {
    const float factor = 1.0F / s.totals[r];
    float along = 0.0F;
    for (std::int64_t j = 0; j < sizes_.c; ++j) {
      const float g = p.moved[r * sizes_.c + j] * matrices_.norm_inputs_weight[j] * factor;
      g_sums()[r * sizes_.c + j] = g;
      along += g * s.means[r * sizes_.c + j];
    }
    g_totals()[r] = -along;
  }

  void attend(std::int64_t iteration) {
    const GradientPlanes p = planes(iteration);
    const std::int64_t batch = sizes_.batch, slots = sizes_.slots, c = sizes_.c;
    const auto of_channels = [&](const float* data) {
      return Tensor{data, Dtype::kFloat32, {batch, slots, sizes_.channels}, {slots * c, c, 1}};
    };
    const auto of_slots = [&](const float* data) { return Tensor{data, Dtype::kFloat32, {batch, slots}, {slots, 1}}; };
    const SlotInputs inputs{arguments_.inputs.tensor(), of_channels(scaled()), of_slots(offsets()),
                            arguments_.mask.tensor(), arguments_.eps};
    const bool last = iteration + 1 == arguments_.iters;
    const Tensor attention = last ? gradients_.attention.tensor() : View().tensor();
    slot_attend_backward(
        inputs,
        {of_channels(g_sums()), of_slots(g_totals()), attention, gradients_.inputs, !last, p.scaled, c, p.offset},
        threads_, set_.name);
  }

  // From the queries as the pass over the inputs takes them to the slots before the iteration.
  void project_queries(std::int64_t iteration, std::int64_t first, std::int64_t last, float* inverse) {
    const SavedPlanes s = saved(iteration);
    const GradientPlanes p = planes(iteration);
    const std::int64_t rows = last - first, width = sizes_.width, c = sizes_.c, d = sizes_.d;
    for (std::int64_t r = first; r < last; ++r) {
      float* scaled = p.scaled + r * c;
      std::fill(scaled + sizes_.channels, scaled + c, 0.0F);
      for (std::int64_t j = 0; j < c; ++j) {
        p.seen[r * c + j] = scaled[j] * matrices_.norm_inputs_weight[j] + p.offset[r] * matrices_.norm_inputs_bias[j];
      }
    }
    const SlotRows seen{p.seen, c}, query{p.query, d}, normed{p.normed_slots, d};
    SlotProduct{seen, sizes_.channels, matrices_.key, query, d}.run(set_, first, last);
    for (std::int64_t r = first; r < last; ++r) {
      for (std::int64_t j = 0; j < d; ++j) query.row(r)[j] += p.offset[r] * matrices_.key_bias[j];
    }
    SlotProduct{query, width, matrices_.query, normed, d}.run(set_, first, last);
    set_.slot_normalise(
        {rows, width, d, s.before + first * d, p.unit_slots + first * d, inverse, nullptr, nullptr, nullptr});
    set_.slot_normalise_backward({rows, width, d, p.unit_slots + first * d, inverse, matrices_.norm_slots_weight,
                                  normed.row(first), after(iteration) + first * d});
  }

  const SlotArguments& arguments_;
  const SlotArgumentGradients& gradients_;
  int threads_;
  const InstructionSet& set_;
  SlotSizes sizes_;
  SlotMatrices matrices_;
  std::int64_t first_;  // iteration that gradients reach
  bool keep_;           // planes of every iteration, for the weights' gradients
  Buffer planes_;
  Buffer after_;
  Buffer passing_;
};

}  // namespace

void slot_iterations_backward(const SlotArguments& arguments, const SlotArgumentGradients& gradients, int threads,
                              const std::string& instructions) {
  SlotBackward(arguments, gradients, threads, choose_instruction_set("slot_attention", instructions)).run();
}

}  // namespace aime
