#include "worker_pool.hpp"

#include <chrono>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>

namespace aime {
namespace {

// Longer than the time between two steps of a program that does nothing else, short against a forward pass of a policy.
constexpr std::chrono::microseconds kSpin{50};
constexpr int kPausesPerLook = 16;

void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Whether `ready()` became true within the time to spin.
template <typename Ready>
bool spin_until(const Ready& ready) {
  const auto end = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int count = 0; count < kPausesPerLook; ++count) {
      if (ready()) return true;
      pause();
    }
  } while (std::chrono::steady_clock::now() < end);
  return ready();
}

std::uint64_t pack(std::uint64_t next, std::uint64_t end) { return next << 32U | end; }

}  // namespace

WorkerPool::WorkerPool(int workers, bool caller_takes_part, int items, PoolWork work)
    : work_(std::move(work)),
      workers_(workers),
      caller_takes_part_(caller_takes_part),
      // More threads than cores: a spinning one would take the core of one that works.
      spins_(static_cast<unsigned>(workers) <= std::thread::hardware_concurrency()),
      capacity_(static_cast<std::uint64_t>(items)),
      shares_(new Share[static_cast<std::size_t>(workers)]),
      queue_(new std::atomic<int>[static_cast<std::size_t>(items)]) {
  const int helpers = caller_takes_part ? workers - 1 : workers;
  threads_.reserve(static_cast<std::size_t>(helpers));
  try {
    for (int worker = 0; worker < helpers; ++worker) threads_.emplace_back([this, worker] { this->work(worker); });
  } catch (const std::system_error& error) {
    stop();  // a thread that is dropped without being joined ends the process
    throw std::runtime_error("cannot start thread " + std::to_string(threads_.size() + 1) + " of " +
                             std::to_string(helpers) + ": " + error.what());
  }
}

WorkerPool::~WorkerPool() {
  wait_all();
  stop();
}

void WorkerPool::stop() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_.store(true);
  }
  wake_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void WorkerPool::post_all() {
  // Each worker begins with the same items every time: their memory is in its own core's cache.
  const auto workers = static_cast<std::uint64_t>(workers_);
  posted_ += capacity_;
  for (std::uint64_t worker = 0; worker < workers; ++worker) {
    shares_[worker].span.store(pack(capacity_ * worker / workers, capacity_ * (worker + 1) / workers));
  }
  announce();
}

void WorkerPool::post(const int* items, int count) {
  std::uint64_t tail = tail_.load(std::memory_order_relaxed);
  for (int index = 0; index < count; ++index, ++tail) {
    queue_[tail % capacity_].store(items[index], std::memory_order_relaxed);
  }
  posted_ += static_cast<std::uint64_t>(count);
  tail_.store(tail);
  announce();
}

// A helper counts itself as a sleeper before it looks for items a last time, the poster looks for sleepers after it
// stored items: one of them sees the other.
void WorkerPool::announce() {
  if (sleepers_.load() == 0) return;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
  }
  wake_.notify_all();
}

bool WorkerPool::claim_from(Share& share, int& item) {
  std::uint64_t span = share.span.load();
  while (true) {
    const std::uint64_t next = span >> 32U;
    const std::uint64_t end = span & 0xFFFFFFFFU;
    if (next >= end) return false;
    if (!share.span.compare_exchange_weak(span, pack(next + 1, end))) continue;
    item = static_cast<int>(next);
    return true;
  }
}

bool WorkerPool::claim(int worker, int& item) {
  for (int offset = 0; offset < workers_; ++offset) {
    if (claim_from(shares_[static_cast<std::size_t>((worker + offset) % workers_)], item)) return true;
  }
  std::uint64_t head = head_.load();
  while (head < tail_.load()) {
    // Read before claiming: afterwards the poster may write the place again.
    const int candidate = queue_[head % capacity_].load(std::memory_order_relaxed);
    if (!head_.compare_exchange_weak(head, head + 1)) continue;
    item = candidate;
    return true;
  }
  return false;
}

bool WorkerPool::has_items() const {
  if (head_.load() < tail_.load()) return true;
  for (int worker = 0; worker < workers_; ++worker) {
    const std::uint64_t span = shares_[static_cast<std::size_t>(worker)].span.load();
    if (span >> 32U < (span & 0xFFFFFFFFU)) return true;
  }
  return false;
}

bool WorkerPool::run_one(int worker) {
  int item = 0;
  if (!claim(worker, item)) return false;
  work_.job(worker, item);
  finished_.fetch_add(1);
  if (waiting_.load()) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
    }
    done_.notify_one();
  }
  return true;
}

void WorkerPool::wait(const std::function<bool()>& done) {
  while (!done()) {
    if (caller_takes_part_ && run_one(workers_ - 1)) continue;
    if (spins_ && spin_until(done)) return;
    std::unique_lock<std::mutex> lock(mutex_);
    waiting_.store(true);
    done_.wait(lock, done);
    waiting_.store(false);
  }
}

void WorkerPool::wait_all() {
  wait([this] { return finished_.load() == posted_; });
}

void WorkerPool::work(int worker) {
  const auto called = [this] { return stopping_.load() || has_items(); };
  bool worked = false;
  while (!stopping_.load()) {
    if (run_one(worker)) {
      worked = true;
      continue;
    }
    if (std::exchange(worked, false) && work_.idle(worker)) continue;
    if (spins_ && spin_until(called)) continue;
    std::unique_lock<std::mutex> lock(mutex_);
    sleepers_.fetch_add(1);
    wake_.wait(lock, called);
    sleepers_.fetch_sub(1);
  }
  work_.finish(worker);
}

}  // namespace aime
