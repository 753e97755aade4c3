// What `cargo xtask bench --attach` traces: maps the libraries that it is told to, says so, and waits for its input's end.
#include <dlfcn.h>
#include <stdio.h>

int main(int count, char **arguments) {
    for (int at = 1; at < count; at++) {
        if (!dlopen(arguments[at], RTLD_LAZY)) {
            fprintf(stderr, "%s\n", dlerror());
            return 1;
        }
    }
    puts("mapped");
    fflush(stdout);
    while (getchar() != EOF) {
    }
    return 0;
}
