// numpy.random.RandomState(int) as dm_control uses it: the same numbers, bit for bit, from the same seed or state.
#pragma once

#include <array>
#include <cstdint>

namespace aime {

// Everything that decides the next numbers: numpy's get_state() without its name.
struct RandomStream {
  std::array<std::uint32_t, 624> key{};
  int position = 0;  // words of the key already used
  bool has_gauss = false;
  double cached_gaussian = 0.0;
};

class RandomState {
 public:
  explicit RandomState(std::uint32_t seed = 0);

  double random();                            // [0, 1), 53 bits: random_sample() and rand()
  double uniform(double low, double high);    // uniform(low, high)
  double randn();                             // standard_normal() and randn()
  std::uint32_t randint(std::uint32_t high);  // randint(high), high >= 1

  const RandomStream& stream() const { return stream_; }
  // Throws std::invalid_argument for a position outside 0 ... 624.
  void set_stream(const RandomStream& stream);

 private:
  std::uint32_t next_word();
  void generate();

  RandomStream stream_;
};

}  // namespace aime
