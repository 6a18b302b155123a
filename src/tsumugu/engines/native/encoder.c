/* Whole texts read at once, one behind another without padding; norms come last in a layer.
 *
 * A layer is two phases. Attention: a piece of work is one head of one text. The rest: a piece is a block of tokens that
 * goes through the output of attention, the feed-forward, and queries, keys and values of the next layer while it stays
 * near the processor.
 */
#define _GNU_SOURCE
#include "gemm.h"
#include "pool.h"

typedef struct {
    Dense packed, output, up, down; /* packed: queries, keys, values */
    Norm attention_norm, feed_forward_norm;
    float scale;
    int32_t unused;
} EncoderLayer;

typedef struct {
    int32_t layers, hidden, heads, head_dim, embedded, unused; /* embedded: width of the tables */
    const float *tokens, *positions, *segments; /* rows of whole panels; the last two may be none */
    Norm norm;
    Dense projection; /* from the tables' width; no rows: none */
    const EncoderLayer *layer;
} Encoder;

typedef struct {
    int64_t texts, tokens, block, blocks;
    const int32_t *starts; /* [texts + 1] */
    const int32_t *ids, *positions, *segments;
    float *states; /* [tokens][hidden in whole panels] */
    float *firsts; /* [texts][…]: what the last layer makes of first tokens, where nothing else is wanted of it */
    int64_t first_block, first_blocks;
} Pass;

typedef struct {
    const Dense *dense;
    const Norm *norm;
    const float *x;
    float *y;
    int64_t stride, out, rows, block, blocks;
} Headed;

typedef struct {
    float *given, *inner, *keys, *scores;
    Bytewise bytes;
} Desk; /* a thread's own room */

typedef struct {
    const Encoder *encoder;
    Pool pool;
    Pass pass; /* here and not on a stack, because helpers that are late may look at them */
    Headed headed;
    int64_t room, longest;
    void *memory;
    float *packed, *context; /* [tokens][...] */
    Desk desks[MOST_THREADS];
    int64_t states, wide, attended, given, inner; /* numbers from token to token */
    int tiles;
} Reader;

#define BLOCK 96    /* tokens that go through a layer together */
#define QUERIES 24  /* of a text, that look at all its keys together */
#define CHUNK 768  /* tokens, about, that go through the network together */
#define APART 16    /* numbers between rows, whose addresses would else fall on the same places of the cache */

static int64_t round_up(int64_t bytes) { return WHOLE(bytes, 64); }

static int make_room(Reader *r, int64_t tokens, int64_t longest) {
    if (tokens <= r->room && longest <= r->longest) return 1;
    const int64_t room = tokens > r->room ? tokens : r->room, most = WHOLE(longest > r->longest ? longest : r->longest, PANEL);
    const int64_t widest = r->inner > r->attended ? r->inner : r->attended;
    const int64_t shared = round_up(room * r->wide * 4) + round_up(room * r->attended * 4);
    const int64_t sizes[7] = {
        BLOCK * r->given * 4, BLOCK * r->inner * 4, most * r->encoder->head_dim * 4, QUERIES * (most + APART) * 4,
        BLOCK * (widest + 64), BLOCK * 4, BLOCK * 4,
    };
    int64_t own = 0;
    for (int i = 0; i < 7; i++) own += round_up(sizes[i]);
    char *memory = aligned_alloc(64, shared + r->pool.threads * own);
    if (!memory) return 0;
    memset(memory, 0, shared + r->pool.threads * own);
    free(r->memory);
    r->memory = memory, r->room = room, r->longest = most;
    r->packed = (float *)memory, memory += round_up(room * r->wide * 4);
    r->context = (float *)memory, memory += round_up(room * r->attended * 4);
    for (int i = 0; i < r->pool.threads; i++) {
        Desk *d = &r->desks[i];
        void **places[7] = {
            (void **)&d->given, (void **)&d->inner, (void **)&d->keys, (void **)&d->scores,
            (void **)&d->bytes.numbers, (void **)&d->bytes.scales, (void **)&d->bytes.middles,
        };
        for (int k = 0; k < 7; memory += round_up(sizes[k++])) *places[k] = memory;
        d->bytes.stride = widest + 64, d->bytes.tiles = r->tiles;
    }
    return 1;
}

