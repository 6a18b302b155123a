/* A decoder's step: tokens of any texts at any places, keys and values in a cache, logits of those that are asked for.
 *
 * Reading a prompt, one more token for each of several texts, checking a guess of several tokens: all are the same call.
 * Every thread walks through `steps`; between two calls of `meet` the work is independent.
 */
#define _GNU_SOURCE
#include "attention.h"
#include "pool.h"

typedef struct Engine Engine;

typedef struct {
    Engine *engine;
    const Cache *cache;
    int64_t tokens, wanted, logit_stride;
    const int32_t *ids, *rows, *positions, *which;
    float *logits;
} Run;

typedef struct {
    Pool *pool;
    const float *numbers;
    int64_t pieces;
    _Atomic float seen;
} Reading;

struct Engine {
    const Network *network;
    Pool pool;
    Run run; /* here and not on a stack, because helpers that are late may look at it */
    Reading reading;
    int64_t room, capacity; /* tokens and cached places that there are buffers for */
    void *memory;
    float *residual, *whole, *wide, *scores, *queries;
    int8_t *numbers;
    float *scales;
    int32_t *sums;
    int64_t hidden, stride, width; /* numbers of a token in `residual`; in `whole` and its rounded form; in `wide` */
};

static int64_t round_up(int64_t bytes) { return WHOLE(bytes, 64); }

static int make_room(Engine *e, int64_t tokens, int64_t capacity) {
    if (tokens <= e->room && capacity <= e->capacity) return 1;
    const Network *n = e->network;
    int64_t room = tokens > e->room ? tokens : e->room, cap = capacity > e->capacity ? capacity : e->capacity;
    int64_t sizes[8] = {
        room * e->hidden * 4, room * e->stride * 4, room * e->width * 4, e->pool.threads * TILE * cap * 4,
        e->pool.threads * 2 * TILE * (int64_t)n->head_dim * 4, room * e->stride, room * e->stride / GROUP * 4,
        room * e->stride / GROUP * 4,
    };
    int64_t total = 0;
    for (int i = 0; i < 8; i++) total += round_up(sizes[i]);
    char *memory = aligned_alloc(64, total);
    if (!memory) return 0;
    memset(memory, 0, total);
    free(e->memory);
    e->memory = memory, e->room = room, e->capacity = cap;
    void **places[8] = {
        (void **)&e->residual, (void **)&e->whole,   (void **)&e->wide,   (void **)&e->scores,
        (void **)&e->queries,  (void **)&e->numbers, (void **)&e->scales, (void **)&e->sums,
    };
    for (int i = 0; i < 8; memory += round_up(sizes[i++])) *places[i] = memory;
    return 1;
}

/* Make token `i` ready to be multiplied with `m`: zeros up to whole groups, and rounded where the matrix is. */
static void ready(Engine *e, int64_t i, int64_t from, int64_t to, const Matrix *m) {
    float *x = e->whole + i * e->stride;
    for (int64_t k = to; k < m->width && k < WHOLE(to, GROUP); k++) x[k] = 0;
    if (m->bits == 32) return;
    int64_t group = (i * e->stride + from) / GROUP;
    rounded(x + from, WHOLE(to, GROUP) - from, e->numbers + i * e->stride + from, e->scales + group, e->sums + group);
}

static void times(Engine *e, const Matrix *m, int64_t tokens, float *out, int64_t stride) {
    const Given x = {e->whole, e->numbers, e->scales, e->sums, e->stride};
    int64_t panels = m->rows / LANES, piece = panels / (4 * e->pool.threads);
    piece = piece < 1 ? 1 : piece;
    for (int64_t at; (at = take(&e->pool, piece)) < panels;)
        multiply(m, at, at + piece < panels ? at + piece : panels, &x, tokens, out, stride);
    meet(&e->pool);
}

/* Add what a half of a layer gave to the residual path of token `i`. */
static void add(Engine *e, int64_t i, const Norm *norm) {
    float *x = e->residual + i * e->hidden, *given = e->wide + i * e->width;
    if (norm->weight) normalise(norm, given, given);
    for (int64_t k = 0; k < e->network->hidden; k++) x[k] += given[k];
}

static void embed(const Run *r) {
    Engine *e = r->engine;
    const Network *n = e->network;
    for (int64_t i; (i = take(&e->pool, 1)) < r->tokens;) {
        float *x = e->residual + i * e->hidden;
        read_row(&n->table, r->ids[i], x);
        const float *place = n->positions ? n->positions + (int64_t)r->positions[i] * n->hidden : 0;
        for (int64_t k = 0; k < n->hidden; k++) x[k] = x[k] * n->embedding_scale + (place ? place[k] : 0.0f);
        normalise(&n->layer[0].attention_norm, x, e->whole + i * e->stride);
        ready(e, i, 0, n->hidden, &n->layer[0].packed);
    }
    meet(&e->pool);
}

