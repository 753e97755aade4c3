// Maps memory without the C library's functions: by raw system calls and the break. Blocks of malloc lie in ranges that
// it maps for itself.
//
// phases: READY, go, <ledger> END, end
#include "ledger.h"

#include <sys/mman.h>
#include <sys/syscall.h>

enum { PAGE = 4096 };

SITE(site_raw, "mmap")
static NOINLINE char *site_raw(size_t bytes) {
    long address = syscall(SYS_mmap, NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(address > 0);
    return noted(&ledger_site_raw, (void *)address, bytes);
}

SITE(site_failing, "mmap")
static NOINLINE void site_failing(void) {
    CHECK(syscall(SYS_mmap, NULL, 0, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == -1);
    CHECK(syscall(SYS_mmap, NULL, PAGE, PROT_READ, MAP_PRIVATE, -1, 0) == -1);
}

SITE(site_break, "mmap")
static NOINLINE char *site_break(size_t bytes) {
    return noted(&ledger_site_break, sbrk((intptr_t)bytes), bytes);
}

SITE(site_block, "heap")
static NOINLINE void *site_block(size_t bytes) { return noted(&ledger_site_block, malloc(bytes), bytes); }

int main(void) {
    say("READY");
    hear();
    char *first = site_raw(10 * PAGE), *second = site_raw(20 * PAGE);
    CHECK(site_raw(5 * PAGE) != NULL);
    CHECK(syscall(SYS_munmap, first, 10 * PAGE) == 0);
    lose(&ledger_site_raw, 10 * PAGE);
    CHECK(syscall(SYS_munmap, second + 15 * PAGE, 5 * PAGE) == 0); // its end
    ledger_site_raw.bytes -= 5 * PAGE;
    site_failing();
    for (int i = 0; i < 4; i++) CHECK(site_block(1 << 20) != NULL); // malloc maps them for itself
    free(site_block(1 << 21));
    lose(&ledger_site_block, 1 << 21);
    sbrk(PAGE - (intptr_t)sbrk(0) % PAGE); // a whole number of pages from here on
    site_break(100 * PAGE);
    sbrk(-40 * PAGE);
    ledger_site_break.bytes -= 40 * PAGE;
    site_break(7 * PAGE);
    say_ledger();
    hear();
}
