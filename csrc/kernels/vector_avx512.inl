// 16 floats in an AVX-512 register; only AVX-512F instructions.
// min and max give their second operand where either is NaN, so that NaN in the second propagates.

constexpr int kLanes = 16;

struct Vector {
  __m512 value;
};
struct Mask {
  __mmask16 value;
};

AIME_INLINE Vector load(const float* from) { return {_mm512_loadu_ps(from)}; }
AIME_INLINE void store(float* to, Vector a) { _mm512_storeu_ps(to, a.value); }
// To nearest, ties to even; every NaN becomes the quiet one.
AIME_INLINE void store_bfloat16(std::uint16_t* to, Vector a) {
  const __m512i bits = _mm512_castps_si512(a.value);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF)));
  const __mmask16 nan = _mm512_cmp_ps_mask(a.value, a.value, _CMP_UNORD_Q);
  const __m512i kept = _mm512_mask_blend_epi32(nan, rounded, _mm512_set1_epi32(0x7FC00000));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(_mm512_srli_epi32(kept, 16)));
}
AIME_INLINE Vector constant(float a) { return {_mm512_set1_ps(a)}; }
AIME_INLINE Vector operator+(Vector a, Vector b) { return {_mm512_add_ps(a.value, b.value)}; }
AIME_INLINE Vector operator-(Vector a, Vector b) { return {_mm512_sub_ps(a.value, b.value)}; }
AIME_INLINE Vector operator*(Vector a, Vector b) { return {_mm512_mul_ps(a.value, b.value)}; }
AIME_INLINE Vector operator/(Vector a, Vector b) { return {_mm512_div_ps(a.value, b.value)}; }
AIME_INLINE Vector multiply_add(Vector a, Vector b, Vector c) { return {_mm512_fmadd_ps(a.value, b.value, c.value)}; }
AIME_INLINE Vector subtract_product(Vector c, Vector a, Vector b) {
  return {_mm512_fnmadd_ps(a.value, b.value, c.value)};
}
AIME_INLINE Vector min(Vector a, Vector b) { return {_mm512_min_ps(a.value, b.value)}; }
AIME_INLINE Vector max(Vector a, Vector b) { return {_mm512_max_ps(a.value, b.value)}; }
AIME_INLINE Vector absolute(Vector a) { return {_mm512_abs_ps(a.value)}; }
AIME_INLINE Vector square_root(Vector a) { return {_mm512_sqrt_ps(a.value)}; }
AIME_INLINE Vector round(Vector a) {
  return {_mm512_roundscale_ps(a.value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}

AIME_INLINE Mask operator<(Vector a, Vector b) { return {_mm512_cmp_ps_mask(a.value, b.value, _CMP_LT_OQ)}; }
AIME_INLINE Mask operator>=(Vector a, Vector b) { return {_mm512_cmp_ps_mask(a.value, b.value, _CMP_GE_OQ)}; }
AIME_INLINE Mask operator|(Mask a, Mask b) { return {static_cast<__mmask16>(a.value | b.value)}; }
AIME_INLINE Mask operator&(Mask a, Mask b) { return {static_cast<__mmask16>(a.value & b.value)}; }
AIME_INLINE Mask operator!(Mask a) { return {static_cast<__mmask16>(~a.value)}; }
AIME_INLINE Mask select(Mask m, Mask yes, Mask no) {
  return {static_cast<__mmask16>((m.value & yes.value) | (~m.value & no.value))};
}
AIME_INLINE Vector select(Mask m, Vector yes, Vector no) {
  return {_mm512_mask_blend_ps(m.value, no.value, yes.value)};
}

// a * 2^n for whole n; subnormal results are exact, overflow is infinite.
AIME_INLINE Vector times_power_of_two(Vector a, Vector n) { return {_mm512_scalef_ps(a.value, n.value)}; }

// a = mantissa * 2^exponent with a mantissa in [1, 2); 0 gives exponent -inf, a negative number mantissa NaN.
AIME_INLINE void split(Vector a, Vector* mantissa, Vector* exponent) {
  mantissa->value = _mm512_getmant_ps(a.value, _MM_MANT_NORM_1_2, _MM_MANT_SIGN_nan);
  exponent->value = _mm512_getexp_ps(a.value);
}

AIME_INLINE float sum(Vector a) { return _mm512_reduce_add_ps(a.value); }
AIME_INLINE float largest(Vector a) { return _mm512_reduce_max_ps(a.value); }

// Lane r of the result is the sum of rows[r].
AIME_INLINE Vector sum_each(const Vector* rows) {
  __m512 quarter[4];  // four rows side by side in every 128 bits
  for (int i = 0; i < 4; ++i) {
    const Vector* row = rows + 4 * i;
    const __m512 ab =
        _mm512_add_ps(_mm512_unpacklo_ps(row[0].value, row[1].value), _mm512_unpackhi_ps(row[0].value, row[1].value));
    const __m512 cd =
        _mm512_add_ps(_mm512_unpacklo_ps(row[2].value, row[3].value), _mm512_unpackhi_ps(row[2].value, row[3].value));
    const __m512d low = _mm512_unpacklo_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
    const __m512d high = _mm512_unpackhi_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
    quarter[i] = _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high));
  }
  const __m512 first = _mm512_add_ps(_mm512_shuffle_f32x4(quarter[0], quarter[1], 0x88),
                                     _mm512_shuffle_f32x4(quarter[0], quarter[1], 0xDD));
  const __m512 second = _mm512_add_ps(_mm512_shuffle_f32x4(quarter[2], quarter[3], 0x88),
                                      _mm512_shuffle_f32x4(quarter[2], quarter[3], 0xDD));
  return {_mm512_add_ps(_mm512_shuffle_f32x4(first, second, 0x88), _mm512_shuffle_f32x4(first, second, 0xDD))};
}
