// 8 floats in an AVX2 register, with FMA.
// min and max give their second operand where either is NaN, so that NaN in the second propagates.

constexpr int kLanes = 8;

struct Vector {
  __m256 value;
};
struct Mask {
  __m256 value;
};

AIME_INLINE Vector load(const float* from) { return {_mm256_loadu_ps(from)}; }
AIME_INLINE void store(float* to, Vector a) { _mm256_storeu_ps(to, a.value); }
// To nearest, ties to even; every NaN becomes the quiet one.
AIME_INLINE void store_bfloat16(std::uint16_t* to, Vector a) {
  const __m256i bits = _mm256_castps_si256(a.value);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF)));
  const __m256 nan = _mm256_cmp_ps(a.value, a.value, _CMP_UNORD_Q);
  const __m256 quiet = _mm256_castsi256_ps(_mm256_set1_epi32(0x7FC00000));
  const __m256i kept = _mm256_castps_si256(_mm256_blendv_ps(_mm256_castsi256_ps(rounded), quiet, nan));
  const __m256i high = _mm256_srli_epi32(kept, 16);
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(high, high), 0x08);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_castsi256_si128(packed));
}
AIME_INLINE Vector constant(float a) { return {_mm256_set1_ps(a)}; }
AIME_INLINE Vector operator+(Vector a, Vector b) { return {_mm256_add_ps(a.value, b.value)}; }
AIME_INLINE Vector operator-(Vector a, Vector b) { return {_mm256_sub_ps(a.value, b.value)}; }
AIME_INLINE Vector operator*(Vector a, Vector b) { return {_mm256_mul_ps(a.value, b.value)}; }
AIME_INLINE Vector operator/(Vector a, Vector b) { return {_mm256_div_ps(a.value, b.value)}; }
AIME_INLINE Vector multiply_add(Vector a, Vector b, Vector c) { return {_mm256_fmadd_ps(a.value, b.value, c.value)}; }
AIME_INLINE Vector subtract_product(Vector c, Vector a, Vector b) {
  return {_mm256_fnmadd_ps(a.value, b.value, c.value)};
}
AIME_INLINE Vector min(Vector a, Vector b) { return {_mm256_min_ps(a.value, b.value)}; }
AIME_INLINE Vector max(Vector a, Vector b) { return {_mm256_max_ps(a.value, b.value)}; }
AIME_INLINE Vector absolute(Vector a) { return {_mm256_andnot_ps(_mm256_set1_ps(-0.0F), a.value)}; }
AIME_INLINE Vector square_root(Vector a) { return {_mm256_sqrt_ps(a.value)}; }
AIME_INLINE Vector round(Vector a) { return {_mm256_round_ps(a.value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }

AIME_INLINE Mask operator<(Vector a, Vector b) { return {_mm256_cmp_ps(a.value, b.value, _CMP_LT_OQ)}; }
AIME_INLINE Mask operator>=(Vector a, Vector b) { return {_mm256_cmp_ps(a.value, b.value, _CMP_GE_OQ)}; }
AIME_INLINE Mask operator|(Mask a, Mask b) { return {_mm256_or_ps(a.value, b.value)}; }
AIME_INLINE Mask operator&(Mask a, Mask b) { return {_mm256_and_ps(a.value, b.value)}; }
AIME_INLINE Mask operator!(Mask a) { return {_mm256_xor_ps(a.value, _mm256_castsi256_ps(_mm256_set1_epi32(-1)))}; }
AIME_INLINE Mask select(Mask m, Mask yes, Mask no) { return {_mm256_blendv_ps(no.value, yes.value, m.value)}; }
AIME_INLINE Vector select(Mask m, Vector yes, Vector no) { return {_mm256_blendv_ps(no.value, yes.value, m.value)}; }

AIME_INLINE Vector power_of_two(__m256i n) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23))};
}

// a * 2^n for whole n in [-252, 254], in two halves: subnormal results are exact, overflow is infinite.
AIME_INLINE Vector times_power_of_two(Vector a, Vector n) {
  const __m256i whole = _mm256_cvtps_epi32(n.value);
  const __m256i half = _mm256_srai_epi32(whole, 1);
  return a * power_of_two(half) * power_of_two(_mm256_sub_epi32(whole, half));
}

// a = mantissa * 2^exponent with a mantissa in [1, 2); what is not a positive normal number is its own mantissa.
AIME_INLINE void split(Vector a, Vector* mantissa, Vector* exponent) {
  const Mask normal = (a >= constant(1.17549435e-38F)) & (a < constant(std::numeric_limits<float>::infinity()));
  const __m256i bits = _mm256_castps_si256(a.value);
  const __m256i fraction = _mm256_and_si256(bits, _mm256_set1_epi32(0x007FFFFF));
  const Vector scaled = {_mm256_castsi256_ps(_mm256_or_si256(fraction, _mm256_set1_epi32(0x3F800000)))};
  const __m256i power = _mm256_sub_epi32(_mm256_srli_epi32(bits, 23), _mm256_set1_epi32(127));
  *mantissa = select(normal, scaled, a);
  *exponent = select(normal, {_mm256_cvtepi32_ps(power)}, constant(0.0F));
}

AIME_INLINE float sum(Vector a) {
  __m128 part = _mm_add_ps(_mm256_castps256_ps128(a.value), _mm256_extractf128_ps(a.value, 1));
  part = _mm_add_ps(part, _mm_movehl_ps(part, part));
  return _mm_cvtss_f32(_mm_add_ss(part, _mm_shuffle_ps(part, part, 1)));
}
AIME_INLINE float largest(Vector a) {
  __m128 part = _mm_max_ps(_mm256_castps256_ps128(a.value), _mm256_extractf128_ps(a.value, 1));
  part = _mm_max_ps(part, _mm_movehl_ps(part, part));
  return _mm_cvtss_f32(_mm_max_ss(part, _mm_shuffle_ps(part, part, 1)));
}

// Lane r of the result is the sum of rows[r].
AIME_INLINE Vector sum_each(const Vector* rows) {
  __m256 half[2];  // four rows side by side in every 128 bits
  for (int i = 0; i < 2; ++i) {
    const Vector* row = rows + 4 * i;
    const __m256 ab =
        _mm256_add_ps(_mm256_unpacklo_ps(row[0].value, row[1].value), _mm256_unpackhi_ps(row[0].value, row[1].value));
    const __m256 cd =
        _mm256_add_ps(_mm256_unpacklo_ps(row[2].value, row[3].value), _mm256_unpackhi_ps(row[2].value, row[3].value));
    const __m256d low = _mm256_unpacklo_pd(_mm256_castps_pd(ab), _mm256_castps_pd(cd));
    const __m256d high = _mm256_unpackhi_pd(_mm256_castps_pd(ab), _mm256_castps_pd(cd));
    half[i] = _mm256_add_ps(_mm256_castpd_ps(low), _mm256_castpd_ps(high));
  }
  return {
      _mm256_add_ps(_mm256_permute2f128_ps(half[0], half[1], 0x20), _mm256_permute2f128_ps(half[0], half[1], 0x31))};
}
