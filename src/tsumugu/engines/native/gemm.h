/* Products of many tokens with a matrix: a tile of tokens and columns is summed up in registers.
 *
 * A matrix [rows, width] lies in panels of 32 rows: whole, [width][32] floats; rounded, [width / 4][32 rows][4 columns] of
 * signed bytes, with one scale a row. A register holds a part of a panel's rows, so that a lane is a row, and one number
 * of a token is multiplied with all of them. Each sum is added up by itself from the first column to the last: what a
 * token gives does not depend on how many there are.
 *
 * Source: the blocking: Goto & van de Geijn 2008, Anatomy of High-Performance Matrix Multiplication, section 4.
 */
#pragma once
#include "network.h"

#define PANEL 32

#ifdef __AVX512F__
#define REG 16
#define TALL 12 /* tokens of a tile: 24 sums, two registers of weights and one of a token */
#else
#define REG 8
#define TALL 6
#endif
typedef float Reg __attribute__((vector_size(4 * REG)));
typedef float LooseReg __attribute__((vector_size(4 * REG), aligned(4)));

typedef struct {
    int32_t bits, rows, width, activation; /* rows in whole panels; width as activations are filled up */
    const void *numbers;
    const float *scales; /* [rows] */
    const int32_t *sums; /* of a row's rounded numbers */
    const float *bias;   /* [rows] */
} Dense;

/* Tokens rounded to 8 bits, each by itself: x = scale * number + middle. */
typedef struct {
    int8_t *numbers; /* [tokens][stride] */
    float *scales, *middles;
    int64_t stride;
    int tiles; /* whether the processor's tiles may be used */
} Bytewise;

INLINE void tile(
    const float *w, int64_t step, int64_t width, const float *x, int64_t stride, float *y, int64_t out, const int count,
    const int regs
) {
    Reg sums[TALL][2];
#pragma GCC unroll 16
    for (int t = 0; t < count; t++) sums[t][0] = sums[t][1] = (Reg){0};
    for (int64_t k = 0; k < width; k++) {
        const Reg first = *(const LooseReg *)(w + k * step);
        const Reg second = regs > 1 ? *(const LooseReg *)(w + k * step + REG) : first;
#pragma GCC unroll 16
        for (int t = 0; t < count; t++) {
            const Reg given = x[t * stride + k] - (Reg){0};
            sums[t][0] += given * first;
            if (regs > 1) sums[t][1] += given * second;
        }
    }
#pragma GCC unroll 16
    for (int t = 0; t < count; t++) {
        *(LooseReg *)(y + t * out) = sums[t][0];
        if (regs > 1) *(LooseReg *)(y + t * out + REG) = sums[t][1];
    }
}

/* y[count][columns] = x[count][width] times w[width][columns], whose rows are `step` apart; columns: 16 or 32. */
static void product(
    const float *w, int64_t step, int64_t width, const float *x, int64_t stride, float *y, int64_t out, int64_t count,
    int columns
) {
    for (; columns > 0; columns -= 2 * REG, w += 2 * REG, y += 2 * REG)
        for (int64_t t = 0, some; t < count; t += some) {
            const float *from = x + t * stride;
            float *to = y + t * out;
#define TILE_OF(n)                                                                 \
    if (count - t >= n) {                                                          \
        if (columns > REG) tile(w, step, width, from, stride, to, out, n, 2);      \
        else tile(w, step, width, from, stride, to, out, n, 1);                    \
        some = n;                                                                  \
        continue;                                                                  \
    }
            TILE_OF(TALL)
            TILE_OF(4)
            TILE_OF(2)
            TILE_OF(1)
#undef TILE_OF
        }
}

#ifdef __AVX512VNNI__
#define SHORT 12
#define BYTES_REG 16
#define SHIFT 128 /* of the numbers of a token, which the instruction takes without a sign */
#else
#define SHORT 4
#define BYTES_REG 8
#define SHIFT 0
#endif
typedef int32_t RegSums __attribute__((vector_size(4 * BYTES_REG)));
typedef int32_t LooseSums __attribute__((vector_size(4 * BYTES_REG), aligned(4)));
typedef float RegFloats __attribute__((vector_size(4 * BYTES_REG)));
typedef float LooseFloats __attribute__((vector_size(4 * BYTES_REG), aligned(4)));