/* x = norm(x + more), where there is more; what is behind the width stays 0. */
static void settle(const Norm *n, float *x, const float *more) {
    const int64_t width = n->width;
    const Ints lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    Floats total = all(0);
    for (int64_t k = 0; k < width; k += LANES) {
        const Floats sum_of = more ? load(x + k) + load(more + k) : load(x + k);
        store(x + k, sum_of);
        total += sum_of;
    }
    const float mean = sum(total) / width;
    total = all(0);
    for (int64_t k = 0; k < width; k += LANES) {
        Floats away = load(x + k) - mean;
        if (k + LANES > width) away = choose(lane + (int32_t)k < (int32_t)width, away, all(0));
        total += away * away;
    }
    const float scale = 1.0f / sqrtf(sum(total) / width + n->epsilon);
    for (int64_t k = 0; k < width; k += LANES)
        store(x + k, (load(x + k) - mean) * scale * load(n->weight + k) + load(n->bias + k));
}

/* `count` tokens times a matrix, rounded first where the matrix is. */
static void through(
    const Dense *m, const float *x, int64_t stride, Desk *d, float *y, int64_t out, int64_t count
) {
    if (m->bits != 32)
        for (int64_t t = 0; t < count; t++) round_token(x + t * stride, m->width, &d->bytes, t);
    dense(m, x, stride, &d->bytes, y, out, count);
}

static void embed(Reader *r, Desk *d) {
    const Encoder *n = r->encoder;
    const Pass *p = &r->pass;
    const int64_t width = WHOLE(n->embedded, PANEL);
    for (int64_t piece; (piece = take(&r->pool, 1)) < p->blocks;) {
        const int64_t first = piece * p->block;
        const int64_t count = p->tokens - first < p->block ? p->tokens - first : p->block;
        float *states = p->states + first * r->states;
        float *tables = n->projection.rows ? d->given : states;
        const int64_t stride = n->projection.rows ? r->given : r->states;
        for (int64_t t = 0; t < count; t++) {
            float *x = tables + t * stride;
            const float *token = n->tokens + p->ids[first + t] * width;
            const float *segment = n->segments ? n->segments + p->segments[first + t] * width : 0;
            const float *place = n->positions ? n->positions + p->positions[first + t] * width : 0;
            for (int64_t k = 0; k < width; k += LANES) {
                Floats sum_of = load(token + k);
                if (segment) sum_of += load(segment + k);
                if (place) sum_of += load(place + k);
                store(x + k, sum_of);
            }
            if (n->norm.weight) settle(&n->norm, x, 0);
        }
        if (n->projection.rows) dense(&n->projection, tables, stride, 0, states, r->states, count);
        if (n->layers) through(&n->layer[0].packed, states, r->states, d, r->packed + first * r->wide, r->wide, count);
    }
    meet(&r->pool);
}

/* Turn scores[width] into weights; gives what they are to be divided by. */
static float weigh(float *scores, int64_t width, float scale) {
    const Ints lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const int64_t whole = width / LANES * LANES;
    const Ints inside = lane + (int32_t)whole < (int32_t)width;
    Floats most = all(-INFINITY), total = all(0);
    for (int64_t k = 0; k < whole; k += LANES) most = larger(load(scores + k), most);
    if (whole < width) most = larger(choose(inside, load(scores + whole), all(-INFINITY)), most);
    const float top = largest(most);
    for (int64_t k = 0; k < width; k += LANES) {
        Floats weight = exponential((load(scores + k) - top) * scale);
        if (k == whole) weight = choose(inside, weight, all(0));
        store(scores + k, weight);
        total += weight;
    }
    return sum(total);
}

