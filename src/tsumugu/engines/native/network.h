/* A decoder as it is run: what Python fills in (see native_network.py, which has the same fields), and the pieces of a layer. */
#pragma once
#include "matmul.h"

typedef struct {
    const float *weight, *bias; /* no weight: no norm; no bias: the root of mean squares, else mean and variance */
    float epsilon;
    int32_t width;
} Norm;

typedef struct {
    Norm attention_norm, query_norm, key_norm, attention_output_norm, feed_forward_norm, feed_forward_output_norm;
    Matrix packed, output, up, down; /* packed: queries, keys, values; up: the gate above it where there is one */
    const float *cosines, *sines;    /* [positions][head_dim / 2], or none */
    float scale;
    int32_t window; /* tokens that a token sees; 0 for all */
} Layer;

typedef struct {
    int32_t layers, hidden, heads, kv_heads, head_dim, inner, gated, activation;
    float embedding_scale, softcap;
    Matrix table;           /* rows of the embedding */
    const float *positions; /* [positions][hidden], or none */
    Norm norm;
    Matrix head;
    const Layer *layer;
} Network;

enum { SILU, GELU_TANH, GELU, QUICK_GELU, RELU, RELU2, TANH, NOTHING_BENT };

#define WHOLE(n, unit) (((n) + (unit) - 1) / (unit) * (unit))

/* `out` may be `x`. */
static void normalise(const Norm *n, const float *x, float *out) {
    const int64_t width = n->width, full = width / LANES * LANES;
    Floats total = all(0);
    float mean = 0, rest = 0;
    int64_t i;
    if (n->bias) {
        for (i = 0; i < full; i += LANES) total += load(x + i);
        for (; i < width; i++) rest += x[i];
        mean = (sum(total) + rest) / width;
        total = all(0), rest = 0;
    }
    for (i = 0; i < full; i += LANES) total += (load(x + i) - mean) * (load(x + i) - mean);
    for (; i < width; i++) rest += (x[i] - mean) * (x[i] - mean);
    const float scale = 1.0f / sqrtf((sum(total) + rest) / width + n->epsilon);
    for (i = 0; i < width; i++) out[i] = (x[i] - mean) * scale * n->weight[i] + (n->bias ? n->bias[i] : 0.0f);
}

INLINE Floats sigmoid(Floats x) { return 1.0f / (1.0f + exponential(-x)); }

INLINE Floats activated(int kind, Floats x) {
    switch (kind) {
        case SILU: return x * sigmoid(x);
        case GELU_TANH: return x * sigmoid(1.5957691216f * (x + 0.044715f * x * x * x));
        case QUICK_GELU: return x * sigmoid(1.702f * x);
        case GELU: return x * normal_share(x);
        case TANH: return 2.0f * sigmoid(2.0f * x) - 1.0f;
        case NOTHING_BENT: return x;
        case RELU2: return larger(x, all(0)) * larger(x, all(0));
    }
    return larger(x, all(0));
}

/* Turn the halves of a head against each other. Source: Su et al. 2021, RoFormer, section 3.4.2. */
static void turn(float *x, const float *cosines, const float *sines, int64_t half) {
    for (int64_t i = 0; i < half; i++) {
        float a = x[i], b = x[half + i];
        x[i] = a * cosines[i] - b * sines[i];
        x[half + i] = b * cosines[i] + a * sines[i];
    }
}
