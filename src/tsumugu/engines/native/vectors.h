/* Sixteen lanes at a time: one register with AVX-512, two with AVX2. */
#pragma once
#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#define LANES 16
#define INLINE static inline __attribute__((always_inline))

typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef float Unaligned __attribute__((vector_size(64), aligned(4)));

INLINE Floats load(const float *p) { return *(const Unaligned *)p; }
INLINE void store(float *p, Floats v) { *(Unaligned *)p = v; }
INLINE Floats all(float x) { return x - (Floats){0}; }
INLINE Floats floats(Ints v) { return __builtin_convertvector(v, Floats); }
INLINE Floats choose(Ints mask, Floats yes, Floats no) { return (Floats)((mask & (Ints)yes) | (~mask & (Ints)no)); }
INLINE Floats larger(Floats a, Floats b) { return choose(a > b, a, b); }

INLINE float sum(Floats v) {
    float total = 0;
    for (int width = 8; width; width /= 2)
        for (int i = 0; i < width; i++) v[i] += v[i + width];
    total = v[0];
    return total;
}

INLINE float largest(Floats v) {
    float found = v[0];
    for (int i = 1; i < LANES; i++) found = v[i] > found ? v[i] : found;
    return found;
}

/* e^x to 2e-7 of itself: 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2]. Source: Moshier, Cephes, expf. */
INLINE Floats exponential(Floats x) {
    x = choose(x > 88.0f, all(88.0f), x);
    x = choose(x < -87.0f, all(-87.0f), x);
    Floats shifted = x * 1.44269504f + 12582912.0f; /* 1.5 * 2^23: the sum's lower bits are the nearest whole number */
    Floats n = shifted - 12582912.0f;
    Floats r = x - n * 0.693359375f + n * 2.12194440e-4f;
    Floats p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return p * (Floats)(((Ints)shifted << 23) + 0x3f800000);
}

/* The share of a normal distribution below x, to 2e-7: 1/2 + x times a polynomial in x^2, fitted on [-5.2, 5.2] so that its
 * greatest error is least (Remez' criterion, by weights that are raised where it is great). */
INLINE Floats normal_share(Floats x) {
    static const float fitted[] = {
        1.359499930e-01f, -6.774366745e-02f, 5.002452143e-02f, -3.992982025e-02f, 3.198995823e-02f,
        -2.472362361e-02f, 1.795479199e-02f, -1.250514317e-02f, 8.559956822e-03f, -4.788999205e-03f,
        1.800133382e-03f, -1.221527773e-03f, 1.268507130e-03f, -4.812659455e-04f,
    };
    Floats near = choose(x > 5.2f, all(5.2f), x);
    near = choose(near < -5.2f, all(-5.2f), near);
    const Floats u = near * near * (2.0f / (5.2f * 5.2f)) - 1.0f; /* x^2 on [-1, 1], where its powers stay apart */
    Floats p = all(fitted[13]);
#pragma GCC unroll 13
    for (int i = 12; i >= 0; i--) p = p * u + fitted[i];
    return choose(x < -5.2f, all(0), near * p + 0.5f);
}

/* Sixteen signed bytes. The compiler's own conversion takes them one by one. */
INLINE Floats narrow_floats(const int8_t *p) {
    const __m128i given = _mm_loadu_si128((const __m128i *)p);
#ifdef __AVX512F__
    return floats((Ints)_mm512_cvtepi8_epi32(given));
#else
    union { __m256i part[2]; Ints whole; } found;
    found.part[0] = _mm256_cvtepi8_epi32(given);
    found.part[1] = _mm256_cvtepi8_epi32(_mm_srli_si128(given, 8));
    return floats(found.whole);
#endif
}

INLINE Floats halves(const uint16_t *p) {
#ifdef __AVX512F__
    return (Floats)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
#else
    union { __m256 part[2]; Floats whole; } found;
    found.part[0] = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
    found.part[1] = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p + 8)));
    return found.whole;
#endif
}

/* For each lane: sum + the products of four weights (0..255) and the same four activations (-127..127). */
#if defined(__AVX512VNNI__)
typedef __m512i Bytes;
INLINE Bytes bytes(const uint8_t *p) { return _mm512_loadu_si512(p); }
INLINE Bytes low(Bytes v) { return _mm512_and_si512(v, _mm512_set1_epi8(15)); }
INLINE Bytes high(Bytes v) { return _mm512_and_si512(_mm512_srli_epi16(v, 4), _mm512_set1_epi8(15)); }
INLINE Ints dot4(Ints total, Bytes weights, int32_t four) {
    return (Ints)_mm512_dpbusd_epi32((__m512i)total, weights, _mm512_set1_epi32(four));
}
#define dot8 dot4
/* Tokens that pass a panel together, rounded and whole; sums that a whole one is added up in. */
#define TILE 8
#define FEW 4
#define CHAINS 4
#else
typedef struct { __m256i part[2]; } Bytes;
INLINE Bytes bytes(const uint8_t *p) {
    return (Bytes){{_mm256_loadu_si256((const __m256i *)p), _mm256_loadu_si256((const __m256i *)(p + 32))}};
}
INLINE Bytes low(Bytes v) {
    __m256i mask = _mm256_set1_epi8(15);
    return (Bytes){{_mm256_and_si256(v.part[0], mask), _mm256_and_si256(v.part[1], mask)}};
}
INLINE Bytes high(Bytes v) {
    return low((Bytes){{_mm256_srli_epi16(v.part[0], 4), _mm256_srli_epi16(v.part[1], 4)}});
}
INLINE Ints dot4(Ints total, Bytes weights, int32_t four) { /* weights below 16 */
    union { __m256i part[2]; Ints whole; } found;
    __m256i given = _mm256_set1_epi32(four), ones = _mm256_set1_epi16(1);
    for (int i = 0; i < 2; i++)
        found.part[i] = _mm256_madd_epi16(_mm256_maddubs_epi16(weights.part[i], given), ones);
    return total + found.whole;
}
/* Two products of 8 bits overflow 16: they are taken of weights around 0, so the sum comes out 128 * activations less. */
INLINE Ints dot8(Ints total, Bytes weights, int32_t four) {
    union { __m256i part[2]; Ints whole; } found;
    __m256i given = _mm256_set1_epi32(four), ones = _mm256_set1_epi16(1);
    for (int i = 0; i < 2; i++) {
        __m256i w = _mm256_xor_si256(weights.part[i], _mm256_set1_epi8(-128));
        __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(given, w));
        found.part[i] = _mm256_madd_epi16(pairs, ones);
    }
    return total + found.whole;
}
#define SIGNED_BYTES 1
#define TILE 2
#define FEW 2
#define CHAINS 2
#endif
#ifndef SIGNED_BYTES
#define SIGNED_BYTES 0
#endif
