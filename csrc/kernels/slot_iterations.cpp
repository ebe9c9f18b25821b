#include "slot_iterations.hpp"

#include "slot_attention.hpp"
#include "slot_planes.hpp"

namespace aime {
namespace {

class SlotForward {
 public:
  SlotForward(const SlotArguments& arguments, const SlotResults& results, int threads, const InstructionSet& set)
      : arguments_(arguments),
        results_(results),
        threads_(threads),
        set_(set),
        sizes_(arguments),
        matrices_(arguments, sizes_, false),
        own_(results.saved == nullptr ? sizes_.saved() : 0),
        scaled_(sizes_.rows * (sizes_.c + 1)),
        whole_(sizes_.d == sizes_.width) {}

  void run() {
    over_slots(sizes_, threads_, sizes_.d, [&](std::int64_t first, std::int64_t last, float* scratch) {
      read_slots(first, last);
      project_queries(0, first, last, scratch);
    });
    for (std::int64_t iteration = 0; iteration < arguments_.iters; ++iteration) {
      attend(iteration);
      const std::int64_t floats = std::max(sizes_.c, 2 * sizes_.d) + sizes_.d + sizes_.f;
      over_slots(sizes_, threads_, floats, [&](std::int64_t first, std::int64_t last, float* scratch) {
        update(iteration, first, last, scratch);
        if (iteration + 1 < arguments_.iters) project_queries(iteration + 1, first, last, scratch);
      });
    }
  }

 private:
  // Without gradients one iteration's planes serve all of them.
  SavedPlanes planes(std::int64_t iteration) {
    if (results_.saved == nullptr) return {sizes_, own_.data()};
    return {sizes_, results_.saved + iteration * sizes_.saved()};
  }
  float* offsets() { return scaled_.data() + sizes_.rows * sizes_.c; }

  void read_slots(std::int64_t first, std::int64_t last) {
    const View& slots = arguments_.slots;
    float* before = planes(0).before;
    for (std::int64_t r = first; r < last; ++r) {
      float* row = before + r * sizes_.d;
      const std::int64_t start = r / sizes_.slots * slots.strides[0] + r % sizes_.slots * slots.strides[1];
      slots.read(start, 2, sizes_.width, row);
      std::fill(row + sizes_.width, row + sizes_.d, 0.0F);
    }
  }

  // Queries seen from input space, as they are and through the affine part of the inputs' layer norm.
  void project_queries(std::int64_t iteration, std::int64_t first, std::int64_t last, float* scratch) {
    const SavedPlanes p = planes(iteration);
    const std::int64_t c = sizes_.c, d = sizes_.d;
    const SlotRows normed{scratch - first * d, d};
    set_.slot_normalise({last - first, sizes_.width, d, p.before + first * d, normed.row(first), nullptr,
                         matrices_.norm_slots_weight, matrices_.norm_slots_bias, normed.row(first)});
    SlotProduct{normed, sizes_.width, matrices_.query, {p.query, d}, d, matrices_.query_bias}.run(set_, first, last);
    SlotProduct{{p.query, d}, sizes_.width, matrices_.key, {p.seen, c}, c}.run(set_, first, last);
    scale_queries(sizes_, matrices_, p, {scaled_.data(), c}, offsets(), first, last);
  }

  void attend(std::int64_t iteration) {
    const SavedPlanes p = planes(iteration);
    const std::int64_t batch = sizes_.batch, slots = sizes_.slots, c = sizes_.c;
    const Tensor seen{scaled_.data(), Dtype::kFloat32, {batch, slots, sizes_.channels}, {slots * c, c, 1}};
    const Tensor offset{offsets(), Dtype::kFloat32, {batch, slots}, {slots, 1}};
    const SlotInputs inputs{arguments_.inputs.tensor(), seen, offset, arguments_.mask.tensor(), arguments_.eps};
    const bool last = iteration + 1 == arguments_.iters;
    slot_attend(inputs, {p.means, c, p.totals, last ? results_.attention : nullptr}, threads_, set_.name);
  }

  void update(std::int64_t iteration, std::int64_t first, std::int64_t last, float* scratch) {
    const SavedPlanes p = planes(iteration);
    const bool is_last = iteration + 1 == arguments_.iters;
    const std::int64_t rows = last - first, c = sizes_.c, d = sizes_.d, f = sizes_.f;
    float* moved = scratch;  // the means, later the normalised slots
    float* active = scratch + rows * std::max(c, 2 * d);
    float* final = active + rows * f;
    for (std::int64_t r = first; r < last; ++r) {
      float* mean = p.means + r * c;
      const float factor = 1.0F / p.totals[r];
      for (std::int64_t j = 0; j < sizes_.channels; ++j) mean[j] *= factor;
      std::fill(mean + sizes_.channels, mean + c, 0.0F);
      float* row = moved + (r - first) * c;
      for (std::int64_t j = 0; j < c; ++j) {
        row[j] = mean[j] * matrices_.norm_inputs_weight[j] + matrices_.norm_inputs_bias[j];
      }
    }
    const SlotRows of_means{moved - first * c, c}, updates{p.updates, d}, before{p.before, d}, gates{p.gates, 4 * d};
    const Matrix state{matrices_.gates_hh.data + 2 * d, matrices_.gates_hh.stride};
    const float* bias = matrices_.gates_bias;
    const std::int64_t width = sizes_.width;
    SlotProduct{of_means, sizes_.channels, matrices_.value, updates, d, matrices_.value_bias}.run(set_, first, last);
    SlotProduct{updates, width, matrices_.gates_ih, gates, 3 * d, bias}.run(set_, first, last);
    SlotProduct{before, width, matrices_.gates_hh, gates, 2 * d, nullptr, true}.run(set_, first, last);
    SlotProduct{before, width, state, {p.gates + 3 * d, 4 * d}, d, bias + 3 * d}.run(set_, first, last);
    float* after = is_last ? final : planes(iteration + 1).before + first * d;
    if (is_last && whole_) after = results_.slots + first * d;
    set_.slot_gates({rows, d, gates.row(first), before.row(first), after});
    set_.slot_normalise(
        {rows, width, d, after, moved + rows * d, nullptr, matrices_.norm_mlp_weight, matrices_.norm_mlp_bias, moved});
    const SlotRows normed{moved - first * d, d}, hidden{p.hidden, f}, of_hidden{active - first * f, f};
    SlotProduct{normed, width, matrices_.mlp_in, hidden, f, matrices_.mlp_in_bias}.run(set_, first, last);
    set_.slot_activate({rows * f, arguments_.gelu, hidden.row(first), active, nullptr});
    const SlotRows result{after - first * d, d};
    SlotProduct{of_hidden, sizes_.hidden, matrices_.mlp_out, result, d, matrices_.mlp_out_bias, true}.run(set_, first,
                                                                                                          last);
    if (!is_last || whole_) return;
    for (std::int64_t r = first; r < last; ++r) std::copy_n(result.row(r), width, results_.slots + r * width);
  }

  const SlotArguments& arguments_;
  const SlotResults& results_;
  int threads_;
  const InstructionSet& set_;
  SlotSizes sizes_;
  SlotMatrices matrices_;
  Buffer own_;
  Buffer scaled_;
  bool whole_;  // rows of slots need no padding
};

}  // namespace

void slot_iterations(const SlotArguments& arguments, const SlotResults& results, int threads,
                     const std::string& instructions) {
  SlotForward(arguments, results, threads, choose_instruction_set("slot_attention", instructions)).run();
}

}  // namespace aime
