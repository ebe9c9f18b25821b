// Threads that share numbered items: all of them at once (a step of every environment), or some at a time as they come.
//
// One thread, the poster, posts and waits. Where the caller takes part, it works on items while it waits and counts as
// the last worker. A helper that finds nothing to do spins for a while before it sleeps: the next step of a fast task
// comes within microseconds, and waking a thread costs more than such a step.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace aime {

struct PoolWork {
  std::function<void(int worker, int item)> job;  // must not throw
  // Called by a helper without items, once after each that it did; false when there was nothing to do.
  std::function<bool(int worker)> idle;
  // Runs on each helper as it ends: what a thread owns (a GL context) must be freed on it.
  std::function<void(int worker)> finish;
};

class WorkerPool {
 public:
  // `workers` in total; the caller is one of them if it takes part. At most `items` items, numbered from 0.
  // Throws std::runtime_error where the system starts no more threads.
  WorkerPool(int workers, bool caller_takes_part, int items, PoolWork work);
  ~WorkerPool();
  WorkerPool(const WorkerPool&) = delete;
  WorkerPool& operator=(const WorkerPool&) = delete;

  // Hands out every item, each once. Nothing may be in flight.
  void post_all();
  // Hands out these items; none of them may be in flight.
  void post(const int* items, int count);
  // Returns when `done()`, which must become true once enough posted items are finished.
  void wait(const std::function<bool()>& done);
  // Returns when no item is in flight.
  void wait_all();

  int in_flight() const { return static_cast<int>(posted_ - finished_.load(std::memory_order_acquire)); }

 private:
  // A worker's own share of post_all: the next item and the end, packed so that claiming is one compare-and-swap.
  struct alignas(64) Share {
    std::atomic<std::uint64_t> span{0};
  };

  void work(int worker);
  void stop();
  bool run_one(int worker);
  bool claim(int worker, int& item);
  bool claim_from(Share& share, int& item);
  bool has_items() const;
  void announce();

  PoolWork work_;
  int workers_;
  bool caller_takes_part_;
  bool spins_;
  std::uint64_t capacity_;
  std::unique_ptr<Share[]> shares_;
  std::unique_ptr<std::atomic<int>[]> queue_;  // a ring of `capacity_` items
  alignas(64) std::atomic<std::uint64_t> head_{0};
  std::atomic<std::uint64_t> tail_{0};
  alignas(64) std::atomic<std::uint64_t> finished_{0};
  std::uint64_t posted_ = 0;  // the poster's
  std::atomic<int> sleepers_{0};
  std::atomic<bool> waiting_{false};
  std::atomic<bool> stopping_{false};
  std::mutex mutex_;
  std::condition_variable wake_;
  std::condition_variable done_;
  std::vector<std::thread> threads_;
};

}  // namespace aime
