/* Threads that help with a run's work.
 *
 * A run is a row of phases, and every thread walks through all of them. A phase's work is handed out in pieces; the thread
 * that called opens one phase after another, each when no piece of the last is being worked on any more. It never waits for
 * a helper that holds no piece: one that the system did not let run finds the phases that it missed empty, and joins
 * where the caller is. So on a busy machine a run takes about as long as on one thread, not longer.
 */
#pragma once
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>

#define SPINS_IN_A_RUN 2048
#define SPINS_BETWEEN_RUNS 16384
#define MOST_THREADS 64
#define NOTHING (INT64_MAX / 2)
#define PIECES 24 /* bits that count pieces; those above count phases */
#define NEXT ((UINT64_C(1) << PIECES) - 1)

typedef struct {
    _Alignas(64) atomic_int flag;
} Working;

typedef struct {
    int threads;
    pid_t owner;
    pthread_t others[MOST_THREADS];
    Working working[MOST_THREADS];           /* whether a helper may hold a piece */
    _Alignas(64) atomic_uint_fast64_t state; /* the open phase and the next piece of it */
    _Alignas(64) atomic_uint_fast64_t first; /* phase of the latest run */
    atomic_int runs, asleep, closing;
    pthread_mutex_t mutex;
    pthread_cond_t wake;
    void (*work)(void *, int);
    void *given;
} Pool;

typedef struct {
    Pool *pool;
    int number;
} Seat;

static _Thread_local int seat;      /* 0: the caller */
static _Thread_local uint64_t here; /* the phase that a helper is in */

/* The first of `step` pieces of this phase that are now this thread's; beyond all pieces when none are left. */
static inline int64_t take(Pool *p, int64_t step) {
    if (p->threads == 1) {
        uint64_t now = atomic_load_explicit(&p->state, memory_order_relaxed);
        atomic_store_explicit(&p->state, now + step, memory_order_relaxed);
        return now & NEXT;
    }
    if (!seat) return atomic_fetch_add(&p->state, step) & NEXT;
    atomic_store(&p->working[seat].flag, 1);
    uint_fast64_t now = atomic_load(&p->state);
    do {
        if (now >> PIECES != here) return NOTHING;
    } while (!atomic_compare_exchange_weak(&p->state, &now, now + step));
    return now & NEXT;
}

static inline void rest(int spins) {
    if (spins < SPINS_IN_A_RUN) __builtin_ia32_pause();
    else sched_yield();
}

/* The end of a phase: what comes next may build on all that was done before. */
static inline void meet(Pool *p) {
    if (seat) {
        atomic_store(&p->working[seat].flag, 0);
        here++;
        for (int spins = 0; atomic_load_explicit(&p->state, memory_order_acquire) >> PIECES < here; spins++) rest(spins);
        return;
    }
    for (int i = 1; i < p->threads; i++)
        for (int spins = 0; atomic_load(&p->working[i].flag); spins++) rest(spins);
    atomic_store(&p->state, ((atomic_load(&p->state) >> PIECES) + 1) << PIECES);
}

static void *serve(void *given) {
    Seat *mine = given;
    Pool *p = mine->pool;
    int seen = 0;
    seat = mine->number;
    free(mine);
    for (;;) {
        for (int spins = 0; atomic_load(&p->runs) == seen; spins++) {
            if (spins < SPINS_BETWEEN_RUNS) {
                __builtin_ia32_pause();
                continue;
            }
            pthread_mutex_lock(&p->mutex);
            atomic_fetch_add(&p->asleep, 1);
            while (atomic_load(&p->runs) == seen) pthread_cond_wait(&p->wake, &p->mutex);
            atomic_fetch_sub(&p->asleep, 1);
            pthread_mutex_unlock(&p->mutex);
        }
        seen = atomic_load(&p->runs);
        if (atomic_load(&p->closing)) return 0;
        here = atomic_load(&p->first);
        p->work(p->given, seat);
        atomic_store(&p->working[seat].flag, 0);
    }
}

static void pool_start(Pool *p, int threads) {
    memset(p, 0, sizeof *p);
    p->threads = 1, p->owner = getpid();
    pthread_mutex_init(&p->mutex, 0);
    pthread_cond_init(&p->wake, 0);
    int wanted = threads < MOST_THREADS ? threads : MOST_THREADS;
    for (int i = 1; i < wanted; i++) {
        Seat *other = malloc(sizeof *other);
        if (!other) break;
        *other = (Seat){p, i};
        if (pthread_create(&p->others[i], 0, serve, other)) {
            free(other);
            break;
        }
        p->threads++;
    }
}

static void announce(Pool *p) {
    atomic_fetch_add(&p->runs, 1);
    if (atomic_load(&p->asleep)) {
        pthread_mutex_lock(&p->mutex);
        pthread_cond_broadcast(&p->wake);
        pthread_mutex_unlock(&p->mutex);
    }
}

/* All threads go through `work`; back when it is done. What is `given` is always the same place, and may still be looked
 * at afterwards. A process that was forked off starts threads of its own. */
static void pool_run(Pool *p, void (*work)(void *, int), void *given) {
    if (p->owner != getpid()) pool_start(p, p->threads);
    seat = 0;
    p->work = work, p->given = given;
    meet(p); /* a phase that nobody else is in yet */
    atomic_store(&p->first, atomic_load(&p->state) >> PIECES);
    if (p->threads > 1) announce(p);
    work(given, 0);
    meet(p);
    meet(p); /* helpers that are late are behind any later run's first phase */
}

static void pool_stop(Pool *p) {
    if (p->owner != getpid()) return;
    atomic_store(&p->closing, 1);
    announce(p);
    for (int i = 1; i < p->threads; i++) pthread_join(p->others[i], 0);
}
