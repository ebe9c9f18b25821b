// A fixed set of threads that share the items of one job after another.
#pragma once

#include <atomic>
#include <condition_variable>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace aime {

class WorkerPool {
 public:
  // `finish(worker)` runs on each thread as it ends: what a thread owns (a GL context) must be freed on it.
  WorkerPool(int threads, std::function<void(int)> finish);
  ~WorkerPool();
  WorkerPool(const WorkerPool&) = delete;
  WorkerPool& operator=(const WorkerPool&) = delete;

  int size() const { return static_cast<int>(threads_.size()); }

  // Calls job(worker, item) for item in [0, items), each once, and returns when all are done. The first exception of
  // a job is thrown here; the other items still run.
  void run(int items, const std::function<void(int worker, int item)>& job);

 private:
  void work(int worker);

  std::function<void(int)> finish_;
  std::vector<std::thread> threads_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::condition_variable done_;
  const std::function<void(int, int)>* job_ = nullptr;
  int items_ = 0;
  std::atomic<int> next_{0};
  int working_ = 0;
  unsigned long generation_ = 0;
  bool stopping_ = false;
  std::exception_ptr failure_;
};

}  // namespace aime
