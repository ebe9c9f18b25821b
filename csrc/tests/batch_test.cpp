// The batch: the same numbers on any number of threads, every autoreset, faults, states, sending and receiving, ends.
#include "../parallel_environment/batch.hpp"
#include "check.hpp"
#include "driver.hpp"

#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <set>
#include <vector>

using aime::Autoreset;
using aime::Batch;
using aime::BatchSettings;
using aime::Results;
using aime::tests::Bytes;
using aime::tests::Driver;
using aime::tests::Model;

namespace {

// Pairs whose model dm_control edits before it compiles it, so that the file alone is another one.
bool is_edited(const std::string& domain) {
  static const std::set<std::string> edited = {"dog", "lqr", "manipulator", "quadruped", "stacker", "swimmer"};
  return edited.count(domain) > 0;
}

BatchSettings settings_of(const std::string& domain, const std::string& task, int envs, int threads) {
  BatchSettings settings;
  settings.domain = domain;
  settings.task = task;
  settings.num_envs = envs;
  settings.num_threads = threads;
  settings.substeps = 2;
  settings.step_limit = 4.0;
  settings.action_repeat = 2;
  return settings;
}

std::vector<double> random_actions(const Batch& batch, std::mt19937& generator) {
  std::uniform_real_distribution<double> uniform(-1.0, 1.0);
  std::vector<double> actions(static_cast<std::size_t>(batch.settings().num_envs * batch.model().nu));
  for (double& action : actions) action = uniform(generator);
  return actions;
}

// What `steps` steps after a reset show, each with the same actions whatever the threads.
std::vector<Bytes> trace(const BatchSettings& settings, int steps) {
  Driver driver(settings);
  std::mt19937 generator(3);
  driver.reset();
  std::vector<Bytes> seen = {driver.seen()};
  for (int count = 0; count < steps; ++count) {
    driver.step(random_actions(*driver.batch, generator));
    seen.push_back(driver.seen());
  }
  return seen;
}

}  // namespace

TEST(every_task_gives_the_same_numbers_on_any_number_of_threads) {
  aime::tests::load_library();
  int tasks = 0;
  for (const auto& [domain, task] : aime::supported_tasks()) {
    if (is_edited(domain)) continue;
    ++tasks;
    const std::vector<Bytes> alone = trace(settings_of(domain, task, 3, 1), 6);
    const std::vector<Bytes> shared = trace(settings_of(domain, task, 3, 3), 6);
    if (alone != shared) aime::tests::fail(__FILE__, __LINE__, domain + " " + task + " depends on the threads");
  }
  CHECK(tasks >= 16);
}

TEST(autoresets_follow_each_other_for_many_episodes) {
  for (const Autoreset autoreset : {Autoreset::kNextStep, Autoreset::kSameStep}) {
    for (const char* domain : {"cheetah", "reacher"}) {
      BatchSettings settings = settings_of(domain, domain[0] == 'c' ? "run" : "hard", 5, 2);
      settings.autoreset = autoreset;
      settings.step_limit = 3.0;
      const std::vector<Bytes> alone = trace(settings, 40);
      settings.num_threads = 4;
      CHECK(trace(settings, 40) == alone);
    }
  }
}

TEST(same_step_autoreset_reports_the_end_and_the_beginning) {
  BatchSettings settings = settings_of("cartpole", "swingup", 2, 2);
  settings.autoreset = Autoreset::kSameStep;
  settings.step_limit = 2.0;
  Driver driver(settings);
  std::mt19937 generator(1);
  driver.reset();
  driver.step(random_actions(*driver.batch, generator));
  const Results& results = driver.results();
  for (std::size_t env = 0; env < 2; ++env) {
    CHECK_EQUAL(static_cast<int>(results.step_type[env]), static_cast<int>(aime::kLast));
    CHECK_EQUAL(static_cast<int>(results.has_final[env]), 1);
  }
  CHECK(results.rows.observation != results.final_rows.observation);
}

TEST(without_autoreset_finished_environments_are_named) {
  BatchSettings settings = settings_of("cartpole", "swingup", 3, 2);
  settings.autoreset = Autoreset::kDisabled;
  Driver driver(settings);
  std::mt19937 generator(1);
  driver.reset();
  const std::vector<double> actions = random_actions(*driver.batch, generator);
  for (int count = 0; count < 2; ++count) driver.step(actions);
  CHECK_THROWS(std::runtime_error, "[0, 1, 2]", driver.step(actions));
  const std::vector<int> chosen = {1};
  driver.load(driver.batch->lacking(&chosen, true));
  driver.batch->start_episodes(&chosen);
  driver.batch->finish();
  CHECK_THROWS(std::runtime_error, "[0, 2]", driver.step(actions));
}

