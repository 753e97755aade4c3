// Maps, unmaps, remaps and replaces address ranges, whole and in part, and accounts for every page by the site that
// mapped it: the truth is an array with one owner for each page of an arena, not a list of ranges.
//
// usage: mappings        phases: READY, go, <ledger> END, (random steps) go, <ledger> END, end
#include "ledger.h"

#include <sys/mman.h>

#define PAGE 4096ul
#define ARENA_PAGES 16384ul

static char *arena;
static struct site *owners[ARENA_PAGES];

// The pages of the arena from `first` on now belong to `site`, or to nobody.
static void own(char *address, size_t pages, struct site *site) {
    size_t first = (size_t)(address - arena) / PAGE;
    CHECK(first + pages <= ARENA_PAGES);
    for (size_t i = first; i < first + pages; i++) {
        if (owners[i] != NULL) owners[i]->bytes -= (long)PAGE;
        if (site != NULL) site->bytes += (long)PAGE;
        owners[i] = site;
    }
}

#define MAP(name)                                                                                                 \
    SITE(site_##name, "mmap")                                                                                     \
    static NOINLINE char *site_##name(char *at, size_t pages) {                                                   \
        void *p = mmap(at, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0); \
        CHECK(p == at);                                                                                           \
        own(at, pages, &ledger_site_##name);                                                                      \
        return at;                                                                                                \
    }

MAP(whole)
MAP(head)
MAP(tail)
MAP(middle)
MAP(first_of_two)
MAP(second_of_two)
MAP(first_of_three)
MAP(second_of_three)
MAP(third_of_three)
MAP(replaced)
MAP(replacing)
MAP(covered)
MAP(covering)
MAP(grown)
MAP(shrunk)
MAP(moved)
MAP(moved_in_part)
MAP(kept)
MAP(stuck)
MAP(shrunk_then_unmapped)
MAP(around_island)
MAP(island)
MAP(before)
MAP(between)
MAP(after)
MAP(random_a)
MAP(random_b)
MAP(random_c)

static void unmap(char *at, size_t pages) {
    CHECK(munmap(at, pages * PAGE) == 0);
    own(at, pages, NULL);
}

#define REMAP(name)                                                                                               \
    SITE(site_##name, "mmap")                                                                                     \
    static NOINLINE void site_##name(char *from, size_t pages, char *to, size_t to_pages, int flags) {            \
        void *p = mremap(from, pages * PAGE, to_pages * PAGE, flags, to);                                         \
        CHECK(p == to);                                                                                           \
        if (!(flags & MREMAP_DONTUNMAP)) own(from, pages, NULL);                                                  \
        own(to, to_pages, &ledger_site_##name);                                                                   \
    }

REMAP(mremap_grow)
REMAP(mremap_shrink)
REMAP(mremap_move)
REMAP(mremap_part)
REMAP(mremap_keep)
REMAP(mremap_shrink_then_unmap)
REMAP(mremap_random)

// Failing calls: none may change anything.
static NOINLINE void site_failing(char *mapped, size_t pages) {
    CHECK(munmap(mapped + 1, PAGE) == -1);
    CHECK(munmap(mapped, 0) == -1);
    CHECK(mmap(NULL, 0, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED);
    CHECK(mmap(mapped + 1, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED);
    CHECK(mmap(mapped, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == MAP_FAILED);
    CHECK(mmap(mapped, PAGE, PROT_READ, MAP_PRIVATE | MAP_FIXED, -1, 0) == MAP_FAILED);
    CHECK(mremap(mapped, pages * PAGE, impossible_size & ~(PAGE - 1), MREMAP_MAYMOVE) == MAP_FAILED);
    CHECK(mremap(mapped, pages * PAGE, (pages + 1) * PAGE, 0) == MAP_FAILED); // the next page is taken
}

SITE(site_big_malloc, "heap")
static NOINLINE void *site_big_malloc(size_t n) { return noted(&ledger_site_big_malloc, malloc(n), n); }

SITE(site_big_realloc, "heap")
static NOINLINE void *site_big_realloc(void *old, size_t from, size_t to) {
    void *p = realloc(old, to);
    CHECK(p != NULL);
    lose(&ledger_site_big_malloc, from);
    return noted(&ledger_site_big_realloc, p, to);
}

// Not a whole number of pages: the kernel rounds up, and unmaps with either length.
SITE(site_odd_length, "mmap")
static NOINLINE void site_odd_length(void) {
    void *p = mmap(NULL, 5000, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(p != MAP_FAILED && munmap(p, 5000) == 0);
    p = mmap(NULL, 5000, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(p != MAP_FAILED && munmap(p, 2 * PAGE) == 0);
}

static void fixed_steps(void) {
    char *p = arena;
    unmap(site_whole(p, 16), 16);
    unmap(site_head(p, 16), 3);
    ledger_site_head.count = 1;
    unmap(site_tail(p += 32 * PAGE, 16) + 11 * PAGE, 5);
    ledger_site_tail.count = 1;
    unmap(site_middle(p += 32 * PAGE, 16) + 4 * PAGE, 4);
    ledger_site_middle.count = -1; // one block or two: the spec does not say
    p += 32 * PAGE;
    site_first_of_two(p, 10);
    site_second_of_two(p + 10 * PAGE, 10);
    unmap(p + 7 * PAGE, 6);
    ledger_site_first_of_two.count = ledger_site_second_of_two.count = 1;
    p += 32 * PAGE;
    site_first_of_three(p, 5);
    site_second_of_three(p + 5 * PAGE, 5);
    site_third_of_three(p + 10 * PAGE, 5);
    unmap(p + 4 * PAGE, 7);
    ledger_site_first_of_three.count = ledger_site_third_of_three.count = 1;
    p += 32 * PAGE;
    site_replaced(p, 20);
    site_replacing(p + 15 * PAGE, 20);
    ledger_site_replaced.count = ledger_site_replacing.count = 1;
    p += 64 * PAGE;
    site_covered(p + 3 * PAGE, 4);
    site_covering(p, 20);
    ledger_site_covering.count = 1;
    p += 32 * PAGE;
    site_grown(p, 6);
    unmap(p + 6 * PAGE, 20); // room to grow in place
    site_mremap_grow(p, 6, p, 12, 0);
    ledger_site_mremap_grow.count = 1;
    p += 32 * PAGE;
    site_shrunk(p, 12);
    site_mremap_shrink(p, 12, p, 5, 0);
    ledger_site_mremap_shrink.count = 1;
    p += 32 * PAGE;
    site_moved(p, 8);
    site_mremap_move(p, 8, p + 32 * PAGE, 9, MREMAP_MAYMOVE | MREMAP_FIXED);
    ledger_site_mremap_move.count = 1;
    p += 64 * PAGE;
    site_moved_in_part(p, 12);
    site_mremap_part(p + 8 * PAGE, 4, p + 32 * PAGE, 4, MREMAP_MAYMOVE | MREMAP_FIXED);
    ledger_site_moved_in_part.count = ledger_site_mremap_part.count = 1;
    p += 64 * PAGE;
    site_kept(p, 7);
    site_mremap_keep(p, 7, p + 32 * PAGE, 7, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP);
    ledger_site_kept.count = ledger_site_mremap_keep.count = 1;
    p += 64 * PAGE;
    site_stuck(p, 7);
    ledger_site_stuck.count = 1;
    site_failing(p, 7);
    p += 32 * PAGE;
    site_shrunk_then_unmapped(p, 12);
    site_mremap_shrink_then_unmap(p, 12, p, 4, 0);
    unmap(p, 12); // also where nothing is any more
    p += 32 * PAGE;
    site_around_island(p, 12);
    site_island(p + 5 * PAGE, 3);
    unmap(p, 12); // the whole of the first, and with it the second
    p += 32 * PAGE;
    site_before(p, 12);
    site_between(p + 5 * PAGE, 3);
    site_after(p, 5); // what stays of the first begins where the second does not end
    ledger_site_before.count = ledger_site_between.count = ledger_site_after.count = 1;
    site_odd_length();
    void *big = site_big_malloc(64 << 20);
    CHECK(big != NULL);
    site_big_realloc(big, 64 << 20, 96 << 20); // mremap inside realloc
    void *gone = site_big_malloc(32 << 20);
    free(gone); // munmap inside free
    lose(&ledger_site_big_malloc, 32 << 20);
}

// The second half of the arena. Sources of mremap are runs of pages of one owner, as the kernel wants them.
static void random_steps(void) {
    char *(*const maps[])(char *, size_t) = {site_random_a, site_random_b, site_random_c};
    struct dice dice = {42};
    char *half = arena + ARENA_PAGES / 2 * PAGE;
    for (int i = 0; i < 20000; i++) {
        size_t pages = 1 + roll(&dice, 12);
        char *at = half + roll(&dice, ARENA_PAGES / 2 - 12) * PAGE;
        switch (roll(&dice, 4)) {
        case 0:
        case 1: maps[roll(&dice, 3)](at, pages); break;
        case 2: unmap(at, pages); break;
        default: {
            char *to = half + roll(&dice, ARENA_PAGES / 2 - 12) * PAGE;
            if (at < to + 12 * PAGE && to < at + 12 * PAGE) break;
            maps[roll(&dice, 3)](at, pages);
            size_t from_pages = 1 + roll(&dice, pages);
            size_t to_pages = roll(&dice, 2) ? from_pages : 1 + roll(&dice, 12);
            site_mremap_random(at, from_pages, to, to_pages, MREMAP_MAYMOVE | MREMAP_FIXED);
        }
        }
    }
    ledger_site_random_a.count = ledger_site_random_b.count = ledger_site_random_c.count = -1;
    ledger_site_mremap_random.count = -1;
}

int main(void) {
    void *p = mmap(NULL, ARENA_PAGES * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(p != MAP_FAILED);
    arena = p;
    say("READY");
    hear();
    fixed_steps();
    say_ledger();
    hear();
    random_steps();
    say_ledger();
    hear();
    return 0;
}
