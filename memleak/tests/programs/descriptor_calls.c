// Makes descriptors by each system call that can, three of each kind by the raw call, and closes one of each.
//
// usage: descriptor_calls     phases: READY <go> <missing lines> <ledger> END <end>
#include "ledger.h"

#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/filter.h>
#include <linux/perf_event.h>
#include <linux/seccomp.h>
#include <mqueue.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

// What the C library's headers may be too old for (arch/x86/entry/syscalls/syscall_64.tbl; the same numbers everywhere).
enum {
    OPEN_TREE = 428, FSOPEN = 430, FSCONFIG = 431, FSMOUNT = 432, FSPICK = 433, PIDFD_OPEN = 434, CLONE3 = 435,
    OPENAT2 = 437, PIDFD_GETFD = 438, LANDLOCK_CREATE_RULESET = 444, MEMFD_SECRET = 447, OPEN_TREE_ATTR = 467,
    PEERPIDFD = 77, NEW_LISTENER = 1 << 3, REGISTERED_FD_ONLY = 1 << 15, NO_MMAP = 1 << 14, PIDFD = 0x1000,
};

#define CALL(name, expression)                                                                                    \
    SITE(site_##name, "fd")                                                                                       \
    static NOINLINE int site_##name(void) { return (int)(expression); }

static const struct perf_event_attr perf = {
    .type = PERF_TYPE_SOFTWARE, .size = sizeof perf, .config = PERF_COUNT_SW_DUMMY, .disabled = 1};
static const unsigned long long ruleset = 1; // LANDLOCK_ACCESS_FS_EXECUTE
static const struct {
    unsigned long long flags, mode, resolve;
} how = {O_RDONLY, 0, 0};
static unsigned int ring[30]; // struct io_uring_params
static int other, queue, connected, filesystem, map = -1, map_id;
static struct { unsigned int bytes; int type; char handle[128]; } file_handle;
static union bpf_attr map_attr = {.map_type = BPF_MAP_TYPE_ARRAY, .key_size = 4, .value_size = 4, .max_entries = 1};

CALL(openat, syscall(SYS_openat, AT_FDCWD, "/dev/null", O_RDONLY))
CALL(openat2, syscall(OPENAT2, AT_FDCWD, "/dev/null", &how, sizeof how))
CALL(open_by_handle_at, syscall(SYS_open_by_handle_at, other, &file_handle, O_RDONLY))
CALL(open_tree, syscall(OPEN_TREE, AT_FDCWD, "/", O_CLOEXEC))
CALL(open_tree_attr, syscall(OPEN_TREE_ATTR, AT_FDCWD, "/", 0, NULL, 0))
CALL(fsopen, syscall(FSOPEN, "tmpfs", 0))
CALL(fspick, syscall(FSPICK, AT_FDCWD, "/dev/shm", 0))
CALL(fsmount, syscall(FSMOUNT, filesystem, 0, 0))
CALL(socket, syscall(SYS_socket, AF_UNIX, SOCK_STREAM, 0))
CALL(accept4, syscall(SYS_accept4, queue, NULL, NULL, 0))
CALL(dup, syscall(SYS_dup, other))
CALL(dup3, syscall(SYS_dup3, other, 200 + (int)ledger_site_dup3.count, O_CLOEXEC))
CALL(eventfd2, syscall(SYS_eventfd2, 0, 0))
CALL(epoll_create1, syscall(SYS_epoll_create1, 0))
CALL(signalfd4, syscall(SYS_signalfd4, -1, (unsigned long long[]){1}, 8, 0))
CALL(timerfd_create, syscall(SYS_timerfd_create, 1, 0))
CALL(inotify_init1, syscall(SYS_inotify_init1, 0))
CALL(fanotify_init, syscall(SYS_fanotify_init, 0, 0))
CALL(memfd_create, syscall(SYS_memfd_create, "x", 0))
CALL(memfd_secret, syscall(MEMFD_SECRET, 0))
CALL(mq_open, syscall(SYS_mq_open, "memleak-test", O_RDWR | O_CREAT, 0600, NULL))
CALL(pidfd_open, syscall(PIDFD_OPEN, getpid(), 0))
CALL(pidfd_getfd, syscall(PIDFD_GETFD, connected, other, 0))
CALL(perf_event_open, syscall(SYS_perf_event_open, &perf, 0, -1, -1, 0))
CALL(userfaultfd, syscall(SYS_userfaultfd, 1))
CALL(io_uring_setup, syscall(SYS_io_uring_setup, 1, memset(ring, 0, sizeof ring)))
CALL(landlock_create_ruleset, syscall(LANDLOCK_CREATE_RULESET, &ruleset, sizeof ruleset, 0))
CALL(bpf_map_create, syscall(SYS_bpf, BPF_MAP_CREATE, &map_attr, sizeof map_attr))
CALL(bpf_map_by_id, syscall(SYS_bpf, BPF_MAP_GET_FD_BY_ID, &(union bpf_attr){.map_id = map_id}, sizeof map_attr))

#ifdef SYS_open
CALL(open, syscall(SYS_open, "/dev/null", O_RDONLY))
CALL(creat, syscall(SYS_creat, "/dev/null", 0600))
CALL(dup2, syscall(SYS_dup2, other, 210 + (int)ledger_site_dup2.count))
CALL(eventfd, syscall(SYS_eventfd, 0))
CALL(epoll_create, syscall(SYS_epoll_create, 1))
CALL(inotify_init, syscall(SYS_inotify_init))
CALL(signalfd, syscall(SYS_signalfd, -1, (unsigned long long[]){1}, 8))
#endif

// The descriptor comes by a pointer, beside the return value or in what an argument points to.
static int child(long made, int fd) {
    if (made == 0) _exit(0);
    if (made < 0) return -1;
    CHECK(waitpid((pid_t)made, NULL, 0) == made);
    return fd;
}

SITE(site_clone, "fd")
static NOINLINE int site_clone(void) {
    int fd = -1;
    long made = syscall(SYS_clone, PIDFD | SIGCHLD, 0, &fd, 0, 0);
    return child(made, fd);
}

SITE(site_clone3, "fd")
static NOINLINE int site_clone3(void) {
    int fd = -1;
    unsigned long long arguments[8] = {PIDFD, (uintptr_t)&fd, 0, 0, SIGCHLD};
    long made = syscall(CLONE3, arguments, sizeof arguments);
    return child(made, fd);
}

// Makes none: not each call with these numbers does.
static void make_none(void) {
    unsigned long long arguments[8] = {0, 0, 0, 0, SIGCHLD};
    child(syscall(CLONE3, arguments, sizeof arguments), 0);
    syscall(LANDLOCK_CREATE_RULESET, NULL, 0, 1); // LANDLOCK_CREATE_RULESET_VERSION: returns a number
    unsigned int next = 0;
    union bpf_attr attr = {.start_id = next};
    syscall(SYS_bpf, BPF_PROG_GET_NEXT_ID, &attr, sizeof attr);
    int type;
    socklen_t size = sizeof type;
    CHECK(getsockopt(queue, SOL_SOCKET, SO_TYPE, &type, &size) == 0);
}

SITE(site_peerpidfd, "fd")
static NOINLINE int site_peerpidfd(void) {
    int pair[2], fd = -1;
    socklen_t size = sizeof fd;
    CHECK(syscall(SYS_socketpair, AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    long failed = syscall(SYS_getsockopt, pair[0], SOL_SOCKET, PEERPIDFD, &fd, &size);
    syscall(SYS_close, pair[0]), syscall(SYS_close, pair[1]);
    return failed ? -1 : fd;
}

SITE(site_recvmmsg, "fd")
static NOINLINE int site_recvmmsg(void) {
    int pair[2];
    union {
        char space[CMSG_SPACE(sizeof(int))];
        struct cmsghdr header;
    } control = {.header = {CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS}};
    memcpy(CMSG_DATA(&control.header), &other, sizeof other);
    char byte = 'x';
    struct iovec data = {&byte, 1};
    struct mmsghdr message = {.msg_hdr = {
        .msg_iov = &data, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control}};
    CHECK(syscall(SYS_socketpair, AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    CHECK(sendmsg(pair[0], &message.msg_hdr, 0) == 1);
    CHECK(syscall(SYS_recvmmsg, pair[1], &message, 1, 0, NULL) == 1);
    syscall(SYS_close, pair[0]), syscall(SYS_close, pair[1]);
    int fd;
    memcpy(&fd, CMSG_DATA(&control.header), sizeof fd);
    return fd;
}

SITE(site_seccomp, "fd")
static NOINLINE int site_seccomp(void) {
    struct sock_filter allow[] = {BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
    struct sock_fprog program = {1, allow};
    CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
    return (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, NEW_LISTENER, &program);
}

static void act(struct site *site, int (*call)(void), int times) {
    int last = -1;
    for (int i = 0; i < times; i++) {
        int fd = call();
        if (fd < 0) {
            CHECK(i == 0);
            say("{\"missing\":\"%s\",\"errno\":%d}", site->name, errno);
            return;
        }
        gain(site, 0), last = fd;
    }
    if (times > 1) {
        CHECK(syscall(SYS_close, last) == 0);
        lose(site, 0);
    }
}
#define ACT(name) act(&ledger_site_##name, site_##name, 3)

// What the calls need, made before tracing begins.
static void prepare(void) {
    CHECK((other = open("/", O_RDONLY | O_DIRECTORY)) >= 0);
    file_handle.bytes = sizeof file_handle.handle;
    int mount_id;
    syscall(SYS_name_to_handle_at, AT_FDCWD, "/etc/passwd", &file_handle, &mount_id, 0);
    struct sockaddr address = {.sa_family = AF_UNIX}; // bound to a name of the kernel's choice
    CHECK((queue = socket(AF_UNIX, SOCK_STREAM, 0)) >= 0 && bind(queue, &address, sizeof address.sa_family) == 0);
    struct { sa_family_t family; char name[6]; } bound;
    socklen_t size = sizeof bound;
    CHECK(getsockname(queue, (struct sockaddr *)&bound, &size) == 0 && listen(queue, 8) == 0);
    for (int i = 0; i < 3; i++) {
        int client = socket(AF_UNIX, SOCK_STREAM, 0);
        CHECK(client >= 0 && connect(client, (struct sockaddr *)&bound, size) == 0);
    }
    CHECK((connected = (int)syscall(PIDFD_OPEN, getpid(), 0)) >= 0);
    map = (int)syscall(SYS_bpf, BPF_MAP_CREATE, &map_attr, sizeof map_attr);
    struct bpf_map_info info = {0};
    union bpf_attr attr = {.info = {.bpf_fd = map, .info_len = sizeof info, .info = (uintptr_t)&info}};
    if (map >= 0 && syscall(SYS_bpf, BPF_OBJ_GET_INFO_BY_FD, &attr, sizeof attr) == 0) map_id = (int)info.id;
}

// A file system's context gives one mount.
static void mount_three(void) {
    for (int i = 0; i < 3; i++) {
        filesystem = (int)syscall(FSOPEN, "tmpfs", 0);
        CHECK(filesystem >= 0 && syscall(FSCONFIG, filesystem, 6, NULL, NULL, 0) == 0); // FSCONFIG_CMD_CREATE
        act(&ledger_site_fsmount, site_fsmount, 1);
        syscall(SYS_close, filesystem);
    }
}

int main(void) {
    prepare();
    say("READY");
    hear();
    make_none();
    ACT(openat), ACT(openat2), ACT(open_by_handle_at), ACT(open_tree), ACT(open_tree_attr), ACT(fsopen), ACT(fspick);
    ACT(socket), ACT(accept4), ACT(dup), ACT(dup3), ACT(eventfd2), ACT(epoll_create1), ACT(signalfd4);
    ACT(timerfd_create), ACT(inotify_init1), ACT(fanotify_init), ACT(memfd_create), ACT(memfd_secret), ACT(mq_open);
    ACT(pidfd_open), ACT(pidfd_getfd), ACT(perf_event_open), ACT(userfaultfd), ACT(io_uring_setup);
    ACT(landlock_create_ruleset), ACT(bpf_map_create), ACT(bpf_map_by_id), ACT(clone), ACT(clone3), ACT(peerpidfd);
    ACT(recvmmsg);
#ifdef SYS_open
    ACT(open), ACT(creat), ACT(dup2), ACT(eventfd), ACT(epoll_create), ACT(inotify_init), ACT(signalfd);
#endif
    mount_three();
    act(&ledger_site_seccomp, site_seccomp, 1);
    make_none();
    syscall(SYS_mq_unlink, "memleak-test");
    say_ledger();
    hear();
    return 0;
}
