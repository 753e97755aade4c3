// Blocks of known sizes, addresses and order, a batch for each letter that is heard.
//
// usage: sizes [seccomp | map FILE]    phases: READY, then any of
//   s m l k   some small (16), medium (1000), large (100000), exact (1024) blocks
//   p         acquires three blocks, releases one, and tells their addresses
//   a         100000 pairs: one block of site_even, one of site_odd
//   o y       an old batch, a young batch
//   u         unmaps a page that was mapped before READY
//   g         more for site_growing
//   q         the ledger, then waits;  x: ends at once
#include "ledger.h"

#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#define MALLOC(name)                                                                                              \
    SITE(site_##name, "heap")                                                                                     \
    static NOINLINE void *site_##name(size_t n) { return noted(&ledger_site_##name, malloc(n), n); }

MALLOC(small)
MALLOC(medium)
MALLOC(large)
MALLOC(exact)
MALLOC(even)
MALLOC(odd)
MALLOC(old)
MALLOC(young)
MALLOC(growing)
MALLOC(told)

static void batch(void *(*site)(size_t), int count, size_t size) {
    for (int i = 0; i < count; i++) CHECK(site(size));
}

static void tell(void) {
    void *kept = site_told(4321), *released = site_told(1234), *kept_too = site_told(77);
    CHECK(kept && released && kept_too);
    free(released);
    lose(&ledger_site_told, 1234);
    say("{\"address\":\"%p\",\"size\":4321,\"released\":false}", kept);
    say("{\"address\":\"%p\",\"size\":1234,\"released\":true}", released);
    say("{\"address\":\"%p\",\"size\":77,\"released\":false}", kept_too);
    say("TOLD");
}

// A filter that allows everything.
static void allow_all(void) {
    struct sock_filter allow[] = {BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
    struct sock_fprog program = {1, allow};
    CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
    CHECK(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0);
}

static void map(const char *path) {
    int file = open(path, O_RDONLY);
    CHECK(file >= 0 && mmap(NULL, 1, PROT_READ | PROT_EXEC, MAP_PRIVATE, file, 0) != MAP_FAILED);
}

enum { PAGES = 16, PAGE = 4096 };

static char *pages;

static void map_pages(void) {
    // By no function that is probed.
    pages = (char *)syscall(SYS_mmap, NULL, PAGES * PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(pages != MAP_FAILED);
}

static void unmap_page(void) {
    static int next;
    CHECK(next < PAGES && munmap(pages + PAGE * next++, PAGE) == 0);
    say("UNMAPPED");
}

int main(int argc, char **argv) {
    if (argc > 1 && !strcmp(argv[1], "seccomp")) allow_all();
    if (argc > 2 && !strcmp(argv[1], "map")) map(argv[2]);
    map_pages();
    say("READY");
    for (;;) {
        switch (hear()) {
        case 's': batch(site_small, 100, 16); break;
        case 'm': batch(site_medium, 50, 1000); break;
        case 'l': batch(site_large, 3, 100000); break;
        case 'k': batch(site_exact, 2, 1024); break;
        case 'o': batch(site_old, 5, 64); break;
        case 'y': batch(site_young, 7, 64); break;
        case 'g': batch(site_growing, 10, 300); break;
        case 'p': tell(); break;
        case 'a':
            for (int i = 0; i < 100000; i++) CHECK(site_even(64) && site_odd(64));
            break;
        case 'u': unmap_page(); break;
        case 'q': say_ledger(); break;
        case 'x': return 0;
        default: die("no such phase");
        }
    }
}
