// Numbers of numpy.random.RandomState(5489) and RandomState(1), printed with repr; tests/envs compares at length.
#include "../parallel_environment/random_state.hpp"
#include "check.hpp"

#include <cstdint>

TEST(random_state_gives_the_words_of_mt19937) {
  // The standard's own check: the 10000th word of seed 5489 is 4123659995. randint(2^32 - 1) rejects the largest only.
  aime::RandomState random(5489);
  std::uint32_t word = 0;
  for (int count = 0; count < 10000; ++count) word = random.randint(0xffffffffU);
  CHECK_EQUAL(word, 4123659995U);
}

TEST(random_state_gives_numpys_doubles) {
  aime::RandomState random(1);
  CHECK_EQUAL(random.random(), 0.417022004702574);
  CHECK_EQUAL(random.random(), 0.7203244934421581);
  CHECK_EQUAL(aime::RandomState(1).randn(), 1.6243453636632417);
}

TEST(random_state_goes_on_from_a_saved_stream) {
  aime::RandomState first(7);
  static_cast<void>(first.randn());  // leaves the pair's second number cached
  aime::RandomState second(8);
  second.set_stream(first.stream());
  for (int count = 0; count < 2000; ++count) {
    CHECK_EQUAL(first.randn(), second.randn());
    CHECK_EQUAL(first.randint(17), second.randint(17));
  }
}

TEST(random_state_refuses_what_numpy_refuses) {
  aime::RandomState random(3);
  aime::RandomStream stream = random.stream();
  stream.position = 625;
  CHECK_THROWS(std::invalid_argument, "[0, 624]", random.set_stream(stream));
  CHECK_THROWS(std::invalid_argument, "high >= 1", random.randint(0));
  CHECK_EQUAL(random.randint(1), 0U);
}
