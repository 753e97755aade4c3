// Ends after 50 ms at most, with blocks from before main: those of early_library's constructors, of its own, and of
// libstdc++ itself. Ends as its argument says: with an exit status, or by a signal.
//
// usage: early exit|signal NUMBER
#include "ledger.h"

#include <csignal>

void say_early_ledger(void);

SITE(site_constructor, "heap")
static NOINLINE void *site_constructor(size_t n) { return noted(&ledger_site_constructor, malloc(n), n); }

struct early {
    early() { CHECK(site_constructor(555)); }
} instance;

SITE(site_main, "heap")
static NOINLINE void *site_main(size_t n) { return noted(&ledger_site_main, malloc(n), n); }

static NOINLINE void *below_new(size_t n) {
    void *p = ::operator new(n);
    return p;
}

// One level up: see known_leaks.cc. Also what makes the linker keep libstdc++, which acquires before main.
SITE(site_new, "heap")
static NOINLINE void *site_new(size_t n) { return noted(&ledger_site_new, below_new(n), n); }

int main(int argc, char **argv) {
    CHECK(argc == 3);
    CHECK(site_main(99) && site_new(321));
    for (struct site **entry = __start_ledger; entry < __stop_ledger; entry++)
        say("{\"site\":\"%s\",\"resource\":\"%s\",\"bytes\":%ld,\"count\":%ld}", (*entry)->name, (*entry)->resource,
            (*entry)->bytes, (*entry)->count);
    say_early_ledger();
    int number = atoi(argv[2]);
    if (!strcmp(argv[1], "exit")) _exit(number);
    raise(number);
    return 0;
}