/* Norm and turn queries and keys of each token; keys and values go to the cache. */
static void remember(const Run *r, int64_t number) {
    Engine *e = r->engine;
    const Network *n = e->network;
    const Layer *layer = &n->layer[number];
    const Cache *c = r->cache;
    const int64_t dim = n->head_dim, heads = n->heads + n->kv_heads;
    for (int64_t i; (i = take(&e->pool, 1)) < r->tokens;) {
        float *x = e->wide + i * e->width;
        const int64_t at = r->positions[i];
        for (int64_t h = 0; h < heads; h++) {
            const Norm *norm = h < n->heads ? &layer->query_norm : &layer->key_norm;
            if (norm->weight) normalise(norm, x + h * dim, x + h * dim);
            if (layer->cosines)
                turn(x + h * dim, layer->cosines + at * dim / 2, layer->sines + at * dim / 2, dim / 2);
        }
        for (int64_t h = 0; h < n->kv_heads; h++) {
            const Shelf shelf = shelf_of(c, (number * c->rows + r->rows[i]) * n->kv_heads + h, dim);
            put(c, &shelf, at, dim, x + (n->heads + h) * dim, x + (heads + h) * dim, e->numbers + i * e->stride);
        }
    }
    meet(&e->pool);
}

/* Attention: a piece of work is one token and one key head; neighbours of the same text are looked at together. */
static void look(const Run *r, int64_t number, int thread) {
    Engine *e = r->engine;
    const Network *n = e->network;
    const Layer *layer = &n->layer[number];
    const Cache *c = r->cache;
    const int64_t dim = n->head_dim, group = n->heads / n->kv_heads;
    const int64_t together = r->tokens == 1 ? 1 : (TILE / group > 1 ? TILE / group : 1);
    const int64_t lots = WHOLE(r->tokens, together) / together, pieces = lots * n->kv_heads;
    float *scores = e->scores + thread * TILE * e->capacity, *whole = e->queries + thread * 2 * TILE * dim;
    int8_t *numbers = (int8_t *)(whole + TILE * dim);
    for (int64_t piece; (piece = take(&e->pool, 1)) < pieces;) {
        const int64_t h = piece % n->kv_heads, begin = piece / n->kv_heads * together;
        const int64_t end = begin + together < r->tokens ? begin + together : r->tokens;
        Queries q = {.whole = whole, .numbers = numbers};
        for (int64_t one = begin * group; one < end * group; one++) {
            const int64_t i = one / group, head = h * group + one % group, at = r->positions[i];
            const float *query = e->wide + i * e->width + head * dim;
            float *mine = whole + q.count * dim;
            for (int64_t k = 0; k < dim; k++) mine[k] = query[k] * layer->scale;
            if (c->bits == 8) q.scales[q.count] = narrow(mine, dim, numbers + q.count * dim, &q.sums[q.count]);
            q.first[q.count] = layer->window && at >= layer->window ? at - layer->window + 1 : 0;
            q.last[q.count] = at;
            q.out[q.count++] = e->whole + i * e->stride + head * dim;
            const int64_t next = one + 1 < end * group ? (one + 1) / group : -1;
            if (q.count == TILE || next < 0 || r->rows[next] != r->rows[i]) {
                const Shelf shelf = shelf_of(c, (number * c->rows + r->rows[i]) * n->kv_heads + h, dim);
                attend(c, &shelf, dim, &q, scores);
                q.count = 0;
            }
        }
    }
    meet(&e->pool);
}

static void activate(const Run *r, const Matrix *down) {
    Engine *e = r->engine;
    const Network *n = e->network;
    const int64_t piece = 512, pieces = WHOLE(n->inner, piece) / piece;
    for (int64_t at; (at = take(&e->pool, 1)) < r->tokens * pieces;) {
        const int64_t i = at / pieces, from = at % pieces * piece;
        const int64_t to = from + piece < n->inner ? from + piece : n->inner;
        const float *x = e->wide + i * e->width;
        float *out = e->whole + i * e->stride;
        for (int64_t k = from; k < to; k += LANES) {
            Floats given = activated(n->activation, load(x + k));
            store(out + k, n->gated ? given * load(x + n->inner + k) : given);
        }
        ready(e, i, from, to, down);
    }
    meet(&e->pool);
}

