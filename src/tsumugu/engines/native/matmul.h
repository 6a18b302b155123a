/* Products of many rows with a few tokens.
 *
 * A matrix [rows, width] lies in panels of 16 rows, the 16 numbers of a column side by side, so that a lane is a row: no
 * sum across lanes, one load for 16 scales. Columns come in groups of 32; one, two or four of them share a scale. A panel
 * stays in the nearest cache while all tokens pass it.
 *
 * Numbers of a group: whole: [32][16] floats. 8 bits: [8][16 rows][4 columns], 128 is zero. 4 bits: [4][16 rows][4
 * columns], the lower half of a byte from columns 8v..8v+3, the upper from 8v+4..8v+7; 8 is zero, or `mins` says what 0
 * stands for.
 */
#pragma once
#include "vectors.h"

#define GROUP 32
#define AHEAD 8192 /* bytes: the processor itself does not fetch ahead across pages */

typedef struct {
    int32_t bits, rows, width; /* rows in whole panels, width in whole groups */
    int32_t shift; /* 1 << shift groups share a scale */
    const void *numbers;
    const uint16_t *scales, *mins; /* float16, [panels][groups >> shift][16] */
    const float *bias;
} Matrix;

/* Activations of a few tokens, rounded to 8 bits in groups. */
typedef struct {
    const float *whole;   /* [tokens][stride] */
    const int8_t *numbers; /* [tokens][stride] */
    const float *scales;  /* [tokens][stride / 32] */
    const int32_t *sums;  /* of the numbers of a group */
    int64_t stride;
} Given;

INLINE int32_t word(const int8_t *p) {
    int32_t found;
    memcpy(&found, p, 4);
    return found;
}

/* Column k of a panel of floats, or of signed bytes. */
INLINE Floats column(const void *w, int64_t k, const int bits) {
    return bits == 32 ? load((const float *)w + k * LANES) : narrow_floats((const int8_t *)w + k * LANES);
}

/* One panel [width][16], `count` tokens `stride` apart; sums are for [count][16] rows. What a token gives does not depend
 * on how many there are: sums are added up in the same order. */
INLINE void panel_whole(
    const void *w, const int bits, int64_t width, const float *x, int64_t stride, const int count, Floats *sums
) {
    Floats part[CHAINS][FEW];
    for (int c = 0; c < CHAINS; c++)
        for (int t = 0; t < count; t++) part[c][t] = all(0);
    for (int64_t k = 0; k < width; k += 4)
        for (int i = 0; i < 4; i++) {
            Floats weights = column(w, k + i, bits);
            for (int t = 0; t < count; t++) part[i % CHAINS][t] += weights * x[t * stride + k + i];
        }
    for (int t = 0; t < count; t++) {
        sums[t] = part[0][t] + part[1][t];
        if (CHAINS == 4) sums[t] += part[2][t] + part[3][t];
    }
}

/* The same for up to TILE tokens. */
INLINE void panel_counted(
    const void *w, const int bits, int64_t width, const float *x, int64_t stride, int count, Floats *sums
) {
    for (; count >= FEW; count -= FEW, x += FEW * stride, sums += FEW) panel_whole(w, bits, width, x, stride, FEW, sums);
    if (count == 1) panel_whole(w, bits, width, x, stride, 1, sums);
#if FEW > 2
    if (count == 2) panel_whole(w, bits, width, x, stride, 2, sums);
    if (count == 3) panel_whole(w, bits, width, x, stride, 3, sums);
#endif
}

/* The same for whole numbers of `bits`, around 8 or 128 or, where `shifted`, with a least value of their own. */
INLINE void panel_rounded(
    const Matrix *m, int64_t panel, const Given *x, int64_t first, const int count, const int bits, const int shifted, Floats *sums
) {
    const int64_t groups = m->width / GROUP, bytes_of = GROUP * LANES * bits / 8;
    const uint8_t *w = (const uint8_t *)m->numbers + panel * groups * bytes_of;
    const int64_t first_scale = panel * (groups >> m->shift);
    const uint16_t *scales = m->scales + first_scale * LANES, *mins = shifted ? m->mins + first_scale * LANES : 0;
    const int zero = bits == 4 ? (shifted ? 0 : -8) : (SIGNED_BYTES ? 0 : -128);
    for (int t = 0; t < count; t++) sums[t] = all(0);
    for (int64_t g = 0; g < groups; g++, w += bytes_of) {
        Ints total[TILE];
        for (int t = 0; t < count; t++)
            total[t] = zero * x->sums[((first + t) * x->stride) / GROUP + g] - (Ints){0};
        for (int v = 0; v < 256 * bits / 8 / 32; v++) {
            Bytes b = bytes(w + v * 64);
            if (bits == 4 && count == 1) __builtin_prefetch(w + v * 64 + AHEAD);
            for (int t = 0; t < count; t++) {
                const int8_t *given = x->numbers + (first + t) * x->stride + g * GROUP;
                if (bits == 4) {
                    total[t] = dot4(total[t], low(b), word(given + 8 * v));
                    total[t] = dot4(total[t], high(b), word(given + 8 * v + 4));
                } else
                    total[t] = dot8(total[t], b, word(given + 4 * v));
            }
        }
        Floats scale = halves(scales + (g >> m->shift) * LANES), least = all(0);
        if (shifted) least = halves(mins + (g >> m->shift) * LANES);
        for (int t = 0; t < count; t++) {
            int64_t at = ((first + t) * x->stride) / GROUP + g;
            sums[t] += floats(total[t]) * (scale * x->scales[at]);
            if (shifted) sums[t] += least * (x->scales[at] * (float)x->sums[at]);
        }
    }
}