INLINE RegSums dot_bytes(RegSums total, RegSums weights, int32_t four) {
    const RegSums given = four - (RegSums){0};
#ifdef __AVX512VNNI__
    return (RegSums)_mm512_dpbusd_epi32((__m512i)total, (__m512i)given, (__m512i)weights);
#else
    const __m256i w = (__m256i)weights;
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8((__m256i)given, w));
    return total + (RegSums)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
#endif
}

/* Sums of one token, for the rows of a register, become numbers. */
INLINE void settled(const Dense *m, int64_t row, const Bytewise *x, int64_t token, RegSums total, float *y) {
    const RegFloats offset = __builtin_convertvector(*(const LooseSums *)(m->sums + row), RegFloats) * x->middles[token];
    const RegFloats scale = *(const LooseFloats *)(m->scales + row);
    *(LooseFloats *)y = (__builtin_convertvector(total, RegFloats) * x->scales[token] + offset) * scale;
}

INLINE void tile_bytes(
    const int8_t *w, const Dense *m, int64_t row, const Bytewise *x, int64_t first, float *y, int64_t out, const int count
) {
    const RegSums one = *(const LooseSums *)(m->sums + row), other = *(const LooseSums *)(m->sums + row + BYTES_REG);
    const int8_t *given = x->numbers + first * x->stride;
    RegSums sums[SHORT][2];
#pragma GCC unroll 16
    for (int t = 0; t < count; t++) sums[t][0] = one * -SHIFT, sums[t][1] = other * -SHIFT;
    for (int64_t k = 0; k < m->width; k += 4) {
        const RegSums low = *(const LooseSums *)(w + k * PANEL), high = *(const LooseSums *)(w + k * PANEL + 4 * BYTES_REG);
#pragma GCC unroll 16
        for (int t = 0; t < count; t++) {
            const int32_t four = word(given + t * x->stride + k);
            sums[t][0] = dot_bytes(sums[t][0], low, four);
            sums[t][1] = dot_bytes(sums[t][1], high, four);
        }
    }
#pragma GCC unroll 16
    for (int t = 0; t < count; t++)
        for (int half = 0; half < 2; half++)
            settled(m, row + half * BYTES_REG, x, first + t, sums[t][half], y + t * out + half * BYTES_REG);
}

#if defined(__AMX_INT8__) && defined(__AVX512VNNI__) && defined(__linux__)
/* Tiles of 16 rows of 64 bytes: a panel's numbers lie as they are wanted. Source: Intel 64 and IA-32 Architectures
 * Software Developer's Manual, volume 1, chapter 18; Linux, Documentation/arch/x86/xstate.rst. */
#include <sys/syscall.h>
#include <unistd.h>
#define TILED 32
/* The instructions of tiles do not tell the compiler which memory they read. */
#define IN_MEMORY(p) __asm__ volatile("" ::"r"(p) : "memory")

static int tiles_allowed(void) { return !syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* tile data */); }

/* A thread uses tiles from here on, until `tiles_end`. */
static void tiles_begin(void) {
    struct {
        uint8_t palette, start, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } shape = {.palette = 1};
    for (int i = 0; i < 8; i++) shape.bytes[i] = 64, shape.rows[i] = 16;
    IN_MEMORY(&shape);
    _tile_loadconfig(&shape);
}

static void tiles_end(void) { _tile_release(); }

