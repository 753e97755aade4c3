// A function of a user's pair throws half of the time: the program goes on.
//
// phases: READY <go> <ledger> END <end>
#include "ledger.h"

#include <stdexcept>

extern "C" NOINLINE void *throws_get(long size);
extern "C" NOINLINE void *throws_get(long size) {
    if (size % 2) throw std::runtime_error("none left");
    return malloc(size);
}

extern "C" NOINLINE void throws_put(void *block);
extern "C" NOINLINE void throws_put(void *block) { free(block); }

SITE(site_get, "custom")
static NOINLINE void *site_get(long size) { return noted(&ledger_site_get, throws_get(size), size); }

int main() {
    say("READY"), hear();
    int caught = 0;
    for (long size = 100; size < 200; size++) try {
            void *block = site_get(size);
            if (size % 4 == 0) {
                throws_put(block);
                lose(&ledger_site_get, size);
            }
        } catch (const std::exception &) {
            caught++;
        }
    CHECK(caught == 50);
    say_ledger(), hear();
}
