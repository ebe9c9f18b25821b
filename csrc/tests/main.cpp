// Runs every test of the program, or those whose name contains one of the arguments. The sanitizers judge the rest.
#include "check.hpp"

#include <chrono>
#include <cstdio>
#include <exception>

namespace {

bool chosen(const std::string& name, int count, char** words) {
  if (count <= 1) return true;
  for (int index = 1; index < count; ++index) {
    if (name.find(words[index]) != std::string::npos) return true;
  }
  return false;
}

}  // namespace

int main(int count, char** words) {
  using Clock = std::chrono::steady_clock;
  int ran = 0;
  int failed = 0;
  for (const aime::tests::TestCase& test : aime::tests::test_cases()) {
    if (!chosen(test.name, count, words)) continue;
    const Clock::time_point begin = Clock::now();
    ++ran;
    try {
      test.body();
    } catch (const std::exception& error) {
      ++failed;
      std::printf("FAILED %s\n  %s\n", test.name, error.what());
      continue;
    }
    const auto milliseconds = std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now() - begin).count();
    std::printf("passed %s (%lld ms)\n", test.name, static_cast<long long>(milliseconds));
    std::fflush(stdout);
  }
  std::printf("%d tests, %d failed\n", ran, failed);
  return failed == 0 && (ran > 0 || count > 1) ? 0 : 1;
}