INLINE void panel_times(const Matrix *m, int64_t panel, const Given *x, int64_t first, const int count, Floats *sums) {
    if (m->bits == 32) {
        const float *w = (const float *)m->numbers + panel * m->width * LANES;
        panel_counted(w, 32, m->width, x->whole + first * x->stride, x->stride, count, sums);
    }
    else if (m->bits == 8) panel_rounded(m, panel, x, first, count, 8, 0, sums);
    else if (m->mins) panel_rounded(m, panel, x, first, count, 4, 1, sums);
    else panel_rounded(m, panel, x, first, count, 4, 0, sums);
}

/* What is compiled for each count of tokens up to TILE. */
#if TILE > 2
#define EACH_COUNT FOR(1) FOR(2) FOR(3) FOR(4) FOR(5) FOR(6) FOR(7) FOR(8)
#else
#define EACH_COUNT FOR(1) FOR(2)
#endif

/* Panels from..to of `m` times `tokens` tokens: y[token][row], `stride` numbers from token to token. */
static void multiply(const Matrix *m, int64_t from, int64_t to, const Given *x, int64_t tokens, float *y, int64_t stride) {
    Floats sums[TILE];
    for (int64_t panel = from; panel < to; panel++) {
        Floats bias = m->bias ? load(m->bias + panel * LANES) : all(0);
        float *out = y + panel * LANES;
        for (int64_t t = 0; t < tokens; t += TILE) {
            const int64_t left = tokens - t;
            switch (left < TILE ? left : TILE) {
#define FOR(n) case n: panel_times(m, panel, x, t, n, sums); break;
                EACH_COUNT
#undef FOR
            }
            for (int64_t i = 0; i < TILE && i < left; i++) store(out + (t + i) * stride, sums[i] + bias);
        }
    }
}

/* Round `width` numbers, in whole vectors, to 8 bits; gives the scale that they share. */
INLINE float narrow(const float *x, int64_t width, int8_t *numbers, int32_t *sum_of) {
    Floats most = all(0);
    for (int64_t k = 0; k < width; k += LANES) most = larger(most, larger(load(x + k), -load(x + k)));
    const float scale = largest(most) / 127.0f, inverse = scale > 0 ? 1.0f / scale : 0.0f;
    int32_t total = 0;
    for (int64_t k = 0; k < width; k += LANES) {
        /* 1.5 * 2^23 rounds to the nearest whole number, even ones on a tie */
        const Ints whole = (Ints)(load(x + k) * inverse + 12582912.0f) - 0x4b400000;
        for (int i = 0; i < LANES; i++) numbers[k + i] = (int8_t)whole[i], total += whole[i];
    }
    *sum_of = total;
    return scale;
}

/* Round `width` numbers, in whole groups, each group by itself. */
static void rounded(const float *x, int64_t width, int8_t *numbers, float *scales, int32_t *sums) {
    for (int64_t g = 0; g < width / GROUP; g++)
        scales[g] = narrow(x + g * GROUP, GROUP, numbers + g * GROUP, sums + g);
}

/* Row `row` of a matrix, as floats. */
static void read_row(const Matrix *m, int64_t row, float *out) {
    const int64_t panel = row / LANES, lane = row % LANES, groups = m->width / GROUP;
    for (int64_t k = 0; k < m->width; k++) {
        int64_t g = panel * groups + k / GROUP, c = k % GROUP;
        if (m->bits == 32) {
            out[k] = ((const float *)m->numbers)[(panel * m->width + k) * LANES + lane];
            continue;
        }
        const uint8_t *w = (const uint8_t *)m->numbers + g * GROUP * LANES * m->bits / 8;
        int number = m->bits == 8 ? w[c / 4 * 64 + lane * 4 + c % 4] - 128
                                  : (w[c / 8 * 64 + lane * 4 + c % 4] >> (c & 4) & 15) - (m->mins ? 0 : 8);
        const int64_t shared = (panel * (groups >> m->shift) + (k / GROUP >> m->shift)) * LANES + lane;
        out[k] = number * _cvtsh_ss(m->scales[shared]) + (m->mins ? _cvtsh_ss(m->mins[shared]) : 0.0f);
    }
}
