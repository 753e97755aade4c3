// Every shape of frame that a stack walk has to get through. Each scene ends in stop_here, where a debugger waits.
#include <alloca.h>
#include <pthread.h>
#include <signal.h>
#include <stdexcept>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <ucontext.h>
#include <vector>

#define NOINLINE __attribute__((noinline, noclone))

volatile uint64_t sink;
void *volatile kept;

// Work after each call keeps it from becoming a jump.
extern "C" NOINLINE void stop_here(const char *scene) {
    sink = sink + scene[0];
}

NOINLINE void allocate(const char *scene, size_t size) {
    kept = malloc(size);
    stop_here(scene);
#ifndef KEEP // what is kept is reported
    free(kept);
#endif
    sink = sink + size;
}

NOINLINE int recurse(int depth) {
    if (depth == 0) {
        allocate("recursion", 16);
        return 1;
    }
    int result = recurse(depth - 1) + depth;
    sink = sink + result;
    return result;
}

NOINLINE void use_alloca(size_t size) {
    char *bytes = (char *)alloca(size);
    memset(bytes, 1, size);
    allocate("alloca", bytes[size / 2]);
    sink = sink + bytes[size - 1];
}

NOINLINE void big_frame(int value) {
    volatile char bytes[700 * 1024];
    for (size_t at = 0; at < sizeof bytes; at += 4096) bytes[at] = value;
    allocate("big", 32);
    sink = sink + bytes[value];
}

typedef double Lane __attribute__((vector_size(32)));

// A local that wants 32 bytes of alignment beside one of unknown size: the frame is realigned through r10 (DRAP).
NOINLINE void realigned(size_t size, double value) {
    volatile Lane lanes = {value, value, value, value};
    char *bytes = (char *)alloca(size);
    memset(bytes, 2, size);
    allocate("realigned", 24);
    Lane copy = lanes;
    sink = sink + bytes[0] + (uint64_t)copy[1];
}

struct alignas(64) Wide {
    char bytes[64];
};

NOINLINE void realigned_plain(int a, int b, int c, int d, int e, int f, int g, int h) {
    volatile Wide wide = {};
    wide.bytes[1] = a + b + c + d + e + f;
    allocate("realigned-args", 24);
    sink = sink + wide.bytes[1] + g + h;
}

int compare(const void *left, const void *right) {
    static int calls;
    if (++calls == 3) allocate("qsort", 40);
    return *(const int *)left - *(const int *)right;
}

NOINLINE void sort_callback() {
    int values[] = {5, 3, 9, 1, 7, 2};
    qsort(values, 6, sizeof values[0], compare);
    sink = sink + values[0];
}

void handler(int) {
    allocate("signal", 48);
}

NOINLINE void interrupted(uint64_t value) {
    raise(SIGUSR1);
    sink = sink + value;
}

// A fault's instruction is the first of its function: looked up one byte before, it would be another one's.
extern "C" void first_instruction_faults();
#if defined(__aarch64__)
#define FAULT "udf #0"
#else
#define FAULT "ud2"
#endif
__asm__(".globl first_instruction_faults\n"
        ".type first_instruction_faults, %function\n"
        "first_instruction_faults:\n"
        ".cfi_startproc\n"
        FAULT "\n"
        "ret\n"
        ".cfi_endproc\n"
        ".size first_instruction_faults, .-first_instruction_faults\n");

void skip_instruction(int, siginfo_t *, void *context) {
    allocate("fault", 56);
#if defined(__aarch64__)
    ((ucontext_t *)context)->uc_mcontext.pc += 4;
#else
    ((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP] += 2;
#endif
}

NOINLINE void on_other_stack(int number) {
    static char other[65536];
    stack_t stack = {};
    stack.ss_sp = other;
    stack.ss_size = sizeof other;
    sigaltstack(&stack, nullptr);
    struct sigaction action = {};
    action.sa_sigaction = skip_instruction;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(number, &action, nullptr);
    first_instruction_faults();
    sink = sink + 1;
}

struct Guard {
    const char *scene;
    ~Guard() { allocate(scene, 64); }
};

NOINLINE void throws(int depth) {
    Guard guard{"unwinding"};
    if (depth == 0) throw std::runtime_error("in flight");
    throws(depth - 1);
    sink = sink + depth;
}

NOINLINE void exceptions() {
    try {
        throws(3);
    } catch (const std::exception &error) {
        allocate("caught", strlen(error.what()));
    }
    sink = sink + 1;
}

ucontext_t main_context, coroutine_context;

void coroutine() {
    allocate("coroutine", 72);
    swapcontext(&coroutine_context, &main_context);
}

NOINLINE void contexts() {
    static char stack[65536];
    getcontext(&coroutine_context);
    coroutine_context.uc_stack.ss_sp = stack;
    coroutine_context.uc_stack.ss_size = sizeof stack;
    coroutine_context.uc_link = &main_context;
    makecontext(&coroutine_context, coroutine, 0);
    swapcontext(&main_context, &coroutine_context);
    sink = sink + 1;
}

void *thread_start(void *argument) {
    allocate("thread", 80);
    return argument;
}

NOINLINE void threads() {
    pthread_t thread;
    pthread_create(&thread, nullptr, thread_start, nullptr);
    pthread_join(thread, nullptr);
}

NOINLINE void containers() {
    std::vector<std::vector<int>> nested;
    for (int at = 0; at < 3; at++) nested.emplace_back(at + 1, at);
    stop_here("containers");
    sink = sink + nested.size();
}

// Single-stepped: into a linkage table's stub and the dynamic linker, the vdso, and back.
extern "C" NOINLINE void step_from_here(const char *text) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    sink = sink + now.tv_nsec + strtoul(text, nullptr, 10) + (uint64_t)abs((int)sink);
}

int main() {
    struct sigaction action = {};
    action.sa_handler = handler;
    sigaction(SIGUSR1, &action, nullptr);
    step_from_here("12345");
    recurse(100);
    use_alloca(1000);
    big_frame(3);
    realigned(100, 1.5);
    realigned_plain(1, 2, 3, 4, 5, 6, 7, 8);
    sort_callback();
    interrupted(7);
    on_other_stack(SIGILL);
    exceptions();
    contexts();
    threads();
    containers();
    stop_here("end");
    return sink == 42;
}
