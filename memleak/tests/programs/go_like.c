// As code of Go's compiler: no unwind tables, a frame pointer in each function, calls from one stack to another, and the
// section of Go's table of functions. Built with -fno-asynchronous-unwind-tables -fno-unwind-tables.
//
// usage: go_like    phases: READY, go, <ledger> END, end
#include "ledger.h"

__attribute__((section(".gopclntab"), used)) static const char table_of_functions[64] = "go";
static char other_stack[1 << 16] __attribute__((aligned(16)));
char *const end_of_other_stack = other_stack + sizeof other_stack;

// Calls `function(size)` on the other stack. Like Go's runtime.asmcgocall it has no frame record of its own: that of its
// caller is on the old stack. On arm64 Go's puts the frame pointer of the thread's own stack into x29
// (src/runtime/asm_arm64.s, `g_sched+gobuf_bp`), here 0: nothing leads back.
void *call_on_other_stack(void *(*function)(size_t), size_t size);
__asm__(".text\n"
        ".type call_on_other_stack, %function\n"
        "call_on_other_stack:\n"
#if defined(__aarch64__)
        "    mov x2, x0\n"
        "    mov x0, x1\n"
        "    mov x3, sp\n"
        "    adrp x4, end_of_other_stack\n"
        "    ldr x4, [x4, :lo12:end_of_other_stack]\n"
        "    mov sp, x4\n"
        "    stp x3, x30, [sp, #-32]!\n"
        "    str x29, [sp, #16]\n"
        "    mov x29, xzr\n"
        "    blr x2\n"
        "    ldr x29, [sp, #16]\n"
        "    ldp x3, x30, [sp], #32\n"
        "    mov sp, x3\n"
#else
        "    mov %rdi, %rdx\n"
        "    mov %rsi, %rdi\n"
        "    mov %rsp, %rax\n"
        "    mov end_of_other_stack(%rip), %rsp\n"
        "    push %rax\n"
        "    sub $8, %rsp\n"
        "    call *%rdx\n"
        "    add $8, %rsp\n"
        "    pop %rsp\n"
#endif
        "    ret\n"
        ".size call_on_other_stack, . - call_on_other_stack\n");

SITE(site_here, "heap")
SITE(site_there, "heap")

static NOINLINE void *allocate(size_t size) { return malloc(size); }

static NOINLINE void *site_here(size_t size) { return noted(&ledger_site_here, allocate(size), size); }

static NOINLINE void *switches(size_t size) { return call_on_other_stack(allocate, size); }

static NOINLINE void *site_there(size_t size) { return noted(&ledger_site_there, switches(size), size); }

int main(void) {
    say("READY");
    hear();
    for (size_t i = 1; i <= 20; i++) CHECK(site_here(i) != NULL && site_there(100 + i) != NULL);
    say_ledger();
    hear();
    return 0;
}
