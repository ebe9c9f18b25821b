// A test is a function that throws; TEST registers it, main.cpp runs them all.
#pragma once

#include <functional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace aime::tests {

struct TestCase {
  const char* name;
  void (*body)();
};

// In the order of the linker; every test stands alone.
inline std::vector<TestCase>& test_cases() {
  static std::vector<TestCase> cases;
  return cases;
}

struct Registration {
  Registration(const char* name, void (*body)()) { test_cases().push_back({name, body}); }
};

[[noreturn]] inline void fail(const char* file, int line, const std::string& reason) {
  throw std::runtime_error(std::string(file) + ":" + std::to_string(line) + ": " + reason);
}

template <typename Left, typename Right>
void check_equal(const Left& left, const Right& right, const char* text, const char* file, int line) {
  if (left == right) return;
  std::ostringstream reason;
  reason << text << ": " << left << " and " << right << " differ";
  fail(file, line, reason.str());
}

// That `operation` throws an `Error` whose message contains `part`.
template <typename Error>
void check_throws(const std::function<void()>& operation, const std::string& part, const char* file, int line) {
  try {
    operation();
  } catch (const Error& error) {
    const std::string message = error.what();
    if (message.find(part) == std::string::npos) {
      fail(file, line, "the message '" + message + "' lacks '" + part + "'");
    }
    return;
  }
  fail(file, line, "nothing was thrown, expected '" + part + "'");
}

}  // namespace aime::tests

#define TEST(name)                                                                         \
  static void name();                                                                      \
  static const ::aime::tests::Registration name##_registration(#name, &name); /* NOLINT */ \
  static void name()
#define CHECK(condition)                                                               \
  do {                                                                                 \
    if (!(condition)) ::aime::tests::fail(__FILE__, __LINE__, #condition " is false"); \
  } while (false)
#define CHECK_EQUAL(left, right) ::aime::tests::check_equal((left), (right), #left " == " #right, __FILE__, __LINE__)
#define CHECK_THROWS(Error, part, operation) \
  ::aime::tests::check_throws<Error>([&] { operation; }, (part), __FILE__, __LINE__)
