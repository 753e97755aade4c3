// Leaks twice each time it is asked to, once before and once after a while.
#include <stdlib.h>

void keep(size_t size);

void *volatile plugin_sink;

__attribute__((noinline, noclone)) void plugin_leak(void) {
    keep(24);
    plugin_sink = &plugin_sink;
    keep(40);
    plugin_sink = 0;
}