static void steps(void *given, int thread) {
    const Run *r = given;
    Engine *e = r->engine;
    const Network *n = e->network;
    embed(r);
    for (int64_t number = 0; number < n->layers; number++) {
        const Layer *layer = &n->layer[number];
        times(e, &layer->packed, r->tokens, e->wide, e->width);
        remember(r, number);
        look(r, number, thread);
        for (int64_t i; (i = take(&e->pool, 1)) < r->tokens;) ready(e, i, 0, n->heads * n->head_dim, &layer->output);
        meet(&e->pool);
        times(e, &layer->output, r->tokens, e->wide, e->width);
        for (int64_t i; (i = take(&e->pool, 1)) < r->tokens;) {
            add(e, i, &layer->attention_output_norm);
            normalise(&layer->feed_forward_norm, e->residual + i * e->hidden, e->whole + i * e->stride);
            ready(e, i, 0, n->hidden, &layer->up);
        }
        meet(&e->pool);
        times(e, &layer->up, r->tokens, e->wide, e->width);
        activate(r, &layer->down);
        times(e, &layer->down, r->tokens, e->wide, e->width);
        if (number + 1 == n->layers) break;
        for (int64_t i; (i = take(&e->pool, 1)) < r->tokens;) {
            add(e, i, &layer->feed_forward_output_norm);
            normalise(&layer[1].attention_norm, e->residual + i * e->hidden, e->whole + i * e->stride);
            ready(e, i, 0, n->hidden, &layer[1].packed);
        }
        meet(&e->pool);
    }
    for (int64_t i; (i = take(&e->pool, 1)) < r->wanted;) {
        const int64_t token = r->which[i];
        add(e, token, &n->layer[n->layers - 1].feed_forward_output_norm);
        normalise(&n->norm, e->residual + token * e->hidden, e->whole + i * e->stride);
        ready(e, i, 0, n->hidden, &n->head);
    }
    meet(&e->pool);
    times(e, &n->head, r->wanted, r->logits, r->logit_stride);
    if (n->softcap > 0)
        for (int64_t i; (i = take(&e->pool, 1)) < r->wanted;)
            for (float *x = r->logits + i * r->logit_stride, *end = x + n->head.rows; x < end; x += LANES)
                store(x, n->softcap * (2.0f * sigmoid(load(x) * (2.0f / n->softcap)) - 1.0f));
}

#define PIECE (1 << 16)

static void read_pieces(void *given, int thread) {
    (void)thread;
    Reading *r = given;
    Floats total[4] = {{0}};
    for (int64_t at; (at = take(r->pool, 1)) < r->pieces;)
        for (int64_t i = at * PIECE; i < (at + 1) * PIECE; i += 4 * LANES)
            for (int part = 0; part < 4; part++) total[part] += load(r->numbers + i + part * LANES);
    atomic_store(&r->seen, sum(total[0] + total[1] + total[2] + total[3]));
}

/* Read numbers with all threads, as quickly as memory gives them. */
void tsumugu_read(Engine *e, const float *numbers, int64_t count) {
    e->reading.pool = &e->pool, e->reading.numbers = numbers, e->reading.pieces = count / PIECE;
    pool_run(&e->pool, read_pieces, &e->reading);
}

/* An engine for a network, which must live as long; none when there is no memory. */
Engine *tsumugu_open(const Network *network, int32_t threads) {
    Engine *e = aligned_alloc(64, WHOLE(sizeof(Engine), 64));
    if (!e) return 0;
    memset(e, 0, sizeof *e);
    e->network = network;
    const int64_t attended = network->heads * network->head_dim, inner = network->inner, hidden = network->hidden;
    e->hidden = WHOLE(hidden, GROUP);
    e->stride = WHOLE(attended > inner ? (attended > hidden ? attended : hidden) : (inner > hidden ? inner : hidden), GROUP);
    e->width = e->stride;
    for (int i = 0; i < network->layers; i++) {
        const Layer *l = &network->layer[i];
        e->width = l->packed.rows > e->width ? l->packed.rows : e->width;
        e->width = l->up.rows > e->width ? l->up.rows : e->width;
    }
    pool_start(&e->pool, threads);
    return e;
}

void tsumugu_close(Engine *e) {
    pool_stop(&e->pool);
    free(e->memory);
    free(e);
}

/* Read `tokens` tokens: each goes to place `positions` of text `rows`. Of a text they come in order, without gaps.
 * logits [wanted][logit_stride] are of the tokens `which`. 0 when there was no memory. */
int32_t tsumugu_run(
    Engine *engine, const Cache *cache, int64_t tokens, const int32_t *ids, const int32_t *rows, const int32_t *positions,
    int64_t wanted, const int32_t *which, float *logits, int64_t logit_stride
) {
    if (!make_room(engine, tokens > wanted ? tokens : wanted, cache->capacity)) return 0;
    engine->run = (Run){engine, cache, tokens, wanted, logit_stride, ids, rows, positions, which, logits};
    pool_run(&engine->pool, steps, &engine->run);
    return 1;
}