TEST(a_fault_ends_one_episode_and_nothing_else) {
  BatchSettings settings = settings_of("walker", "run", 4, 3);
  settings.step_limit = 100.0;
  Driver sound(settings);
  Driver faulty(settings);
  std::mt19937 generator(9);
  sound.reset();
  faulty.reset();
  for (int round = 0; round < 8; ++round) {
    std::vector<double> actions = random_actions(*sound.batch, generator);
    sound.step(actions);
    const std::size_t bad = 2 * static_cast<std::size_t>(faulty.model->nu);
    if (round == 3) actions[bad] = std::numeric_limits<double>::quiet_NaN();
    faulty.step(actions);
    const Results& results = faulty.results();
    CHECK_EQUAL(results.faults.size(), round == 3 ? 1U : 0U);
    if (round == 3) {
      CHECK_EQUAL(results.faults[0].first, 2);
      CHECK(!results.faults[0].second.empty());
      CHECK_EQUAL(static_cast<int>(results.step_type[2]), static_cast<int>(aime::kLast));
      CHECK_EQUAL(results.discount[2], 0.0);
    }
    if (round == 4) CHECK_EQUAL(static_cast<int>(results.step_type[2]), static_cast<int>(aime::kFirst));
    for (const std::size_t env : {0U, 1U, 3U}) CHECK_EQUAL(results.reward[env], sound.results().reward[env]);
  }
}

TEST(an_exception_of_a_worker_names_the_environment) {
  BatchSettings settings = settings_of("walker", "walk", 3, 2);
  Driver driver(settings);
  driver.reset();
  std::vector<double> physics(static_cast<std::size_t>(3 * driver.batch->state_size()));
  driver.batch->get_state(physics.data());
  aime::RestoredState state;
  state.physics = physics.data();
  state.reward = state.discount = {0.0, 0.0, 0.0};
  state.step_type = {0, 0, 0};
  state.step_count = {0, 0, 0};
  // A kind of joint that does not exist: MuJoCo ends the restoration of that environment by mju_error.
  const int kind = 77;
  const auto* bytes = reinterpret_cast<const std::uint8_t*>(&kind);
  const auto offset = static_cast<std::size_t>(reinterpret_cast<const std::uint8_t*>(driver.batch->model().jnt_type) -
                                               static_cast<const std::uint8_t*>(driver.batch->model().buffer));
  driver.batch->set_model_changes(1, {{offset, {bytes, bytes + sizeof(kind)}}});
  CHECK_THROWS(std::runtime_error, "walker walk, environment 1: cannot restore", driver.batch->set_state(state));
}

TEST(a_state_goes_on_exactly) {
  BatchSettings settings = settings_of("reacher", "hard", 3, 2);
  settings.step_limit = 100.0;
  Driver driver(settings);
  std::mt19937 generator(2);
  driver.reset();
  driver.step(random_actions(*driver.batch, generator));
  Batch& batch = *driver.batch;
  std::vector<double> physics(static_cast<std::size_t>(3 * batch.state_size()));
  batch.get_state(physics.data());
  aime::RestoredState state;
  state.physics = physics.data();
  std::vector<aime::ModelChanges> changes;
  for (int env = 0; env < 3; ++env) {
    const aime::Report& report = batch.report(env);
    state.reward.push_back(report.reward);
    state.discount.push_back(report.discount);
    state.step_type.push_back(static_cast<std::int8_t>(report.type));
    state.step_count.push_back(batch.step_count(env));
    const aime::SharedChanges shared = batch.model_changes(env);
    changes.push_back(shared ? *shared : aime::ModelChanges{});
  }
  const Bytes before = driver.seen();
  const std::vector<double> actions = random_actions(batch, generator);
  driver.step(actions);
  const Bytes after = driver.seen();
  for (int count = 0; count < 5; ++count) driver.step(random_actions(batch, generator));
  driver.reset();
  for (int env = 0; env < 3; ++env) batch.set_model_changes(env, changes[static_cast<std::size_t>(env)]);
  batch.set_state(state);
  CHECK(driver.seen() == before);
  driver.step(actions);
  CHECK(driver.seen() == after);
  aime::ModelChanges outside = {{static_cast<std::size_t>(driver.model->nbuffer) - 2, {1, 2, 3}}};
  CHECK_THROWS(std::invalid_argument, "outside this model", batch.set_model_changes(0, outside));
  CHECK_THROWS(std::out_of_range, "no environment 3", batch.set_model_changes(3, {}));
}

