// 4 floats through the compiler's vector extension (SSE2 on x86-64, NEON on AArch64).
// min and max give their second operand where either is NaN, so that NaN in the second propagates.

constexpr int kLanes = 4;

typedef float Float4 __attribute__((vector_size(16)));
typedef std::int32_t Int4 __attribute__((vector_size(16)));

struct Vector {
  Float4 value;
};
struct Mask {
  Int4 value;
};

AIME_INLINE Vector load(const float* from) {
  Vector result;
  std::memcpy(&result.value, from, sizeof(result.value));
  return result;
}
AIME_INLINE void store(float* to, Vector a) { std::memcpy(to, &a.value, sizeof(a.value)); }
AIME_INLINE void store_bfloat16(std::uint16_t* to, Vector a) {
  for (int i = 0; i < kLanes; ++i) to[i] = to_bfloat16(a.value[i]);
}
AIME_INLINE Vector constant(float a) { return {Float4{a, a, a, a}}; }
AIME_INLINE Vector operator+(Vector a, Vector b) { return {a.value + b.value}; }
AIME_INLINE Vector operator-(Vector a, Vector b) { return {a.value - b.value}; }
AIME_INLINE Vector operator*(Vector a, Vector b) { return {a.value * b.value}; }
AIME_INLINE Vector operator/(Vector a, Vector b) { return {a.value / b.value}; }
AIME_INLINE Vector multiply_add(Vector a, Vector b, Vector c) { return {a.value * b.value + c.value}; }
AIME_INLINE Vector subtract_product(Vector c, Vector a, Vector b) { return {c.value - a.value * b.value}; }
AIME_INLINE Vector min(Vector a, Vector b) { return {a.value < b.value ? a.value : b.value}; }
AIME_INLINE Vector max(Vector a, Vector b) { return {a.value > b.value ? a.value : b.value}; }

AIME_INLINE Mask operator<(Vector a, Vector b) { return {a.value < b.value}; }
AIME_INLINE Mask operator>=(Vector a, Vector b) { return {a.value >= b.value}; }
AIME_INLINE Mask operator|(Mask a, Mask b) { return {a.value | b.value}; }
AIME_INLINE Mask operator&(Mask a, Mask b) { return {a.value & b.value}; }
AIME_INLINE Mask operator!(Mask a) { return {~a.value}; }
AIME_INLINE Mask select(Mask m, Mask yes, Mask no) { return {(m.value & yes.value) | (~m.value & no.value)}; }
AIME_INLINE Vector select(Mask m, Vector yes, Vector no) { return {m.value ? yes.value : no.value}; }

AIME_INLINE Int4 as_bits(Vector a) {
  Int4 bits;
  std::memcpy(&bits, &a.value, sizeof(bits));
  return bits;
}
AIME_INLINE Vector from_bits4(Int4 bits) {
  Vector result;
  std::memcpy(&result.value, &bits, sizeof(bits));
  return result;
}
AIME_INLINE Vector absolute(Vector a) { return from_bits4(as_bits(a) & 0x7FFFFFFF); }
// Adding 1.5 * 2^23 leaves no bits behind the point: right for |a| < 2^22.
AIME_INLINE Vector round(Vector a) { return (a + constant(12582912.0F)) - constant(12582912.0F); }

AIME_INLINE Vector power_of_two(Int4 n) { return from_bits4((n + 127) << 23); }

// a * 2^n for whole n in [-252, 254], in two halves: subnormal results are exact, overflow is infinite.
AIME_INLINE Vector times_power_of_two(Vector a, Vector n) {
  const Int4 whole = __builtin_convertvector(n.value, Int4);
  const Int4 half = whole >> 1;
  return a * power_of_two(half) * power_of_two(whole - half);
}

// a = mantissa * 2^exponent with a mantissa in [1, 2); what is not a positive normal number is its own mantissa.
AIME_INLINE void split(Vector a, Vector* mantissa, Vector* exponent) {
  const Mask normal = (a >= constant(1.17549435e-38F)) & (a < constant(std::numeric_limits<float>::infinity()));
  const Int4 bits = as_bits(a);
  *mantissa = select(normal, from_bits4((bits & 0x007FFFFF) | 0x3F800000), a);
  *exponent = select(normal, {__builtin_convertvector((bits >> 23) - 127, Float4)}, constant(0.0F));
}

AIME_INLINE Vector square_root(Vector a) {
  return {Float4{std::sqrt(a.value[0]), std::sqrt(a.value[1]), std::sqrt(a.value[2]), std::sqrt(a.value[3])}};
}

AIME_INLINE float sum(Vector a) { return (a.value[0] + a.value[2]) + (a.value[1] + a.value[3]); }
AIME_INLINE float largest(Vector a) {
  const float even = a.value[0] > a.value[2] ? a.value[0] : a.value[2];
  const float odd = a.value[1] > a.value[3] ? a.value[1] : a.value[3];
  return even > odd ? even : odd;
}

// Lane r of the result is the sum of rows[r].
AIME_INLINE Vector sum_each(const Vector* rows) {
  return {Float4{sum(rows[0]), sum(rows[1]), sum(rows[2]), sum(rows[3])}};
}
