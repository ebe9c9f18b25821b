#include "random_state.hpp"

#include <cmath>
#include <stdexcept>
#include <utility>

namespace aime {
namespace {

// MT19937 (Matsumoto and Nishimura, 1998).
constexpr std::size_t kSize = 624;
constexpr std::size_t kShift = 397;
constexpr std::uint32_t kUpperBit = 0x80000000U;
constexpr std::uint32_t kLowerBits = 0x7fffffffU;
constexpr std::uint32_t kMatrix = 0x9908b0dfU;

}  // namespace

RandomState::RandomState(std::uint32_t seed) {
  stream_.key[0] = seed;
  for (std::size_t word = 1; word < kSize; ++word) {
    const std::uint32_t before = stream_.key[word - 1];
    stream_.key[word] = 1812433253U * (before ^ (before >> 30U)) + static_cast<std::uint32_t>(word);
  }
  stream_.position = static_cast<int>(kSize);
}

void RandomState::set_stream(const RandomStream& stream) {
  if (stream.position < 0 || stream.position > static_cast<int>(kSize)) {
    throw std::invalid_argument("the position of a random state must lie in [0, 624]");
  }
  stream_ = stream;
}

void RandomState::generate() {
  auto& key = stream_.key;
  for (std::size_t word = 0; word < kSize; ++word) {
    const std::uint32_t mixed = (key[word] & kUpperBit) | (key[(word + 1) % kSize] & kLowerBits);
    key[word] = key[(word + kShift) % kSize] ^ (mixed >> 1U) ^ ((mixed & 1U) != 0U ? kMatrix : 0U);
  }
  stream_.position = 0;
}

std::uint32_t RandomState::next_word() {
  if (stream_.position == static_cast<int>(kSize)) generate();
  std::uint32_t word = stream_.key[static_cast<std::size_t>(stream_.position++)];
  word ^= word >> 11U;
  word ^= (word << 7U) & 0x9d2c5680U;
  word ^= (word << 15U) & 0xefc60000U;
  return word ^ (word >> 18U);
}

double RandomState::random() {
  const std::uint32_t high = next_word() >> 5U;
  const std::uint32_t low = next_word() >> 6U;
  return (high * 67108864.0 + low) / 9007199254740992.0;
}

double RandomState::uniform(double low, double high) {
  const double range = high - low;
  return low + range * random();
}

// The polar method; of each pair the second number is returned first, the first one by the next call.
double RandomState::randn() {
  if (stream_.has_gauss) {
    stream_.has_gauss = false;
    return std::exchange(stream_.cached_gaussian, 0.0);
  }
  double first = 0.0;
  double second = 0.0;
  double square = 0.0;
  do {
    first = 2.0 * random() - 1.0;
    second = 2.0 * random() - 1.0;
    square = first * first + second * second;
  } while (square >= 1.0 || square == 0.0);
  const double factor = std::sqrt(-2.0 * std::log(square) / square);
  stream_.cached_gaussian = factor * first;
  stream_.has_gauss = true;
  return factor * second;
}

// Words masked to the bits of the largest value, until one is in range. numpy draws nothing for a single value.
std::uint32_t RandomState::randint(std::uint32_t high) {
  if (high == 0) throw std::invalid_argument("randint needs high >= 1");
  const std::uint32_t largest = high - 1;
  if (largest == 0) return 0;
  std::uint32_t mask = largest;
  for (const unsigned shift : {1U, 2U, 4U, 8U, 16U}) mask |= mask >> shift;
  std::uint32_t word = 0;
  do word = next_word() & mask;
  while (word > largest);
  return word;
}

}  // namespace aime