static void attention(Reader *r, const EncoderLayer *layer, int first_only, Desk *d) {
    const Encoder *n = r->encoder;
    const Pass *p = &r->pass;
    const int64_t dim = n->head_dim, heads = n->heads, apart = r->longest + APART;
    for (int64_t piece; (piece = take(&r->pool, 1)) < p->texts * heads;) {
        const int64_t text = piece / heads, head = piece % heads, first = p->starts[text] - p->starts[0];
        const int64_t length = p->starts[text + 1] - p->starts[text];
        const float *query = r->packed + first * r->wide + head * dim;
        const float *key = query + heads * dim, *value = key + heads * dim;
        for (int64_t t = 0; t < WHOLE(length, PANEL); t++) {
            float *to = d->keys + t / PANEL * PANEL * dim + t % PANEL;
            for (int64_t k = 0; k < dim && t + 8 < length; k += 16) {
                __builtin_prefetch(key + (t + 8) * r->wide + k);
                __builtin_prefetch(value + (t + 8) * r->wide + k);
                __builtin_prefetch(query + (t + 8) * r->wide + k);
            }
            for (int64_t k = 0; k < dim; k++) to[k * PANEL] = t < length ? key[t * r->wide + k] : 0.0f;
        }
        const int64_t asking = first_only ? 1 : length;
        for (int64_t at = 0; at < asking; at += QUERIES) {
            const int64_t count = asking - at < QUERIES ? asking - at : QUERIES;
            float *out = r->context + (first_only ? text : first + at) * r->attended + head * dim;
            for (int64_t t = 0; t < length; t += PANEL)
                product(
                    d->keys + t * dim, PANEL, dim, query + at * r->wide, r->wide, d->scores + t, apart, count, PANEL
                );
            float shares[QUERIES];
            for (int64_t i = 0; i < count; i++)
                shares[i] = 1.0f / weigh(d->scores + i * apart, length, layer->scale);
            for (int64_t part = 0; part < dim; part += PANEL)
                product(
                    value + part, r->wide, length, d->scores, apart, out + part, r->attended, count,
                    dim - part < PANEL ? dim - part : PANEL
                );
            for (int64_t i = 0; i < count; i++)
                for (int64_t k = 0; k < dim; k += LANES)
                    store(out + i * r->attended + k, load(out + i * r->attended + k) * shares[i]);
        }
    }
    meet(&r->pool);
}

static void forward(Reader *r, int64_t number, int first_only, Desk *d) {
    const Encoder *n = r->encoder;
    const EncoderLayer *layer = &n->layer[number];
    const Pass *p = &r->pass;
    const int64_t rows = first_only ? p->texts : p->tokens, block = first_only ? p->first_block : p->block;
    for (int64_t piece; (piece = take(&r->pool, 1)) < (first_only ? p->first_blocks : p->blocks);) {
        const int64_t first = piece * block, count = rows - first < block ? rows - first : block;
        float *states = (first_only ? p->firsts : p->states) + first * r->states;
        for (int64_t t = 0; first_only && t < count; t++)
            memcpy(
                states + t * r->states, p->states + (p->starts[first + t] - p->starts[0]) * r->states, r->states * 4
            );
        through(&layer->output, r->context + first * r->attended, r->attended, d, d->given, r->given, count);
        for (int64_t t = 0; t < count; t++)
            settle(&layer->attention_norm, states + t * r->states, d->given + t * r->given);
        through(&layer->up, states, r->states, d, d->inner, r->inner, count);
        through(&layer->down, d->inner, r->inner, d, d->given, r->given, count);
        for (int64_t t = 0; t < count; t++)
            settle(&layer->feed_forward_norm, states + t * r->states, d->given + t * r->given);
        if (number + 1 < n->layers)
            through(&layer[1].packed, states, r->states, d, r->packed + first * r->wide, r->wide, count);
    }
    meet(&r->pool);
}

static void steps(void *given, int thread) {
    Reader *r = given;
    if (r->tiles) tiles_begin();
    embed(r, &r->desks[thread]);
    for (int64_t number = 0; number < r->encoder->layers; number++) {
        const int first_only = r->pass.firsts && number + 1 == r->encoder->layers;
        attention(r, &r->encoder->layer[number], first_only, &r->desks[thread]);
        forward(r, number, first_only, &r->desks[thread]);
    }
    if (r->tiles) tiles_end();
}

