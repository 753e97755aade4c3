// What every target program of the live tests shares: the line protocol with the test, and the ledger.
//
// The ledger is the program's own account, kept apart from any tracer: one entry for each allocation site (a function
// of its own, so that a stack names it) with the bytes and the number of blocks that are outstanding. Nothing here
// calls an allocator: standard I/O would take buffers from the heap, so lines go through read(2) and write(2).
//
//   program -> test   READY | <ledger line> ... END | any other line
//   test -> program   one line for each phase
#ifndef LEDGER_H
#define LEDGER_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

// A frame of its own, called as written, whatever the optimiser could prove about it. clang has
// no such attribute; this one leaves it what it finds out about the arguments.
#ifdef __clang__
#define NOINLINE __attribute__((noinline))
#else
#define NOINLINE __attribute__((noipa))
#endif

struct site {
    const char *name;
    const char *resource;
    long bytes;
    long count;
};

// Declares the ledger entry `ledger_FUNCTION` of the allocation site FUNCTION. The linker collects the entries.
#define SITE(function, resource)                                                                                  \
    static struct site ledger_##function = {#function, resource, 0, 0};                                           \
    static struct site *ledger_entry_##function __attribute__((section("ledger"), used)) = &ledger_##function;

#ifdef __cplusplus
extern "C" {
#endif
extern struct site *__start_ledger[] __attribute__((weak, visibility("hidden")));
extern struct site *__stop_ledger[] __attribute__((weak, visibility("hidden")));
#ifdef __cplusplus
}
#endif

static inline void gain(struct site *site, size_t bytes) {
    __atomic_fetch_add(&site->bytes, (long)bytes, __ATOMIC_RELAXED);
    __atomic_fetch_add(&site->count, 1L, __ATOMIC_RELAXED);
}

static inline void lose(struct site *site, size_t bytes) {
    __atomic_fetch_sub(&site->bytes, (long)bytes, __ATOMIC_RELAXED);
    __atomic_fetch_sub(&site->count, 1L, __ATOMIC_RELAXED);
}

// Notes a block if there is one; returns it.
static inline void *noted(struct site *site, void *block, size_t bytes) {
    if (block != NULL) gain(site, bytes);
    return block;
}

__attribute__((noreturn)) static inline void die(const char *what) {
    static const char hint[] = ": target program failed\n";
    if (write(2, what, strlen(what)) < 0 || write(2, hint, sizeof hint - 1) < 0) _exit(98);
    _exit(99);
}

#define CHECK(condition)                                                                                          \
    do {                                                                                                          \
        if (!(condition)) die(__FILE__ ": " #condition);                                                          \
    } while (0)

__attribute__((format(printf, 1, 2))) static inline void say(const char *format, ...) {
    char line[512];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(line, sizeof line - 1, format, arguments);
    va_end(arguments);
    if (length < 0 || (size_t)length > sizeof line - 2) die("say: line too long");
    line[length++] = '\n';
    for (int done = 0; done < length;) {
        ssize_t step = write(1, line + done, (size_t)(length - done));
        if (step < 0 && errno != EINTR) _exit(97);
        if (step > 0) done += (int)step;
    }
}

// Waits for the test's next line; returns its first character. Ends the program when the test is gone.
static inline char hear(void) {
    char first = 0, c;
    for (int i = 0;; i++) {
        ssize_t got = read(0, &c, 1);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) _exit(96);
        if (i == 0) first = c;
        if (c == '\n') return first;
    }
}

static inline void say_ledger(void) {
    for (struct site **entry = __start_ledger; entry < __stop_ledger; entry++)
        say("{\"site\":\"%s\",\"resource\":\"%s\",\"bytes\":%ld,\"count\":%ld}", (*entry)->name, (*entry)->resource,
            (*entry)->bytes, (*entry)->count);
    say("END");
}

// A seeded generator (xorshift64*), so that every run does the same.
struct dice {
    uint64_t state;
};

static inline uint64_t roll(struct dice *dice, uint64_t below) {
    dice->state ^= dice->state >> 12;
    dice->state ^= dice->state << 25;
    dice->state ^= dice->state >> 27;
    return (dice->state * 2685821657736338717ull >> 11) % below;
}

// More than any allocator gives, out of the compiler's sight.
static volatile size_t impossible_size = SIZE_MAX / 2 + 1;

#endif
