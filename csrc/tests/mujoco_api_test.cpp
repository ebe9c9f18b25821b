// MuJoCo's errors, which by default end the process, come back; on each thread its own, and nested.
#include "../parallel_environment/mujoco_api.hpp"
#include "check.hpp"
#include "models.hpp"

#include <limits>
#include <string>
#include <thread>
#include <vector>

using aime::tests::kPendulum;

namespace {

// Reaches mju_error: there is no such signature of a state.
void provoke_error(const mjModel* model, mjData* data) { aime::mujoco().mj_setState(model, data, nullptr, -1); }

}  // namespace

TEST(an_error_of_mujoco_becomes_an_exception) {
  const aime::tests::Model model = aime::tests::text_model(kPendulum);
  const aime::tests::Data data = aime::tests::make_data(model.get());
  CHECK_THROWS(std::runtime_error,
               "doing it: ", aime::guarded_or_throw([&] { provoke_error(model.get(), data.get()); }, "doing it"));
}

TEST(a_warning_is_kept_and_the_operation_ends) {
  const aime::tests::Model model = aime::tests::text_model(kPendulum);
  const aime::tests::Data data = aime::tests::make_data(model.get());
  data->qpos[0] = std::numeric_limits<double>::quiet_NaN();
  aime::MujocoMessages messages;
  bool ended = false;
  aime::guarded(
      [&] {
        aime::mujoco().mj_step(model.get(), data.get());
        ended = true;
      },
      messages);
  CHECK(ended);
  CHECK(!messages.failed);
  CHECK(std::string(messages.warning).find("QPOS") != std::string::npos);
}

TEST(guards_nest) {
  const aime::tests::Model model = aime::tests::text_model(kPendulum);
  const aime::tests::Data data = aime::tests::make_data(model.get());
  aime::MujocoMessages outer;
  aime::MujocoMessages inner;
  bool reached = false;
  aime::guarded(
      [&] {
        aime::guarded([&] { provoke_error(model.get(), data.get()); }, inner);
        reached = true;
        provoke_error(model.get(), data.get());
      },
      outer);
  CHECK(reached);
  CHECK(inner.failed);
  CHECK(outer.failed);
}

TEST(threads_have_errors_of_their_own) {
  const aime::tests::Model model = aime::tests::text_model(kPendulum);
  std::vector<int> wrong(4, 0);
  std::vector<std::thread> threads;
  for (std::size_t index = 0; index < wrong.size(); ++index) {
    threads.emplace_back([&, index] {
      const aime::tests::Data data = aime::tests::make_data(model.get());
      const bool fails = index % 2 == 0;
      for (int round = 0; round < 200; ++round) {
        aime::MujocoMessages messages;
        aime::guarded(
            [&] {
              if (fails) provoke_error(model.get(), data.get());
              aime::mujoco().mj_step(model.get(), data.get());
            },
            messages);
        if (messages.failed != fails) ++wrong[index];
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const int count : wrong) CHECK_EQUAL(count, 0);
}

TEST(a_library_without_mujocos_functions_is_refused) {
  aime::tests::load_library();
  CHECK_THROWS(std::runtime_error, "cannot load MuJoCo", aime::load_mujoco("/nonexistent/libmujoco.so"));
  CHECK_THROWS(std::runtime_error, "has no function mj_version", aime::load_mujoco("libm.so.6"));
  CHECK(aime::mujoco().mj_version() > 0);  // the one that was loaded before stays
}
