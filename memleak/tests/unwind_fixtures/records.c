// Blocks that are kept by functions of several layouts, which call each other through one that has a frame record and no
// unwind information. On arm64 that record tells its caller's code and frame pointer, and not its stack pointer.
#include <alloca.h>
#include <stdlib.h>
#include <string.h>

#define NOINLINE __attribute__((noinline, noclone))

typedef int step(int);
typedef int with_arguments(step *, int, long, long, long, long, long, long, long, long);

// Calls `next(size)`. Of its 64 bytes the record is the lowest part on arm64.
int pass_on(step *next, int size);
// A `ret` that is never reached, which returns from the wrong height: what the code says of its frame is not believed then.
#ifdef UNREADABLE
#define NEVER_TAKEN "    cbnz xzr, 1f\n"
#else
#define NEVER_TAKEN
#endif
__asm__(".text\n"
        ".type pass_on, %function\n"
        "pass_on:\n"
#if defined(__aarch64__)
        "    stp x29, x30, [sp, #-64]!\n"
        "    mov x29, sp\n"
        NEVER_TAKEN
        "    mov x2, x0\n"
        "    mov w0, w1\n"
        "    blr x2\n"
        "    ldp x29, x30, [sp], #64\n"
#else
        "    push %rbp\n"
        "    mov %rsp, %rbp\n"
        "    sub $48, %rsp\n"
        "    mov %rdi, %rax\n"
        "    mov %esi, %edi\n"
        "    call *%rax\n"
        "    leave\n"
#endif
        "1:  ret\n"
        ".size pass_on, . - pass_on\n");

void *volatile kept;
volatile int sink;

NOINLINE void keep(int size) {
    kept = malloc(size);
    sink = sink + size;
}

NOINLINE int last(int size) {
    keep(size);
    return size + 1;
}

// A frame of a size that is known at run time.
NOINLINE int allocates(int size) {
    char *volatile room = alloca(size * 16);
    memset(room, size, size);
    keep(size);
    return pass_on(last, size + room[0]) + room[1];
}

// Arguments for the callee at the bottom of the frame.
NOINLINE int gives_arguments(int size) {
    with_arguments *volatile pass_all = (with_arguments *)pass_on;
    keep(size);
    return pass_all(allocates, size + 1, 1, 2, 3, 4, 5, 6, 7, 8) + size;
}

NOINLINE int has_an_array(int size) {
    volatile char array[200];
    array[size] = 1;
    keep(size);
    return pass_on(gives_arguments, size + 1) + array[size];
}

NOINLINE int saves_registers(int size) {
    int a = sink, b = sink + 1, c = sink + 2, d = sink + 3;
    keep(size);
    int result = pass_on(has_an_array, size + 1);
    return result + a * b + c * d + size;
}

int main(void) {
    keep(20);
    return pass_on(saves_registers, 21) == 0;
}
