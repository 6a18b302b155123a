/* Keys and values that are kept, and queries that look at them.
 *
 * Source: keys and values in 8 bits: Sheng et al. 2023, FlexGen, section 4; here with one scale for each token and head.
 */
#pragma once
#include "network.h"

/* Keys and values: floats, or 8 bits with a scale for each token and head: keys, four columns side by side, around 128,
 * values around 0. */
typedef struct {
    void *keys;                       /* [layers][rows][kv_heads][capacity / 16][head_dim][16], or …[head_dim / 4][16][4] */
    void *values;                     /* [layers][rows][kv_heads][head_dim / 16][capacity][16] */
    float *key_scales, *value_scales; /* [layers][rows][kv_heads][capacity], or none */
    int64_t rows, capacity, bits;
} Cache;

/* Those of one text and key head. */
typedef struct {
    char *keys, *values;
    float *key_scales, *value_scales;
} Shelf;

/* Queries that look at a shelf together. */
typedef struct {
    const float *whole;    /* [count][dim], already scaled */
    const int8_t *numbers; /* the same in 8 bits, where keys are */
    float scales[TILE];
    int32_t sums[TILE];
    int64_t first[TILE], last[TILE]; /* what each sees */
    float *out[TILE];                /* where its answer goes */
    int count;
} Queries;

INLINE Shelf shelf_of(const Cache *c, int64_t place, int64_t dim) {
    const int64_t at = place * c->capacity, bytes = at * dim * c->bits / 8;
    return (Shelf){
        (char *)c->keys + bytes, (char *)c->values + bytes, c->bits == 8 ? c->key_scales + at : 0,
        c->bits == 8 ? c->value_scales + at : 0,
    };
}

/* Put the key and value of place `at` on a shelf; `scratch` has room for `dim` numbers of 8 bits. */
static void put(const Cache *c, const Shelf *s, int64_t at, int64_t dim, const float *key, const float *value, int8_t *scratch) {
    if (c->bits == 32) {
        float *keys = (float *)s->keys + at / LANES * dim * LANES + at % LANES;
        for (int64_t k = 0; k < dim; k++) keys[k * LANES] = key[k];
        for (int64_t k = 0; k < dim; k += LANES)
            store((float *)s->values + (k / LANES * c->capacity + at) * LANES, load(value + k));
        return;
    }
    int32_t total;
    uint8_t *keys = (uint8_t *)s->keys + at / LANES * dim * LANES + at % LANES * 4;
    s->key_scales[at] = narrow(key, dim, scratch, &total);
    for (int64_t k = 0; k < dim; k++) keys[k / 4 * 4 * LANES + k % 4] = (uint8_t)(scratch[k] + 128);
    s->value_scales[at] = narrow(value, dim, scratch, &total);
    for (int64_t k = 0; k < dim; k += LANES) memcpy(s->values + (k / LANES * c->capacity + at) * LANES, scratch + k, LANES);
}

/* Sixteen keys of 8 bits times all queries. */
INLINE void panel_keys(const uint8_t *keys, const float *scales, int64_t dim, const Queries *q, const int count, Floats *sums) {
    Ints total[TILE];
    for (int i = 0; i < count; i++) total[i] = (SIGNED_BYTES ? 0 : -128) * q->sums[i] - (Ints){0};
    for (int64_t k = 0; k < dim; k += 4) {
        const Bytes four = bytes(keys + k * LANES);
        for (int i = 0; i < count; i++) total[i] = dot8(total[i], four, word(q->numbers + i * dim + k));
    }
    for (int i = 0; i < count; i++) sums[i] = floats(total[i]) * (load(scales) * q->scales[i]);
}

/* Up to TILE queries look at the keys from..to of their shelf: scores [count][capacity]. */
INLINE void score(
    const Shelf *s, const int bits, int64_t from, int64_t to, int64_t capacity, int64_t dim, const Queries *q,
    const int count, float *scores
) {
    Floats sums[TILE];
    for (int64_t at = from; at < to; at += LANES) {
        if (bits == 8) panel_keys((const uint8_t *)s->keys + at * dim, s->key_scales + at, dim, q, count, sums);
        else panel_counted((const float *)s->keys + at * dim, 32, dim, q->whole, dim, count, sums);
        for (int i = 0; i < count; i++) store(scores + i * capacity + at, sums[i]);
    }
}

/* Up to TILE queries of one text and one key head: each sees what lies in [first, last] of its own. `scores`: room for
 * [count][capacity]. */
static void attend(const Cache *c, const Shelf *s, int64_t dim, const Queries *q, float *scores) {
    const int64_t capacity = c->capacity;
    int64_t from = q->first[0], to = q->last[0];
    for (int i = 1; i < q->count; i++) {
        from = q->first[i] < from ? q->first[i] : from;
        to = q->last[i] > to ? q->last[i] : to;
    }
    from = from / LANES * LANES, to = WHOLE(to + 1, LANES);
    if (c->bits == 32) score(s, 32, from, to, capacity, dim, q, q->count, scores);
    else switch (q->count) {
#define FOR(n) case n: score(s, 8, from, to, capacity, dim, q, n, scores); break;
            EACH_COUNT
#undef FOR
        }
    const Ints lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    Floats sums[TILE], parts[TILE];
    for (int i = 0; i < q->count; i++) {
        float *mine = scores + i * capacity;
        Floats most = all(-INFINITY), total = all(0);
        for (int64_t at = from; at < to; at += LANES) {
            Ints seen = (lane + (int32_t)at >= (int32_t)q->first[i]) & (lane + (int32_t)at <= (int32_t)q->last[i]);
            Floats masked = choose(seen, load(mine + at), all(-INFINITY));
            store(mine + at, masked);
            most = larger(most, masked);
        }
        const float top = largest(most);
        for (int64_t at = from; at < to; at += LANES) {
            Floats given = load(mine + at);
            Floats weight = choose(given == -INFINITY, all(0), exponential(given - top));
            total += weight;
            store(mine + at, c->bits == 8 ? weight * load(s->value_scales + at) : weight);
        }
        parts[i] = all(1.0f / sum(total));
    }
    for (int64_t part = 0; part < dim / LANES; part++) {
        const int64_t place = (part * capacity + from) * LANES;
        if (c->bits == 8) panel_counted(s->values + place, 8, to - from, scores + from, capacity, q->count, sums);
        else panel_counted((const float *)s->values + place, 32, to - from, scores + from, capacity, q->count, sums);
        for (int i = 0; i < q->count; i++) store(q->out[i] + part * LANES, sums[i] * parts[i]);
    }
}