/* A panel times TILED tokens; widths of whole tiles. */
static void tile_words(
    const int8_t *w, const Dense *m, int64_t row, const Bytewise *x, int64_t first, float *y, int64_t out
) {
    _Alignas(64) int32_t sums[TILED][PANEL];
    const int8_t *given = x->numbers + first * x->stride;
    IN_MEMORY(given);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t k = 0; k < m->width; k += 64) {
        _tile_loadd(4, given + k, x->stride);
        _tile_loadd(5, given + 16 * x->stride + k, x->stride);
        _tile_loadd(6, w + k * PANEL, 4 * PANEL);
        _tile_loadd(7, w + k * PANEL + 64, 4 * PANEL);
        _tile_dpbusd(0, 4, 6);
        _tile_dpbusd(1, 4, 7);
        _tile_dpbusd(2, 5, 6);
        _tile_dpbusd(3, 5, 7);
    }
    _tile_stored(0, &sums[0][0], sizeof sums[0]);
    _tile_stored(1, &sums[0][16], sizeof sums[0]);
    _tile_stored(2, &sums[16][0], sizeof sums[0]);
    _tile_stored(3, &sums[16][16], sizeof sums[0]);
    for (int t = 0; t < TILED; t++)
        for (int half = 0; half < PANEL; half += BYTES_REG) {
            const RegSums total = *(const LooseSums *)&sums[t][half] - *(const LooseSums *)(m->sums + row + half) * SHIFT;
            settled(m, row + half, x, first + t, total, y + t * out + half);
        }
}
#else
static int tiles_allowed(void) { return 0; }
static void tiles_begin(void) {}
static void tiles_end(void) {}
#endif

static void product_bytes(const Dense *m, int64_t panel, const Bytewise *x, float *y, int64_t out, int64_t count) {
    const int8_t *w = (const int8_t *)m->numbers + panel * PANEL * m->width;
    int64_t tiled = 0;
#ifdef TILED
    if (x->tiles && m->width % 64 == 0)
        for (; count - tiled >= TILED; tiled += TILED)
            tile_words(w, m, panel * PANEL, x, tiled, y + tiled * out, out);
#endif
    for (int row = 0; row < PANEL; row += 2 * BYTES_REG, w += 8 * BYTES_REG)
        for (int64_t t = tiled, some; t < count; t += some) {
#define TILE_OF(n)                                                                                 \
    if (count - t >= n) {                                                                          \
        tile_bytes(w, m, panel * PANEL + row, x, t, y + t * out + row, out, n);                    \
        some = n;                                                                                  \
        continue;                                                                                  \
    }
            TILE_OF(SHORT)
#if SHORT > 4
            TILE_OF(4)
#endif
            TILE_OF(2)
            TILE_OF(1)
#undef TILE_OF
        }
}

/* y[count][rows] = activation(x[count] . each row + bias); rounded matrices take `bytes`, whole ones `x`. */
static void dense(
    const Dense *m, const float *x, int64_t stride, const Bytewise *bytes, float *y, int64_t out, int64_t count
) {
    for (int64_t panel = 0; panel < m->rows / PANEL; panel++) {
        float *to = y + panel * PANEL;
        if (m->bits == 32) {
            const float *w = (const float *)m->numbers + panel * PANEL * m->width;
            product(w, PANEL, m->width, x, stride, to, out, count, PANEL);
        } else product_bytes(m, panel, bytes, to, out, count);
        const Floats low = m->bias ? load(m->bias + panel * PANEL) : all(0);
        const Floats high = m->bias ? load(m->bias + panel * PANEL + LANES) : all(0);
        for (int64_t t = 0; t < count; t++, to += out) {
            store(to, activated(m->activation, load(to) + low));
            store(to + LANES, activated(m->activation, load(to + LANES) + high));
        }
    }
}

/* Round a token's `width` numbers, in whole vectors, to 8 bits between its least and its greatest. */
static void round_token(const float *x, int64_t width, const Bytewise *to, int64_t token) {
    typedef int8_t Narrow __attribute__((vector_size(LANES), aligned(1)));
    Floats low = load(x), high = low;
    for (int64_t k = LANES; k < width; k += LANES) {
        const Floats given = load(x + k);
        low = choose(given < low, given, low), high = larger(given, high);
    }
    const float least = -largest(-low), most = largest(high), scale = (most - least) / 254.0f;
    const float middle = (most + least) / 2, inverse = scale > 0 ? 1.0f / scale : 0.0f;
    int8_t *numbers = to->numbers + token * to->stride;
    for (int64_t k = 0; k < width; k += LANES) {
        /* 1.5 * 2^23 rounds to the nearest whole number, even ones on a tie */
        const Ints whole = (Ints)((load(x + k) - middle) * inverse + 12582912.0f) - 0x4b400000;
        *(Narrow *)(numbers + k) = __builtin_convertvector(whole + SHIFT, Narrow);
    }
    to->scales[token] = scale, to->middles[token] = middle;
}
