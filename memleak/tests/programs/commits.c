// Reserves address space once and commits pages of it by MAP_FIXED, again and again, as runtimes do (JVM, V8, Go): every
// second page of it, so that no two of them touch.
//
// usage: commits COMMITS    phases: READY, go, (one commit) <ledger> END, go, (all others) <ledger> END, end
#include "ledger.h"

#include <sys/mman.h>

#define PAGE 4096ul
#define PIECES 1000l

SITE(site_reserve, "mmap")
static NOINLINE char *site_reserve(size_t bytes) {
    char *p = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(p != MAP_FAILED);
    ledger_site_reserve.bytes += (long)bytes;
    return p;
}

SITE(site_commit, "mmap")
static NOINLINE void site_commit(char *at) {
    void *p = mmap(at, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    CHECK(p == at);
}

static void commit(char *reserved, long from, long to) {
    for (long i = from; i < to; i++) site_commit(reserved + i % PIECES * 2 * (long)PAGE);
    long new_pieces = (to < PIECES ? to : PIECES) - (from < PIECES ? from : PIECES);
    ledger_site_commit.bytes += new_pieces * (long)PAGE;
    ledger_site_commit.count += new_pieces;
    ledger_site_reserve.bytes -= new_pieces * (long)PAGE;
    say_ledger();
}

int main(int argc, char **argv) {
    CHECK(argc == 2);
    say("READY");
    hear();
    char *reserved = site_reserve(64ul << 30);
    ledger_site_reserve.count = -1; // one block or many: the spec does not say
    commit(reserved, 0, 1);
    hear();
    commit(reserved, 1, atol(argv[1]));
    hear();
    return 0;
}
