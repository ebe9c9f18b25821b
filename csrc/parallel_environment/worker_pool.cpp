#include "worker_pool.hpp"

#include <utility>

namespace aime {

WorkerPool::WorkerPool(int threads, std::function<void(int)> finish) : finish_(std::move(finish)) {
  threads_.reserve(static_cast<std::size_t>(threads));
  for (int worker = 0; worker < threads; ++worker) threads_.emplace_back([this, worker] { work(worker); });
}

WorkerPool::~WorkerPool() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void WorkerPool::run(int items, const std::function<void(int, int)>& job) {
  std::unique_lock<std::mutex> lock(mutex_);
  job_ = &job;
  items_ = items;
  next_.store(0, std::memory_order_relaxed);
  working_ = size();
  failure_ = nullptr;
  ++generation_;
  wake_.notify_all();
  done_.wait(lock, [this] { return working_ == 0; });
  job_ = nullptr;
  if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
}

void WorkerPool::work(int worker) {
  unsigned long seen = 0;
  std::unique_lock<std::mutex> lock(mutex_);
  while (true) {
    wake_.wait(lock, [&] { return stopping_ || generation_ != seen; });
    if (stopping_) break;
    seen = generation_;
    const std::function<void(int, int)>& job = *job_;
    const int items = items_;
    lock.unlock();
    std::exception_ptr failure;
    for (int item = next_.fetch_add(1); item < items; item = next_.fetch_add(1)) {
      try {
        job(worker, item);
      } catch (...) {
        if (!failure) failure = std::current_exception();
      }
    }
    lock.lock();
    if (failure && !failure_) failure_ = failure;
    if (--working_ == 0) done_.notify_one();
  }
  lock.unlock();
  finish_(worker);
}

}  // namespace aime
