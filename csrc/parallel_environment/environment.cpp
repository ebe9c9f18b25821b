#include "environment.hpp"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <thread>
#include <utility>

namespace aime {
namespace {

std::uint8_t* bytes_of(const mjModel* model) { return static_cast<std::uint8_t*>(model->buffer); }

}  // namespace

mjModel* copy_model(const mjModel* source) {
  mjModel* copy = nullptr;
  guarded_or_throw([&] { copy = mujoco().mj_copyModel(nullptr, source); }, "cannot copy the model");
  if (copy == nullptr) throw std::runtime_error("cannot copy the model: out of memory");
  return copy;
}

ModelChanges compare_models(const mjModel* base, const mjModel* changed) {
  if (base->nbuffer != changed->nbuffer) throw std::runtime_error("the model of an episode has another layout");
  constexpr std::size_t kWord = 8;
  const std::uint8_t* old_bytes = bytes_of(base);
  const std::uint8_t* new_bytes = bytes_of(changed);
  const auto size = static_cast<std::size_t>(base->nbuffer);
  const auto texture_start = static_cast<std::size_t>(base->tex_data - old_bytes);
  const std::size_t texture_end = texture_start + static_cast<std::size_t>(base->ntexdata);
  ModelChanges changes;
  for (std::size_t offset = 0; offset < size; offset += kWord) {
    if (offset >= texture_start && offset + kWord <= texture_end) {
      offset = texture_end - texture_end % kWord;
      if (offset >= size) break;
    }
    const std::size_t count = std::min(kWord, size - offset);
    if (std::memcmp(old_bytes + offset, new_bytes + offset, count) == 0) continue;
    if (!changes.empty() && changes.back().offset + changes.back().bytes.size() == offset) {
      changes.back().bytes.insert(changes.back().bytes.end(), new_bytes + offset, new_bytes + offset + count);
    } else {
      changes.push_back({offset, {new_bytes + offset, new_bytes + offset + count}});
    }
  }
  return changes;
}

void revert_changes(mjModel* model, const mjModel* base, const ModelChanges& changes) {
  for (const ModelChange& change : changes) {
    std::memcpy(bytes_of(model) + change.offset, bytes_of(base) + change.offset, change.bytes.size());
  }
}

void write_changes(mjModel* model, const ModelChanges& changes) {
  for (const ModelChange& change : changes) {
    std::memcpy(bytes_of(model) + change.offset, change.bytes.data(), change.bytes.size());
  }
}

BoundModel::~BoundModel() {
  if (model_ != nullptr) mujoco().mj_deleteModel(model_);
}

BoundModel::BoundModel(BoundModel&& other) noexcept
    : base_(other.base_), model_(std::exchange(other.model_, nullptr)), bound_(std::move(other.bound_)) {}

void BoundModel::copy(const mjModel* base) {
  base_ = base;
  model_ = copy_model(base);
}

mjModel* BoundModel::bind(const SharedChanges& changes) {
  if (bound_ == changes) return model_;
  if (bound_) revert_changes(model_, base_, *bound_);
  if (changes) write_changes(model_, *changes);
  bound_ = changes;
  return model_;
}

Episode::~Episode() {
  if (data != nullptr && !borrowed_) mujoco().mj_deleteData(data);
}

void Episode::borrow(mjData* other) {
  if (data != nullptr && !borrowed_) mujoco().mj_deleteData(data);
  data = other;
  borrowed_ = true;
}

mjData* Episode::make(const mjModel* model) {
  if (data != nullptr) return data;
  guarded_or_throw([&] { data = mujoco().mj_makeData(model); }, "cannot make the simulation data");
  if (data == nullptr) throw std::runtime_error("cannot make the simulation data: out of memory");
  return data;
}

void Episode::swap(Episode& other) noexcept {
  std::swap(data, other.data);
  std::swap(changes, other.changes);
  std::swap(fields, other.fields);
  std::swap(borrowed_, other.borrowed_);
}

NextEpisode::NextEpisode(Environment& environment) : environment_(environment), ready_(false) {
  int status = environment.next_status.load();
  while (status == Environment::kTaken || !environment.next_status.compare_exchange_weak(status, Environment::kTaken)) {
    // Another thread begins this very episode; it takes a millisecond at most.
    if (status == Environment::kTaken) std::this_thread::yield();
    status = environment.next_status.load();
  }
  ready_ = status == Environment::kReady;
}

NextEpisode::~NextEpisode() { environment_.next_status.store(ready_ ? Environment::kReady : Environment::kEmpty); }

}  // namespace aime
