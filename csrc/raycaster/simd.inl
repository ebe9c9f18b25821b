// Sixteen lanes of numbers, whatever the instruction set: as one, two or four native vectors. Every operation is exact
// IEEE arithmetic without fused multiply-add, so that all instruction sets give the same picture bit for bit.
//
// The including file defines kNative (lanes of a native vector) and AIME_AVX2 or AIME_AVX512 where it compiles for
// them.

constexpr int kLanes = 16;
constexpr int kParts = kLanes / kNative;

#define AIME_INLINE static inline __attribute__((always_inline))
#define AIME_METHOD inline __attribute__((always_inline))
#define AIME_EACH for (int part = 0; part < kParts; ++part)

typedef float NativeFloat __attribute__((vector_size(kNative * 4)));
typedef std::int32_t NativeInt __attribute__((vector_size(kNative * 4)));

struct Float {
  NativeFloat v[kParts];
};

struct Int {
  NativeInt v[kParts];
};

#if defined(AIME_AVX512)
struct Mask {
  __mmask16 v[kParts];
};
#else
struct Mask {
  NativeInt v[kParts];
};
#endif

AIME_INLINE Float all(float value) {
  Float out;
  AIME_EACH out.v[part] = NativeFloat{} + value;
  return out;
}

AIME_INLINE Int all(std::int32_t value) {
  Int out;
  AIME_EACH out.v[part] = NativeInt{} + value;
  return out;
}

AIME_INLINE Float load(const float* from) {
  Float out;
  std::memcpy(&out, from, sizeof(out));
  return out;
}

AIME_INLINE Int load(const std::int32_t* from) {
  Int out;
  std::memcpy(&out, from, sizeof(out));
  return out;
}

AIME_INLINE void store(Float value, float* to) { std::memcpy(to, &value, sizeof(value)); }
AIME_INLINE void store(Int value, std::int32_t* to) { std::memcpy(to, &value, sizeof(value)); }

#define AIME_OPERATOR(Type, Scalar, op)                                \
  AIME_INLINE Type operator op(Type a, Type b) {                       \
    Type out;                                                          \
    AIME_EACH out.v[part] = a.v[part] op b.v[part];                    \
    return out;                                                        \
  }                                                                    \
  AIME_INLINE Type operator op(Type a, Scalar b) {                     \
    Type out;                                                          \
    AIME_EACH out.v[part] = a.v[part] op(NativeOf<Type>::type{} + b);  \
    return out;                                                        \
  }                                                                    \
  AIME_INLINE Type operator op(Scalar a, Type b) {                     \
    Type out;                                                          \
    AIME_EACH out.v[part] = (NativeOf<Type>::type{} + a) op b.v[part]; \
    return out;                                                        \
  }

template <typename Type>
struct NativeOf;
template <>
struct NativeOf<Float> {
  typedef NativeFloat type;
};
template <>
struct NativeOf<Int> {
  typedef NativeInt type;
};

AIME_OPERATOR(Float, float, +)
AIME_OPERATOR(Float, float, -)
AIME_OPERATOR(Float, float, *)
AIME_OPERATOR(Float, float, /)
AIME_OPERATOR(Int, std::int32_t, +)
AIME_OPERATOR(Int, std::int32_t, -)
AIME_OPERATOR(Int, std::int32_t, *)
AIME_OPERATOR(Int, std::int32_t, &)
AIME_OPERATOR(Int, std::int32_t, |)
AIME_OPERATOR(Int, std::int32_t, >>)
AIME_OPERATOR(Int, std::int32_t, <<)

AIME_INLINE Float operator-(Float a) {
  Float out;
  AIME_EACH out.v[part] = -a.v[part];
  return out;
}

#if defined(AIME_AVX512)

#define AIME_COMPARE(op, code) \
  AIME_INLINE Mask operator op(Float a, Float b) { return {{_mm512_cmp_ps_mask(a.v[0], b.v[0], code)}}; }

AIME_COMPARE(<, _CMP_LT_OQ)
AIME_COMPARE(<=, _CMP_LE_OQ)
AIME_COMPARE(>, _CMP_GT_OQ)
AIME_COMPARE(>=, _CMP_GE_OQ)