static int64_t block_of(const Reader *r, int64_t tokens) {
    const int64_t share = WHOLE((tokens + r->pool.threads - 1) / r->pool.threads, TALL);
    return share < TALL ? TALL : share < BLOCK ? share : BLOCK; /* there may be no tokens */
}

/* A reader for an encoder, which must live as long; none when there is no memory. */
Reader *tsumugu_open_encoder(const Encoder *encoder, int32_t threads) {
    Reader *r = aligned_alloc(64, WHOLE(sizeof(Reader), 64));
    if (!r) return 0;
    memset(r, 0, sizeof *r);
    r->encoder = encoder;
    const int64_t attended = encoder->heads * encoder->head_dim, table = WHOLE(encoder->embedded, PANEL);
    r->states = WHOLE(encoder->hidden, PANEL);
    r->attended = WHOLE(attended, PANEL) + APART;
    r->wide = WHOLE(3 * attended, PANEL) + APART;
    r->given = (r->states > table ? r->states : table) + APART;
    for (int i = 0; i < encoder->layers; i++) {
        const int64_t inner = encoder->layer[i].up.rows + APART;
        r->inner = inner > r->inner ? inner : r->inner;
    }
    r->tiles = encoder->layers && encoder->layer[0].up.bits == 8 && tiles_allowed();
    pool_start(&r->pool, threads);
    return r;
}

void tsumugu_close_encoder(Reader *r) {
    pool_stop(&r->pool);
    free(r->memory);
    free(r);
}

/* Read texts: text i is tokens starts[i] to starts[i + 1] of ids, positions and segments, all [tokens]. What the last
 * layer gives goes to states [tokens][hidden in whole panels]; or, where there are `firsts` [texts][…], there for the first
 * token of each text alone. 0 when there was no memory. */
int32_t tsumugu_encode(
    Reader *r, int64_t texts, const int32_t *starts, const int32_t *ids, const int32_t *positions, const int32_t *segments,
    float *states, float *firsts
) {
    int64_t longest = 0, most = 0;
    for (int round = 0; round < 2; round++)
        for (int64_t text = 0, next; text < texts; text = next) {
            for (next = text + 1; next < texts && starts[next + 1] - starts[text] <= CHUNK;) next++;
            const int64_t from = starts[text], tokens = starts[next] - from;
            if (round) {
                const int64_t block = block_of(r, tokens), first_block = block_of(r, next - text);
                r->pass = (Pass){
                    next - text, tokens, block, (tokens + block - 1) / block, starts + text, ids + from,
                    positions ? positions + from : 0, segments ? segments + from : 0, states + from * r->states,
                    firsts ? firsts + text * r->states : 0, first_block, (next - text + first_block - 1) / first_block,
                };
                pool_run(&r->pool, steps, r);
                continue;
            }
            most = tokens > most ? tokens : most;
            for (int64_t i = text; i < next; i++)
                longest = starts[i + 1] - starts[i] > longest ? starts[i + 1] - starts[i] : longest;
            if (next == texts && !make_room(r, most, longest)) return 0;
        }
    return 1;
}

static void head(void *given, int thread) {
    (void)thread;
    Reader *r = given;
    const Headed *h = &r->headed;
    for (int64_t piece; (piece = take(&r->pool, 1)) < h->blocks;) {
        const int64_t first = piece * h->block;
        const int64_t count = h->rows - first < h->block ? h->rows - first : h->block;
        float *y = h->y + first * h->out;
        dense(h->dense, h->x + first * h->stride, h->stride, 0, y, h->out, count);
        if (h->norm->weight)
            for (int64_t t = 0; t < count; t++) settle(h->norm, y + t * h->out, 0);
    }
    meet(&r->pool);
}

/* y[rows][out] = norm(activation(x[rows][stride] times a whole matrix + bias)). */
void tsumugu_head(
    Reader *r, const Dense *m, const Norm *norm, int64_t rows, const float *x, int64_t stride, float *y, int64_t out
) {
    const int64_t block = block_of(r, rows);
    r->headed = (Headed){m, norm, x, y, stride, out, rows, block, (rows + block - 1) / block};
    pool_run(&r->pool, head, r);
}