TEST(sent_environments_take_the_steps_they_would_take_together) {
  BatchSettings settings = settings_of("reacher", "hard", 5, 3);
  settings.step_limit = 8.0;
  constexpr int kSteps = 30;
  // Together first: the rewards of each environment by its own count of steps.
  std::vector<std::vector<double>> expected(5);
  std::vector<std::vector<double>> actions;
  {
    Driver driver(settings);
    std::mt19937 generator(4);
    driver.reset();
    for (int count = 0; count < kSteps; ++count) {
      actions.push_back(random_actions(*driver.batch, generator));
      driver.step(actions.back());
      for (std::size_t env = 0; env < 5; ++env) expected[env].push_back(driver.results().reward[env]);
    }
  }
  settings.batch_size = 2;
  Driver driver(settings);
  driver.reset();
  Batch& batch = *driver.batch;
  const auto nu = static_cast<std::size_t>(driver.model->nu);
  std::vector<std::size_t> taken(5, 0);
  const auto send = [&](const std::vector<int>& ids) {
    std::vector<double> rows;
    for (const int env : ids) {
      const std::vector<double>& all = actions[taken[static_cast<std::size_t>(env)]];
      rows.insert(rows.end(), all.begin() + static_cast<std::ptrdiff_t>(static_cast<std::size_t>(env) * nu),
                  all.begin() + static_cast<std::ptrdiff_t>((static_cast<std::size_t>(env) + 1) * nu));
    }
    driver.load(batch.lacking(&ids, false));
    batch.send(ids, rows.data());
  };
  CHECK_THROWS(std::runtime_error, "send actions first", batch.receive());
  send({0, 1, 2, 3, 4});
  CHECK_THROWS(std::runtime_error, "outstanding", batch.start_episodes(nullptr));
  CHECK_THROWS(std::invalid_argument, "", batch.send({1}, actions[0].data()));
  // Until some environment has taken all its steps.
  for (bool more = true; more;) {
    const Results& results = *batch.received_blocks()[static_cast<std::size_t>(batch.receive())];
    std::vector<int> again;
    for (std::size_t row = 0; row < 2; ++row) {
      const auto env = static_cast<std::size_t>(results.env_id[row]);
      CHECK_EQUAL(results.reward[row], expected[env][taken[env]]);
      more = ++taken[env] < kSteps && more;
      again.push_back(static_cast<int>(env));
    }
    if (more) send(again);
  }
  batch.drop_in_flight();
  CHECK_EQUAL(batch.in_flight(), 0);
  driver.reset();
}

TEST(a_batch_ends_from_every_state) {
  for (int round = 0; round < 20; ++round) {
    BatchSettings settings = settings_of("cheetah", "run", 4, 3);
    settings.batch_size = round % 2 == 0 ? 0 : 2;
    Driver driver(settings);
    if (round % 4 == 0) continue;  // never used
    driver.reset();
    std::mt19937 generator(6);
    const std::vector<double> actions = random_actions(*driver.batch, generator);
    if (settings.batch_size > 0) {
      driver.batch->send({3, 1, 2}, actions.data());  // and never received
    } else {
      driver.batch->start_steps(actions.data());  // and never finished
    }
    // The results outlive the batch: views of them may be held in Python.
    const std::shared_ptr<Results> held = driver.batch->blocks()[0];
    driver.batch.reset();
    CHECK_EQUAL(held->reward.size(), 4U);
  }
}

TEST(the_child_of_a_fork_can_drop_its_copy) {
  Driver driver(settings_of("cartpole", "swingup", 2, 2));
  driver.reset();
  const pid_t child = fork();
  if (child == 0) {
    const bool knows = driver.batch->forked();
    driver.batch.reset();
    _exit(knows ? 0 : 1);
  }
  int status = 0;
  CHECK_EQUAL(waitpid(child, &status, 0), child);
  CHECK_EQUAL(status, 0);
  std::mt19937 generator(1);
  driver.step(random_actions(*driver.batch, generator));  // the parent's goes on
}
