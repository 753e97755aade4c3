// Opens, keeps and closes descriptors whose kernel objects are known, one command a line on standard input:
//   epoll N    opens N epoll descriptors and keeps them
//   event N    opens N eventfd descriptors and keeps them
//   close      closes all that it keeps
//   churn N    two threads each open and close a file N times
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <unistd.h>

enum { MAX_KEPT = 100000 };
static int kept[MAX_KEPT];
static int count;

static void keep(int descriptor) {
    if (descriptor < 0 || count == MAX_KEPT) {
        perror("opening");
        exit(1);
    }
    kept[count++] = descriptor;
}

static void *churn(void *times) {
    for (long left = *(long *)times; left > 0; left--) {
        int descriptor = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
        if (descriptor < 0 || close(descriptor) != 0) {
            perror("churning");
            exit(1);
        }
    }
    return NULL;
}

int main(void) {
    char line[64];
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &limit) != 0) {
        perror("setrlimit");
        return 1;
    }
    puts("READY");
    fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        char what[16] = "";
        long number = 0;
        if (sscanf(line, "%15s %ld", what, &number) < 1) continue;
        if (strcmp(what, "epoll") == 0) {
            while (number-- > 0) keep(epoll_create1(EPOLL_CLOEXEC));
        } else if (strcmp(what, "event") == 0) {
            while (number-- > 0) keep(eventfd(0, EFD_CLOEXEC));
        } else if (strcmp(what, "close") == 0) {
            while (count > 0) close(kept[--count]);
        } else if (strcmp(what, "churn") == 0) {
            pthread_t threads[2];
            for (int i = 0; i < 2; i++) pthread_create(&threads[i], NULL, churn, &number);
            for (int i = 0; i < 2; i++) pthread_join(threads[i], NULL);
        } else {
            return 1;
        }
        puts("DONE");
        fflush(stdout);
    }
    return 0;
}
