// Threads that acquire, resize, hand over and release blocks at random, by a seed, through every function of the
// allocator, and account for each block by the site that acquired it. With -DOPERATORS through C++'s new and delete too.
//
// usage: known_leaks THREADS STEPS SEED     phases: READY, go, <ledger> END, end
#include "ledger.h"

#include <dlfcn.h>
#include <malloc.h>
#include <new>
#include <pthread.h>

enum releaser { BY_FREE, BY_DELETE, BY_DELETE_ARRAY, BY_SIZED_DELETE, BY_ALIGNED_DELETE };

struct block {
    void *address;
    size_t size;
    struct site *owner; // null for blocks that are older than the tracer
    enum releaser releaser;
};

static bool accounting = false;
static long calls = 0;

static block kept(struct site *site, void *address, size_t size, enum releaser releaser = BY_FREE) {
    __atomic_fetch_add(&calls, 1L, __ATOMIC_RELAXED);
    if (address == NULL) return block{};
    memset(address, 0x5a, size);
    if (!accounting) return block{address, size, NULL, releaser};
    gain(site, size);
    return block{address, size, site, releaser};
}

static void forget(const block &old) {
    if (old.owner != NULL) lose(old.owner, old.size);
}

#define ACQUIRE(name, expression, size)                                                                           \
    SITE(site_##name, "heap")                                                                                     \
    static NOINLINE block site_##name(size_t n, dice *d) {                                                        \
        (void)d;                                                                                                  \
        void *p = expression;                                                                                     \
        return kept(&ledger_site_##name, p, size);                                                                \
    }

static size_t alignment(dice *d) { return (size_t)16 << roll(d, 6); }

ACQUIRE(malloc_a, malloc(n), n)
ACQUIRE(malloc_b, malloc(n), n)
ACQUIRE(calloc_a, calloc(n / 8, 8), n / 8 * 8)
ACQUIRE(calloc_b, calloc(3, n), n * 3)
ACQUIRE(realloc_null, realloc(NULL, n), n)
ACQUIRE(reallocarray_null, reallocarray(NULL, 2, n), n * 2)
ACQUIRE(memalign_a, memalign(alignment(d), n), n)
ACQUIRE(aligned_alloc_a, aligned_alloc(alignment(d), n), n)
ACQUIRE(valloc_a, valloc(n), n)
ACQUIRE(pvalloc_a, pvalloc(n), n)

SITE(site_posix_memalign_a, "heap")
static NOINLINE block site_posix_memalign_a(size_t n, dice *d) {
    void *p = NULL;
    CHECK(posix_memalign(&p, alignment(d), n) == 0);
    return kept(&ledger_site_posix_memalign_a, p, n);
}

#ifdef OPERATORS
// One level below the site: libstdc++'s operator new keeps no frame pointer, so that a walk over frame pointers from
// the malloc in it misses its direct caller.
#define OPERATOR(name, expression, releaser)                                                                      \
    static NOINLINE void *below_##name(size_t n) {                                                                \
        void *p = expression;                                                                                     \
        return p;                                                                                                 \
    }                                                                                                             \
    SITE(site_##name, "heap")                                                                                     \
    static NOINLINE block site_##name(size_t n, dice *) {                                                         \
        if (n == 0) n = 1; /* as libstdc++'s operators ask malloc for */                                          \
        void *p = below_##name(n);                                                                                \
        return kept(&ledger_site_##name, p, n, releaser);                                                         \
    }
OPERATOR(new, ::operator new(n), BY_DELETE)
OPERATOR(new_sized, ::operator new(n), BY_SIZED_DELETE)
OPERATOR(new_nothrow, ::operator new(n, std::nothrow), BY_DELETE)
OPERATOR(new_array, ::operator new[](n), BY_DELETE_ARRAY)
OPERATOR(new_array_nothrow, ::operator new[](n, std::nothrow), BY_DELETE_ARRAY)
#ifdef ALIGNED_OPERATORS
OPERATOR(new_aligned, ::operator new(n, std::align_val_t(64)), BY_ALIGNED_DELETE)
OPERATOR(new_aligned_nothrow, ::operator new(n, std::align_val_t(64), std::nothrow), BY_ALIGNED_DELETE)
#endif
#endif

static block (*acquirers[32])(size_t, dice *);
static size_t acquirer_count = 0;

// Adds `acquire` if `function` comes from the object that malloc comes from: jemalloc, say, defines no pvalloc, and a
// block of glibc's must not go to jemalloc's free.
static void offer(void *function, block (*acquire)(size_t, dice *)) {
    Dl_info ours, its;
    CHECK(dladdr((void *)malloc, &ours) && dladdr(function, &its));
    if (ours.dli_fbase == its.dli_fbase) acquirers[acquirer_count++] = acquire;
}

static void offer_all() {
    offer((void *)malloc, site_malloc_a);
    offer((void *)malloc, site_malloc_b);
    offer((void *)calloc, site_calloc_a);
    offer((void *)calloc, site_calloc_b);
    offer((void *)realloc, site_realloc_null);
    offer((void *)realloc, site_reallocarray_null); // glibc's calls the realloc that is first in line
    offer((void *)memalign, site_memalign_a);
    offer((void *)aligned_alloc, site_aligned_alloc_a);
    offer((void *)posix_memalign, site_posix_memalign_a);
    offer((void *)valloc, site_valloc_a);
    offer((void *)pvalloc, site_pvalloc_a);
#ifdef OPERATORS
    acquirers[acquirer_count++] = site_new;
    acquirers[acquirer_count++] = site_new_sized;
    acquirers[acquirer_count++] = site_new_nothrow;
    acquirers[acquirer_count++] = site_new_array;
    acquirers[acquirer_count++] = site_new_array_nothrow;
#ifdef ALIGNED_OPERATORS
    acquirers[acquirer_count++] = site_new_aligned;
    acquirers[acquirer_count++] = site_new_aligned_nothrow;
#endif
#endif
}

SITE(site_realloc_a, "heap")
static NOINLINE block site_realloc_a(block old, size_t n) {
    void *p = realloc(old.address, n);
    CHECK(p != NULL);
    forget(old);
    return kept(&ledger_site_realloc_a, p, n);
}

SITE(site_realloc_b, "heap")
static NOINLINE block site_realloc_b(block old, size_t n) {
    void *p = realloc(old.address, n);
    CHECK(p != NULL);
    forget(old);
    return kept(&ledger_site_realloc_b, p, n);
}

SITE(site_reallocarray_a, "heap")
static NOINLINE block site_reallocarray_a(block old, size_t n) {
    void *p = reallocarray(old.address, n / 4 + 1, 4);
    CHECK(p != NULL);
    forget(old);
    return kept(&ledger_site_reallocarray_a, p, (n / 4 + 1) * 4);
}

// Some allocators release and give null, others give a block of no bytes.
SITE(site_realloc_zero, "heap")
static NOINLINE block site_realloc_zero(block old) {
    volatile size_t zero = 0;
    void *p = realloc(old.address, zero);
    forget(old);
    return kept(&ledger_site_realloc_zero, p, 0);
}

// Calls that fail, each with what a tracer could take for a block.
static void fail(block *old, dice *d) {
    void *out = old->address;
    size_t n = impossible_size;
    switch (roll(d, 9)) {
    case 0: CHECK(malloc(n) == NULL); break;
    case 1: CHECK(calloc(n, 4) == NULL); break;
    case 2: CHECK(realloc(NULL, n) == NULL); break;
    case 3: CHECK(old->releaser != BY_FREE || !old->address || realloc(old->address, n) == NULL); break;
    case 4: CHECK(old->releaser != BY_FREE || !old->address || reallocarray(old->address, n, 4) == NULL); break;
    case 5: CHECK(posix_memalign(&out, 3, 64) == EINVAL); break;
    case 6: CHECK(posix_memalign(&out, 64, n) == ENOMEM); break;
    case 7: CHECK(aligned_alloc(64, n) == NULL); break;
    case 8: free(NULL); break;
    }
    __atomic_fetch_add(&calls, 1L, __ATOMIC_RELAXED);
}

static void release(block *old) {
    switch (old->releaser) {
    case BY_FREE: free(old->address); break;
    case BY_DELETE: ::operator delete(old->address); break;
    case BY_DELETE_ARRAY: ::operator delete[](old->address); break;
    case BY_SIZED_DELETE: ::operator delete(old->address, old->size); break;
    case BY_ALIGNED_DELETE: ::operator delete(old->address, std::align_val_t(64)); break;
    }
    __atomic_fetch_add(&calls, 1L, __ATOMIC_RELAXED);
    forget(*old);
    *old = block{};
}

static NOINLINE void resize(block *old, size_t n, dice *d) {
    switch (roll(d, 8)) {
    case 0: *old = site_realloc_zero(*old); break;
    case 1: *old = site_reallocarray_a(*old, n); break;
    case 2:
    case 3: *old = site_realloc_b(*old, n ? n : 1); break;
    default: *old = site_realloc_a(*old, n ? n : 1); break;
    }
}

// Where threads leave blocks for each other.
static const size_t EXCHANGE = 256;
static block exchange[EXCHANGE];
static pthread_mutex_t exchange_lock = PTHREAD_MUTEX_INITIALIZER;

static void hand_over(block *mine, dice *d) {
    pthread_mutex_lock(&exchange_lock);
    block *theirs = &exchange[roll(d, EXCHANGE)];
    block moved = *theirs;
    *theirs = *mine;
    *mine = moved;
    pthread_mutex_unlock(&exchange_lock);
}

static size_t some_size(dice *d) {
    uint64_t kind = roll(d, 4096);
    if (kind == 0) return 140000 + roll(d, 200000); // malloc maps these
    if (kind < 64) return roll(d, 20000);
    return roll(d, 600);
}

static const size_t SLOTS = 2048;
static const size_t MOST_THREADS = 16;
static block slots[MOST_THREADS][SLOTS];
static long steps = 0;
static uint64_t seed = 1;
static pthread_barrier_t start, finish, leave;

static void step(block *mine, dice *d) {
    block *slot = &mine[roll(d, SLOTS)];
    if (roll(d, 64) == 0) fail(slot, d);
    if (roll(d, 8) == 0) hand_over(slot, d);
    if (slot->address == NULL) {
        block (*acquire)(size_t, dice *) = acquirers[roll(d, acquirer_count)];
        *slot = acquire(some_size(d), d);
    } else if (slot->releaser == BY_FREE && roll(d, 3) == 0) {
        resize(slot, some_size(d), d);
    } else {
        release(slot);
    }
}

static void *work(void *argument) {
    size_t index = (size_t)argument;
    dice d = {seed + index * 0x9e3779b97f4a7c15ull};
    for (int i = 0; i < 3000; i++) step(slots[index], &d); // blocks older than the tracer
    pthread_barrier_wait(&start);
    pthread_barrier_wait(&start);
    for (long i = 0; i < steps; i++) step(slots[index], &d);
    pthread_barrier_wait(&finish);
    pthread_barrier_wait(&leave);
    return NULL;
}

int main(int argc, char **argv) {
    CHECK(argc == 4);
    size_t threads = strtoul(argv[1], NULL, 10);
    steps = strtol(argv[2], NULL, 10);
    seed = strtoul(argv[3], NULL, 10);
    CHECK(threads > 0 && threads <= MOST_THREADS);
    offer_all();
    pthread_barrier_init(&start, NULL, (unsigned)threads + 1);
    pthread_barrier_init(&finish, NULL, (unsigned)threads + 1);
    pthread_barrier_init(&leave, NULL, (unsigned)threads + 1);
    pthread_t ids[MOST_THREADS];
    for (size_t i = 0; i < threads; i++) CHECK(pthread_create(&ids[i], NULL, work, (void *)i) == 0);
    pthread_barrier_wait(&start);
    calls = 0;
    accounting = true;
    say("READY");
    hear();
    pthread_barrier_wait(&start);
    pthread_barrier_wait(&finish);
    say("{\"calls\":%ld}", calls);
    say_ledger();
    hear();
    pthread_barrier_wait(&leave);
    for (size_t i = 0; i < threads; i++) pthread_join(ids[i], NULL);
    return 0;
}
