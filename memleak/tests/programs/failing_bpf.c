/* Preloaded into the tracer: the command FAIL_COMMAND of bpf(2) fails with ENOMEM while the file FAIL_WHILE exists. With
   FAIL_ONCE the first failure removes the file. */
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

static int fails(long command)
{
    const char *wanted = getenv("FAIL_COMMAND"), *file = getenv("FAIL_WHILE");
    if (!wanted || !file || command != atol(wanted) || access(file, F_OK) != 0)
        return 0;
    if (getenv("FAIL_ONCE"))
        unlink(file);
    return 1;
}

/* The kernel takes six arguments at most; more than were given are not looked at. */
#if defined(__aarch64__)
static long raw(long number, const long *args)
{
    register long x8 __asm__("x8") = number;
    register long x0 __asm__("x0") = args[0];
    register long x1 __asm__("x1") = args[1];
    register long x2 __asm__("x2") = args[2];
    register long x3 __asm__("x3") = args[3];
    register long x4 __asm__("x4") = args[4];
    register long x5 __asm__("x5") = args[5];
    __asm__ volatile("svc #0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
    return x0;
}
#else
/* System V ABI. */
static long raw(long number, const long *args)
{
    register long r10 __asm__("r10") = args[3];
    register long r8 __asm__("r8") = args[4];
    register long r9 __asm__("r9") = args[5];
    long result;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(args[0]), "S"(args[1]), "d"(args[2]), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}
#endif

long syscall(long number, ...)
{
    long args[6];
    va_list list;
    va_start(list, number);
    for (int i = 0; i < 6; i++)
        args[i] = va_arg(list, long);
    va_end(list);
    if (number == SYS_bpf && fails(args[0])) {
        errno = ENOMEM;
        return -1;
    }
    long result = raw(number, args);
    if (result < 0 && result >= -4095) {
        errno = (int)-result;
        return -1;
    }
    return result;
}
