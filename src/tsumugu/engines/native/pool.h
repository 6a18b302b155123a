/* Threads that go through the same work side by side and meet at barriers.
 *
 * Work between two barriers is handed out in pieces, so that a thread that the system holds up is not waited for longer
 * than one piece. Waiting threads spin, since the next piece is microseconds away; after a while they yield, and between
 * runs they sleep.
 */
#pragma once
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>

#define SPINS_AT_A_BARRIER 2048
#define SPINS_BETWEEN_RUNS 16384
#define MOST_THREADS 256

typedef struct {
    int threads;
    pid_t owner;
    pthread_t others[MOST_THREADS];
    _Alignas(64) atomic_long next;    /* the piece of work that nobody took yet */
    _Alignas(64) atomic_int arrived;
    _Alignas(64) atomic_int meetings; /* barriers that were passed */
    _Alignas(64) atomic_int runs;
    atomic_int asleep, closing;
    pthread_mutex_t mutex;
    pthread_cond_t wake;
    void (*work)(void *, int);
    void *given;
} Pool;

typedef struct {
    Pool *pool;
    int number, seen;
} Seat;

static inline void meet(Pool *p) {
    if (p->threads > 1) {
        int now = atomic_load(&p->meetings);
        if (atomic_fetch_add(&p->arrived, 1) + 1 == p->threads) {
            atomic_store(&p->arrived, 0);
            atomic_store(&p->next, 0);
            atomic_store(&p->meetings, now + 1);
        } else
            for (int spins = 0; atomic_load_explicit(&p->meetings, memory_order_acquire) == now; spins++)
                if (spins < SPINS_AT_A_BARRIER) __builtin_ia32_pause();
                else sched_yield();
    } else
        atomic_store_explicit(&p->next, 0, memory_order_relaxed);
}

/* The first of `step` pieces that are now this thread's. */
static inline int64_t take(Pool *p, int64_t step) {
    if (p->threads > 1) return atomic_fetch_add(&p->next, step);
    long first = atomic_load_explicit(&p->next, memory_order_relaxed);
    atomic_store_explicit(&p->next, first + step, memory_order_relaxed);
    return first;
}

static void *serve(void *given) {
    Seat *seat = given;
    Pool *p = seat->pool;
    int number = seat->number, seen = seat->seen;
    free(seat);
    for (;;) {
        int spins = 0;
        while (atomic_load(&p->runs) == seen) {
            if (spins++ < SPINS_BETWEEN_RUNS) {
                __builtin_ia32_pause();
                continue;
            }
            pthread_mutex_lock(&p->mutex);
            atomic_fetch_add(&p->asleep, 1);
            while (atomic_load(&p->runs) == seen) pthread_cond_wait(&p->wake, &p->mutex);
            atomic_fetch_sub(&p->asleep, 1);
            pthread_mutex_unlock(&p->mutex);
        }
        seen++;
        if (atomic_load(&p->closing)) return 0;
        p->work(p->given, number);
        meet(p);
    }
}

static int pool_start(Pool *p, int threads) {
    memset(p, 0, sizeof *p);
    p->threads = 1, p->owner = getpid();
    pthread_mutex_init(&p->mutex, 0);
    pthread_cond_init(&p->wake, 0);
    int wanted = threads < MOST_THREADS ? threads : MOST_THREADS;
    for (int i = 1; i < wanted; i++) {
        Seat *seat = malloc(sizeof *seat);
        if (!seat) break;
        *seat = (Seat){p, i, 0};
        if (pthread_create(&p->others[i], 0, serve, seat)) {
            free(seat);
            break;
        }
        p->threads++;
    }
    return p->threads;
}

static void announce(Pool *p) {
    atomic_fetch_add(&p->runs, 1);
    if (atomic_load(&p->asleep)) {
        pthread_mutex_lock(&p->mutex);
        pthread_cond_broadcast(&p->wake);
        pthread_mutex_unlock(&p->mutex);
    }
}

/* All threads go through `work`; back when all are done. A process that was forked off starts threads of its own. */
static void pool_run(Pool *p, void (*work)(void *, int), void *given) {
    if (p->owner != getpid()) pool_start(p, p->threads);
    p->work = work, p->given = given;
    if (p->threads > 1) announce(p);
    work(given, 0);
    meet(p);
}

static void pool_stop(Pool *p) {
    if (p->owner != getpid()) return;
    atomic_store(&p->closing, 1);
    announce(p);
    for (int i = 1; i < p->threads; i++) pthread_join(p->others[i], 0);
}
