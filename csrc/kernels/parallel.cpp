#include "parallel.hpp"

#include <dlfcn.h>

#include <atomic>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace aime {
namespace {

constexpr double kWorthwhile = 40e3;  // nanoseconds; waking the team takes 5 to 20 us

// The entry point that compilers emit for `#pragma omp parallel`; libgomp and LLVM's libomp both have it.
using OpenMP = void (*)(void (*function)(void*), void* data, unsigned threads, unsigned flags);

OpenMP find_openmp() {
  static const OpenMP found = reinterpret_cast<OpenMP>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  return found;
}

struct Job {
  std::int64_t tiles;
  const std::function<TileWork()>& make_worker;
  std::atomic<std::int64_t> next{0};
  std::exception_ptr failure;
  std::mutex failure_mutex;

  void run() {
    try {
      const TileWork work = make_worker();
      for (std::int64_t tile = next.fetch_add(1); tile < tiles; tile = next.fetch_add(1)) work(tile);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(failure_mutex);
      if (!failure) failure = std::current_exception();
    }
  }
};

void run_in_plain_threads(Job* job, int threads) {
  std::vector<std::thread> pool;
  pool.reserve(static_cast<std::size_t>(threads - 1));
  for (int i = 1; i < threads; ++i) pool.emplace_back([job] { job->run(); });
  job->run();
  for (std::thread& thread : pool) thread.join();
}

}  // namespace

void run_tiles(std::int64_t tiles, int threads, double nanoseconds, const std::function<TileWork()>& make_worker) {
  Job job{tiles, make_worker, {}, {}, {}};
  if (tiles <= 1 || threads <= 1 || nanoseconds < kWorthwhile) {
    job.run();
  } else if (const OpenMP openmp = find_openmp()) {
    openmp([](void* data) { static_cast<Job*>(data)->run(); }, &job, static_cast<unsigned>(threads), 0);
  } else {
    run_in_plain_threads(&job, threads);
  }
  if (job.failure) std::rethrow_exception(job.failure);
}

}  // namespace aime
