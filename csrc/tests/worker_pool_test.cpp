// The pool hands out every item once, orders what rounds write, and ends from every state.
#include "../parallel_environment/worker_pool.hpp"
#include "check.hpp"

#include <atomic>
#include <memory>
#include <set>
#include <vector>

namespace {

struct Counters {
  explicit Counters(int items, int workers) : items(static_cast<std::size_t>(items)), of(items), finished(workers) {}
  std::size_t items;
  // Plain on purpose: the pool must order one round's writes before the next one's.
  std::vector<int> of;
  std::vector<int> finished;
  std::atomic<int> idle{0};

  aime::PoolWork work() {
    aime::PoolWork work;
    work.job = [this](int /*worker*/, int item) { ++of[static_cast<std::size_t>(item)]; };
    work.idle = [this](int /*worker*/) { return idle.fetch_add(1) % 3 != 2; };
    work.finish = [this](int worker) { ++finished[static_cast<std::size_t>(worker)]; };
    return work;
  }
};

}  // namespace

TEST(a_pool_does_every_item_once_in_each_round) {
  for (const bool caller_takes_part : {false, true}) {
    for (const int workers : {1, 2, 3, 5}) {
      for (const int items : {1, 2, 7, 64}) {
        Counters counters(items, workers);
        {
          aime::WorkerPool pool(workers, caller_takes_part, items, counters.work());
          constexpr int kRounds = 100;
          for (int round = 1; round <= kRounds; ++round) {
            pool.post_all();
            pool.wait_all();
            CHECK_EQUAL(pool.in_flight(), 0);
            for (const int count : counters.of) CHECK_EQUAL(count, round);
          }
        }
        const int helpers = caller_takes_part ? workers - 1 : workers;
        for (int worker = 0; worker < workers; ++worker) {
          CHECK_EQUAL(counters.finished[static_cast<std::size_t>(worker)], worker < helpers ? 1 : 0);
        }
      }
    }
  }
}

TEST(a_pool_takes_some_items_at_a_time) {
  constexpr int kItems = 6;
  constexpr int kWorkers = 3;
  std::vector<int> plain(kItems, 0);
  std::vector<std::atomic<int>> done(kItems);
  aime::PoolWork work;
  work.job = [&](int /*worker*/, int item) {
    ++plain[static_cast<std::size_t>(item)];
    done[static_cast<std::size_t>(item)].fetch_add(1);
  };
  work.idle = [](int /*worker*/) { return false; };
  work.finish = [](int /*worker*/) {};
  aime::WorkerPool pool(kWorkers, false, kItems, work);
  for (int round = 1; round <= 300; ++round) {
    const int pairs[3][2] = {{5, 0}, {1, 4}, {2, 3}};
    for (const auto& pair : pairs) pool.post(pair, 2);
    for (const auto& pair : pairs) {
      pool.wait([&] { return done[static_cast<std::size_t>(pair[0])].load() == round; });
      CHECK_EQUAL(plain[static_cast<std::size_t>(pair[0])], round);
    }
    pool.wait_all();
    for (const int count : plain) CHECK_EQUAL(count, round);
  }
}

TEST(a_pool_ends_unused_and_with_items_in_flight) {
  for (int round = 0; round < 100; ++round) {
    Counters counters(8, 3);
    {
      const aime::WorkerPool unused(3, round % 2 == 0, 8, counters.work());
    }
    {
      aime::WorkerPool pool(3, round % 2 == 0, 8, counters.work());
      pool.post_all();
    }
    for (const int count : counters.of) CHECK_EQUAL(count, 1);
    CHECK_EQUAL(counters.finished[0], 2);
  }
}