AIME_INLINE Mask operator==(Int a, Int b) {
  return {{_mm512_cmpeq_epi32_mask(reinterpret_cast<__m512i>(a.v[0]), reinterpret_cast<__m512i>(b.v[0]))}};
}
AIME_INLINE Mask operator&(Mask a, Mask b) { return {{static_cast<__mmask16>(a.v[0] & b.v[0])}}; }
AIME_INLINE Mask operator|(Mask a, Mask b) { return {{static_cast<__mmask16>(a.v[0] | b.v[0])}}; }
AIME_INLINE Mask operator~(Mask a) { return {{static_cast<__mmask16>(~a.v[0])}}; }
AIME_INLINE bool any(Mask a) { return a.v[0] != 0; }
AIME_INLINE Float select(Mask mask, Float yes, Float no) {
  return {{_mm512_mask_blend_ps(mask.v[0], no.v[0], yes.v[0])}};
}
AIME_INLINE Int select(Mask mask, Int yes, Int no) {
  return {{reinterpret_cast<NativeInt>(
      _mm512_mask_blend_epi32(mask.v[0], reinterpret_cast<__m512i>(no.v[0]), reinterpret_cast<__m512i>(yes.v[0])))}};
}
AIME_INLINE Float root(Float a) { return {{_mm512_maskz_sqrt_ps(0xFFFF, a.v[0])}}; }
AIME_INLINE Int gather(const std::int32_t* table, Int index) {
  return {{reinterpret_cast<NativeInt>(
      _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), 0xFFFF, reinterpret_cast<__m512i>(index.v[0]), table, 4))}};
}

#else

#define AIME_COMPARE(op)                            \
  AIME_INLINE Mask operator op(Float a, Float b) {  \
    Mask out;                                       \
    AIME_EACH out.v[part] = a.v[part] op b.v[part]; \
    return out;                                     \
  }

AIME_COMPARE(<)
AIME_COMPARE(<=)
AIME_COMPARE(>)
AIME_COMPARE(>=)

AIME_INLINE Mask operator==(Int a, Int b) {
  Mask out;
  AIME_EACH out.v[part] = a.v[part] == b.v[part];
  return out;
}
AIME_INLINE Mask operator&(Mask a, Mask b) {
  AIME_EACH a.v[part] &= b.v[part];
  return a;
}
AIME_INLINE Mask operator|(Mask a, Mask b) {
  AIME_EACH a.v[part] |= b.v[part];
  return a;
}
AIME_INLINE Mask operator~(Mask a) {
  AIME_EACH a.v[part] = ~a.v[part];
  return a;
}
AIME_INLINE Int select(Mask mask, Int yes, Int no) {
  AIME_EACH no.v[part] = (mask.v[part] & yes.v[part]) | (~mask.v[part] & no.v[part]);
  return no;
}
AIME_INLINE Float select(Mask mask, Float yes, Float no) {
  AIME_EACH no.v[part] = reinterpret_cast<NativeFloat>((mask.v[part] & reinterpret_cast<NativeInt>(yes.v[part])) |
                                                       (~mask.v[part] & reinterpret_cast<NativeInt>(no.v[part])));
  return no;
}
AIME_INLINE bool any(Mask a) {
  NativeInt merged = a.v[0];
  for (int part = 1; part < kParts; ++part) merged |= a.v[part];
#if defined(AIME_AVX2)
  return _mm256_movemask_ps(reinterpret_cast<__m256>(merged)) != 0;
#elif defined(__SSE2__)
  return _mm_movemask_ps(reinterpret_cast<__m128>(merged)) != 0;
#else
  bool found = false;
  for (int lane = 0; lane < kNative; ++lane) found = found || merged[lane] != 0;
  return found;
#endif
}
AIME_INLINE Float root(Float a) {
#if defined(AIME_AVX2)
  AIME_EACH a.v[part] = _mm256_sqrt_ps(a.v[part]);
#elif defined(__SSE2__)
  AIME_EACH a.v[part] = _mm_sqrt_ps(a.v[part]);
#else
  AIME_EACH for (int lane = 0; lane < kNative; ++lane) a.v[part][lane] = __builtin_sqrtf(a.v[part][lane]);
#endif
  return a;
}
AIME_INLINE Int gather(const std::int32_t* table, Int index) {
  Int out;
#if defined(AIME_AVX2)
  AIME_EACH out.v[part] =
      reinterpret_cast<NativeInt>(_mm256_i32gather_epi32(table, reinterpret_cast<__m256i>(index.v[part]), 4));
#else
  AIME_EACH for (int lane = 0; lane < kNative; ++lane) out.v[part][lane] = table[index.v[part][lane]];
#endif
  return out;
}

