// Touches pages of memory, each site so many as its ledger says, and gives some of them back. No allocator has a part
// in it: ranges are mapped by system calls, or are of the break. One is moved by the C library's mremap.
//
// phases: READY, go, MOVED, go, <ledger> END, end
#include "ledger.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>

enum { PAGE = 4096 };

static char *map(size_t pages) {
    long address = syscall(SYS_mmap, NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(address > 0);
    return (char *)address;
}

// Once a page, from this function's own frame.
#define TOUCH(site, address, pages)                                                                               \
    for (size_t at = 0; at < (size_t)(pages); at++) {                                                             \
        ((volatile char *)(address))[at * PAGE] = 1;                                                              \
        gain(&ledger_##site, PAGE);                                                                               \
    }

SITE(site_whole, "growth")
static NOINLINE void site_whole(void) {
    char *range = map(500);
    TOUCH(site_whole, range, 500)
}

SITE(site_half, "growth")
static NOINLINE void site_half(void) {
    char *range = map(400);
    TOUCH(site_half, range, 200)
    for (int at = 200; at < 400; at++) CHECK(((volatile char *)range)[at * PAGE] == 0); // of zeros: nobody's
}

// A range that is unmapped in its middle, and one of which the pages are given back.
SITE(site_unmapped, "growth")
static NOINLINE void site_unmapped(void) {
    char *range = map(300);
    TOUCH(site_unmapped, range, 300)
    CHECK(munmap(range + 100 * PAGE, 50 * PAGE) == 0);
    CHECK(madvise(range + 200 * PAGE, 30 * PAGE, MADV_DONTNEED) == 0);
    for (int at = 0; at < 80; at++) lose(&ledger_site_unmapped, PAGE);
}

SITE(site_gone, "growth")
static NOINLINE void site_gone(void) {
    for (int round = 0; round < 20; round++) {
        char *range = map(100);
        TOUCH(site_gone, range, 100)
        CHECK(munmap(range, 100 * PAGE) == 0);
        for (int at = 0; at < 100; at++) lose(&ledger_site_gone, PAGE);
    }
}

// The kernel touches the pages, in a system call.
SITE(site_read, "growth")
static NOINLINE void site_read(void) {
    char *range = map(150);
    int zeros = open("/dev/zero", O_RDONLY);
    CHECK(zeros >= 0);
    CHECK(syscall(SYS_read, zeros, range, 150 * PAGE) == 150 * PAGE);
    for (int at = 0; at < 150; at++) gain(&ledger_site_read, PAGE);
    close(zeros);
}

SITE(site_break, "growth")
static NOINLINE void site_break(void) {
    char *start = sbrk(0);
    start += PAGE - (uintptr_t)start % PAGE;
    CHECK(brk(start + 250 * PAGE) == 0);
    TOUCH(site_break, start, 250)
    CHECK(brk(start + 100 * PAGE) == 0);
    for (int at = 0; at < 150; at++) lose(&ledger_site_break, PAGE);
}

// A range that is moved, and another one that is touched where it has been.
SITE(site_moved, "growth")
SITE(site_where_it_was, "growth")
static NOINLINE void site_where_it_was(char *place) {
    void *range = mmap(place, 120 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    CHECK(range == place);
    TOUCH(site_where_it_was, place, 60)
}
static NOINLINE void site_moved(void) {
    char *range = map(120), *room = map(1000);
    TOUCH(site_moved, range, 120)
    CHECK(munmap(room, 1000 * PAGE) == 0);
    CHECK(mremap(range, 120 * PAGE, 300 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, room) == room);
    TOUCH(site_moved, room + 120 * PAGE, 100)
    say("MOVED");
    hear();
    site_where_it_was(range);
}

// Huge pages, if the machine gives some: two of which each second small page is touched.
SITE(site_huge, "growth")
static NOINLINE void site_huge(void) {
    const size_t huge = 512;
    char *range = map(3 * huge);
    range += (huge * PAGE - (uintptr_t)range % (huge * PAGE)) % (huge * PAGE);
    madvise(range, 2 * huge * PAGE, MADV_HUGEPAGE);
    for (size_t at = 0; at < 2 * huge; at += 2) ((volatile char *)range)[at * PAGE] = 1;
    unsigned char resident[1024];
    CHECK(mincore(range, 2 * huge * PAGE, resident) == 0);
    for (size_t at = 0; at < 2 * huge; at++)
        if (resident[at] & 1) gain(&ledger_site_huge, PAGE);
}

int main(void) {
    say("READY");
    hear();
    site_whole();
    site_half();
    site_unmapped();
    site_gone();
    site_read();
    site_break();
    site_moved();
    site_huge();
    say_ledger();
    hear();
}
