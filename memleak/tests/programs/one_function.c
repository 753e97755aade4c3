// Acquires through one function, releases some of it, tells its ledger and ends at once.
//
// usage: one_function FUNCTION [wait]   phases: [READY,] <ledger> END
#include "ledger.h"

#include <malloc.h>
#include <sys/mman.h>

SITE(site_malloc, "heap")
static NOINLINE void *site_malloc(size_t n) { return noted(&ledger_site_malloc, malloc(n), n); }

SITE(site_calloc, "heap")
static NOINLINE void *site_calloc(size_t n, size_t m) { return noted(&ledger_site_calloc, calloc(n, m), n * m); }

SITE(site_realloc, "heap")
static NOINLINE void *site_realloc(void *old, size_t n) { return noted(&ledger_site_realloc, realloc(old, n), n); }

SITE(site_reallocarray, "heap")
static NOINLINE void *site_reallocarray(void *old, size_t n, size_t m) {
    return noted(&ledger_site_reallocarray, reallocarray(old, n, m), n * m);
}

SITE(site_posix_memalign, "heap")
static NOINLINE void *site_posix_memalign(size_t alignment, size_t n) {
    void *p = (void *)0x1000;
    int failed = posix_memalign(&p, alignment, n);
    return noted(&ledger_site_posix_memalign, failed ? NULL : p, n);
}

SITE(site_aligned_alloc, "heap")
static NOINLINE void *site_aligned_alloc(size_t alignment, size_t n) {
    return noted(&ledger_site_aligned_alloc, aligned_alloc(alignment, n), n);
}

SITE(site_memalign, "heap")
static NOINLINE void *site_memalign(size_t alignment, size_t n) {
    return noted(&ledger_site_memalign, memalign(alignment, n), n);
}

SITE(site_valloc, "heap")
static NOINLINE void *site_valloc(size_t n) { return noted(&ledger_site_valloc, valloc(n), n); }

#ifdef __GLIBC__
SITE(site_pvalloc, "heap")
static NOINLINE void *site_pvalloc(size_t n) { return noted(&ledger_site_pvalloc, pvalloc(n), n); }

static void do_pvalloc(void) {
    CHECK(site_pvalloc(1) && site_pvalloc(5000));
    void *p = site_pvalloc(4096);
    free(p);
    lose(&ledger_site_pvalloc, 4096);
    CHECK(site_pvalloc(impossible_size) == NULL);
}
#endif

static void do_malloc(void) {
    CHECK(site_malloc(100) && site_malloc(0) && site_malloc(1 << 20));
    void *p = site_malloc(200);
    CHECK(p);
    free(p);
    lose(&ledger_site_malloc, 200);
    CHECK(site_malloc(impossible_size) == NULL);
}

static void do_calloc(void) {
    CHECK(site_calloc(10, 33) && site_calloc(1, 1) && site_calloc(1000, 1000));
    void *p = site_calloc(7, 7);
    CHECK(p);
    free(p);
    lose(&ledger_site_calloc, 49);
    CHECK(site_calloc(impossible_size, 2) == NULL);
}

static void do_realloc(void) {
    void *p = site_malloc(10), *q = site_malloc(20), *r = site_malloc(30), *s = site_malloc(40);
    CHECK(p && q && r && s);
    CHECK(site_realloc(p, 100000)); // moves, from malloc's site to realloc's
    lose(&ledger_site_malloc, 10);
    CHECK(site_realloc(q, 19)); // stays where it is, and is realloc's now
    lose(&ledger_site_malloc, 20);
    CHECK(site_realloc(r, impossible_size) == NULL); // stays malloc's
    CHECK(site_realloc(NULL, 50));
    volatile size_t zero = 0;
    site_realloc(s, zero); // released; musl gives a new block of no bytes
    lose(&ledger_site_malloc, 40);
}

static void do_reallocarray(void) {
    void *p = site_malloc(10), *q = site_malloc(20);
    CHECK(p && q);
    CHECK(site_reallocarray(p, 11, 12));
    lose(&ledger_site_malloc, 10);
    CHECK(site_reallocarray(q, impossible_size, 2) == NULL);
    void *r = site_reallocarray(NULL, 3, 3);
    CHECK(r);
    free(r);
    lose(&ledger_site_reallocarray, 9);
}

