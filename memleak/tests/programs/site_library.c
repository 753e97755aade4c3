/* A library with one site, SITE: two of them, which differ in nothing else, take each other's place in memory. */
#include <stdlib.h>

void *volatile kept;

__attribute__((noinline)) void SITE(size_t size) { kept = malloc(size); }

void leak(size_t size) {
    for (int i = 0; i < 10; i++)
        SITE(size);
}
