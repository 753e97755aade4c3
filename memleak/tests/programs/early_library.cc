// A library whose constructors acquire before main does.
#include "ledger.h"

SITE(site_early, "heap")
static NOINLINE void *site_early(size_t n) { return noted(&ledger_site_early, malloc(n), n); }

__attribute__((constructor)) static void acquire_early(void) {
    for (size_t i = 1; i <= 20; i++) CHECK(site_early(i * 10));
}

void say_early_ledger(void) { say_ledger(); }