static void do_posix_memalign(void) {
    CHECK(site_posix_memalign(64, 100) && site_posix_memalign(4096, 1));
    void *p = site_posix_memalign(128, 300);
    CHECK(p);
    free(p);
    lose(&ledger_site_posix_memalign, 300);
    CHECK(site_posix_memalign(64, impossible_size) == NULL);
    CHECK(site_posix_memalign(3, 8) == NULL);
}

static void do_aligned_alloc(void) {
    CHECK(site_aligned_alloc(64, 128) && site_aligned_alloc(16, 48));
    void *p = site_aligned_alloc(1024, 2048);
    CHECK(p);
    free(p);
    lose(&ledger_site_aligned_alloc, 2048);
    CHECK(site_aligned_alloc(64, impossible_size) == NULL);
}

static void do_memalign(void) {
    CHECK(site_memalign(64, 130) && site_memalign(8, 31));
    void *p = site_memalign(256, 77);
    CHECK(p);
    free(p);
    lose(&ledger_site_memalign, 77);
    CHECK(site_memalign(64, impossible_size) == NULL);
}

static void do_valloc(void) {
    CHECK(site_valloc(100) && site_valloc(10000));
    void *p = site_valloc(11);
    CHECK(p);
    free(p);
    lose(&ledger_site_valloc, 11);
    CHECK(site_valloc(impossible_size) == NULL);
}

static void do_free(void) {
    for (int i = 0; i < 100; i++) {
        void *p = site_malloc(24);
        CHECK(p);
        if (i % 3 == 0) continue;
        free(p);
        lose(&ledger_site_malloc, 24);
    }
    free(NULL);
}

SITE(site_mmap, "mmap")
static NOINLINE char *site_mmap(size_t n) {
    void *p = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) return NULL;
    return (char *)noted(&ledger_site_mmap, p, n);
}

SITE(site_mremap, "mmap")
static NOINLINE char *site_mremap(void *old, size_t from, size_t to) {
    void *p = mremap(old, from, to, MREMAP_MAYMOVE);
    if (p == MAP_FAILED) return NULL;
    return (char *)noted(&ledger_site_mremap, p, to);
}

static void do_mmap(void) {
    CHECK(site_mmap(0x3000) && site_mmap(0x100000));
    CHECK(site_mmap(0) == NULL);
    CHECK(site_mmap(impossible_size) == NULL);
}

static void do_munmap(void) {
    char *p = site_mmap(0x3000);
    CHECK(p && site_mmap(0x5000));
    CHECK(munmap(p + 1, 0x1000) == -1); // not a page's address
    CHECK(munmap(p, 0x3000) == 0);
    lose(&ledger_site_mmap, 0x3000);
}

static void do_mremap(void) {
    char *p = site_mmap(0x3000), *q = site_mmap(0x4000);
    CHECK(p && q);
    CHECK(site_mremap(p, 0x3000, 0x40000));
    lose(&ledger_site_mmap, 0x3000);
    CHECK(site_mremap(q, 0x4000, impossible_size) == NULL);
}

static const struct {
    const char *name;
    void (*run)(void);
} functions[] = {
    {"malloc", do_malloc},
    {"calloc", do_calloc},
    {"realloc", do_realloc},
    {"reallocarray", do_reallocarray},
    {"posix_memalign", do_posix_memalign},
    {"aligned_alloc", do_aligned_alloc},
    {"memalign", do_memalign},
    {"valloc", do_valloc},
#ifdef __GLIBC__
    {"pvalloc", do_pvalloc},
#endif
    {"free", do_free},
    {"mmap", do_mmap},
    {"munmap", do_munmap},
    {"mremap", do_mremap},
};

int main(int argc, char **argv) {
    int waits = argc == 3 && !strcmp(argv[2], "wait");
    CHECK(argc == 2 || waits);
    if (waits) {
        say("READY");
        hear();
    }
    for (size_t i = 0; i < sizeof functions / sizeof *functions; i++) {
        if (strcmp(functions[i].name, argv[1]) != 0) continue;
        functions[i].run();
        say_ledger();
        if (waits) hear();
        return 0;
    }
    die("no such function");
}
