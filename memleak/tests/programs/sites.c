/* The same code at other addresses, and other code at the same ones.

   sites leak BYTES            leaks 10 blocks at site_leak
   sites reload PAUSE A B      opens library A, has it leak 10 blocks of 100 bytes, closes it; the same with B and 200 bytes;
                               waits PAUSE microseconds after each. Says whether both were at one address.

   It says READY, waits for a line, works, says END, and waits for another line. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void *volatile kept;

__attribute__((noinline)) static void site_leak(size_t size) { kept = malloc(size); }

static void wait_for_line(void) {
    char byte;
    do {
        if (read(0, &byte, 1) != 1)
            _exit(3);
    } while (byte != '\n');
}

static void say(const char *text) {
    if (write(1, text, strlen(text)) < 0)
        _exit(4);
}

static void *reload(const char *library, size_t size, useconds_t pause) {
    void *object = dlopen(library, RTLD_NOW);
    if (object == NULL)
        _exit(5);
    void (*leak)(size_t);
    *(void **)&leak = dlsym(object, "leak");
    leak(size);
    if (dlclose(object) != 0)
        _exit(6);
    usleep(pause);
    return *(void **)&leak;
}

int main(int argc, char **argv) {
    say("READY\n");
    wait_for_line();
    if (argc == 3 && strcmp(argv[1], "leak") == 0) {
        for (int i = 0; i < 10; i++)
            site_leak(strtoul(argv[2], NULL, 10));
    } else if (argc == 5 && strcmp(argv[1], "reload") == 0) {
        useconds_t pause = (useconds_t)atoi(argv[2]);
        void *first = reload(argv[3], 100, pause);
        void *second = reload(argv[4], 200, pause);
        say(first == second ? "SAME\n" : "DIFFERENT\n");
    } else {
        return 2;
    }
    say("END\n");
    wait_for_line();
    return 0;
}
