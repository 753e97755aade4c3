// Acquires and releases by malloc and its kin, by C++'s operators and, with JEMALLOC, MIMALLOC or PREFIXED, by functions
// that only one allocator has. How it is linked is the test's business.
//
// usage: allocator_forms   phases: READY, go, <ledger> END, end
#include "ledger.h"

#include <new>
#include <vector>

SITE(site_malloc, "heap")
static NOINLINE void *site_malloc(size_t n) { return noted(&ledger_site_malloc, malloc(n), n); }

SITE(site_calloc, "heap")
static NOINLINE void *site_calloc(size_t n, size_t m) { return noted(&ledger_site_calloc, calloc(n, m), n * m); }

SITE(site_strdup, "heap")
static NOINLINE void *site_strdup(const char *s) { return noted(&ledger_site_strdup, strdup(s), strlen(s) + 1); }

SITE(site_new, "heap")
static NOINLINE void *site_new(size_t n) { return noted(&ledger_site_new, new char[n], n); }

static void *volatile sink;

#ifdef JEMALLOC
#include <jemalloc/jemalloc.h>
SITE(site_mallocx, "heap")
static NOINLINE void *site_mallocx(size_t n) { return noted(&ledger_site_mallocx, mallocx(n, 0), n); }
static NOINLINE void own_functions() {
    sink = site_mallocx(70);
    void *p = mallocx(30, MALLOCX_ALIGN(64));
    sink = p = rallocx(p, 300, 0);
    sdallocx(p, 300, 0);
}
#elif defined MIMALLOC
#include <mimalloc.h>
SITE(site_aligned, "heap")
static NOINLINE void *site_aligned(size_t n) { return noted(&ledger_site_aligned, mi_zalloc_aligned(n, 64), n); }
static NOINLINE void own_functions() {
    sink = site_aligned(70);
    void *p = mi_new(30);
    sink = p = mi_rezalloc(p, 300);
    mi_free_size(p, 300);
}
#elif defined PREFIXED
// Of a prefixed allocator the linker has kept two functions.
extern "C" {
static char pool[1 << 16];
static size_t used;
NOINLINE void *je_malloc(size_t n) {
    char *p = pool + used;
    used += (n + 15) & ~size_t{15};
    return p;
}
#ifndef NEVER_FREES
NOINLINE void je_sdallocx(void *p, size_t, int) { asm volatile("" ::"r"(p) : "memory"); }
#endif
}
SITE(site_prefixed, "heap")
static NOINLINE void *site_prefixed(size_t n) { return noted(&ledger_site_prefixed, je_malloc(n), n); }
static NOINLINE void own_functions() {
    sink = site_prefixed(100);
    void *p = je_malloc(7);
    sink = p;
#ifndef NEVER_FREES
    je_sdallocx(p, 7, 0);
#endif
}
#else
static void own_functions() {}
#endif

int main() {
    sink = malloc(1);
    say("READY");
    hear();
    for (int i = 0; i < 10; i++) {
        sink = site_malloc(100);
        sink = site_calloc(3, 100);
        sink = site_strdup("abcdefg");
        sink = site_new(200);
        void *p = malloc(10);
        sink = p;
        free(p);
        int *q = new int(3);
        sink = q;
        delete q;
        std::vector<int> v(1000);
        sink = v.data();
        own_functions();
    }
    say_ledger();
    hear();
}