#endif

AIME_INLINE Mask operator<(Float a, float b) { return a < all(b); }
AIME_INLINE Mask operator<=(Float a, float b) { return a <= all(b); }
AIME_INLINE Mask operator>(Float a, float b) { return a > all(b); }
AIME_INLINE Mask operator>=(Float a, float b) { return a >= all(b); }

AIME_INLINE Float minimum(Float a, Float b) { return select(a < b, a, b); }
AIME_INLINE Float maximum(Float a, Float b) { return select(a > b, a, b); }
AIME_INLINE Float clamp(Float a, float low, float high) { return minimum(maximum(a, all(low)), all(high)); }
AIME_INLINE Float magnitude(Float a) { return maximum(a, -a); }

AIME_INLINE Float to_float(Int a) {
  Float out;
  AIME_EACH out.v[part] = __builtin_convertvector(a.v[part], NativeFloat);
  return out;
}
// Towards zero.
AIME_INLINE Int to_int(Float a) {
  Int out;
  AIME_EACH out.v[part] = __builtin_convertvector(a.v[part], NativeInt);
  return out;
}
AIME_INLINE Float as_float(Int a) {
  Float out;
  std::memcpy(&out, &a, sizeof(out));
  return out;
}
AIME_INLINE Int as_int(Float a) {
  Int out;
  std::memcpy(&out, &a, sizeof(out));
  return out;
}
AIME_INLINE Float floor(Float a) {
  const Float whole = to_float(to_int(a));
  return select(whole > a, whole - 1.0F, whole);
}

// Relative error 2e-7 and 3e-7 over what shading asks: minimax polynomials on one octave.
AIME_INLINE Float log2(Float a) {
  const Int bits = as_int(a);
  Float exponent = to_float((bits >> 23) - 127);
  Float m = as_float((bits & 0x7FFFFF) | 0x3F800000);
  const Mask upper = m > 1.41421356F;
  m = select(upper, m * 0.5F, m);
  exponent = select(upper, exponent + 1.0F, exponent);
  // log2(m) = 2 / ln 2 * atanh(s), s = (m - 1) / (m + 1), |s| <= 0.172
  const Float s = (m - 1.0F) / (m + 1.0F);
  const Float z = s * s;
  return exponent + s * (2.88539008F + z * (0.961796694F + z * (0.577078016F + z * 0.412198583F)));
}

AIME_INLINE Float exp2(Float a) {
  const Float bounded = clamp(a, -126.0F, 126.0F);
  const Float whole = floor(bounded);
  const Float x = bounded - whole;
  const Float scale = as_float((to_int(whole) + 127) << 23);
  return scale *
         (1.0F + x * (0.693147182F +
                      x * (0.240226462F +
                           x * (0.0555032841F + x * (0.00961833773F + x * (0.00133335581F + x * 0.000154353139F))))));
}

// a^power for 0 <= a <= about 1; 0^0 is 1.
AIME_INLINE Float power(Float a, float power) {
  if (power == 0.0F) return all(1.0F);
  return select(a > 1e-12F, exp2(log2(a) * power), all(0.0F));
}

struct Vector {
  Float x, y, z;
};

AIME_INLINE Vector operator+(Vector a, Vector b) { return {a.x + b.x, a.y + b.y, a.z + b.z}; }
AIME_INLINE Vector operator-(Vector a, Vector b) { return {a.x - b.x, a.y - b.y, a.z - b.z}; }
AIME_INLINE Vector operator-(Vector a) { return {-a.x, -a.y, -a.z}; }
AIME_INLINE Vector operator*(Vector a, Float b) { return {a.x * b, a.y * b, a.z * b}; }
AIME_INLINE Float dot(Vector a, Vector b) { return a.x * b.x + a.y * b.y + a.z * b.z; }
AIME_INLINE Vector unit(Vector a) { return a * (1.0F / root(maximum(dot(a, a), all(1e-30F)))); }
AIME_INLINE Vector all(const float* v) { return {all(v[0]), all(v[1]), all(v[2])}; }
AIME_INLINE Vector select(Mask mask, Vector yes, Vector no) {
  return {select(mask, yes.x, no.x), select(mask, yes.y, no.y), select(mask, yes.z, no.z)};
}
