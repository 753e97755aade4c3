// Acquires, fails to acquire and releases the resources other than memory, each by all its functions. What it holds is
// in its ledger; bytes are 0 where it has no size.
//
// usage: resources RESOURCE
// phases: READY <go> <ledger> END (some of each left) <go> <ledger> END (failed acquires: as before)
//         <go> <ledger> END (released, some twice)     <end>
//
// SQLite and OpenSSL are declared here as their manuals do, so that no header is wanted.
#include "ledger.h"

#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <threads.h>
#include <uchar.h>

#define GONE "/nonexistent/nothing"

// A call that gives one thing or fails: `taken` says whether it gave one.
#define ACQUIRE(name, resource, type, parameters, call, taken)                                                    \
    SITE(site_##name, resource)                                                                                   \
    static NOINLINE type site_##name parameters {                                                                 \
        type got = call;                                                                                          \
        if (taken) gain(&ledger_site_##name, 0);                                                                  \
        return got;                                                                                               \
    }

// ---- fd

#define NEW_FD(name, parameters, call) ACQUIRE(name, "fd", int, parameters, call, got >= 0)

NEW_FD(open, (const char *path), open(path, O_RDONLY))
NEW_FD(openat, (const char *path), openat(AT_FDCWD, path, O_RDONLY))
NEW_FD(creat, (const char *path), creat(path, 0600))
NEW_FD(socket, (int domain), socket(domain, SOCK_STREAM, 0))
NEW_FD(accept, (int listener), accept(listener, NULL, NULL))
NEW_FD(accept4, (int listener), accept4(listener, NULL, NULL, SOCK_CLOEXEC))
NEW_FD(dup, (int fd), dup(fd))
NEW_FD(dup2, (int from, int to), dup2(from, to))
NEW_FD(dup3, (int from, int to), dup3(from, to, O_CLOEXEC))
NEW_FD(eventfd, (int flags), eventfd(0, flags))
NEW_FD(epoll_create, (int size), epoll_create(size))
NEW_FD(epoll_create1, (int flags), epoll_create1(flags))
NEW_FD(timerfd, (int clock), timerfd_create(clock, 0))
NEW_FD(inotify_init, (void), inotify_init())
NEW_FD(inotify_init1, (int flags), inotify_init1(flags))
NEW_FD(memfd, (unsigned flags), memfd_create("resources", flags))
NEW_FD(fcntl, (int fd, int command), fcntl(fd, command, 0))
NEW_FD(raw, (const char *path), (int)syscall(SYS_openat, AT_FDCWD, path, O_RDONLY))

SITE(site_signalfd, "fd")
static NOINLINE int site_signalfd(int fd, int flags) {
    sigset_t signals;
    sigemptyset(&signals);
    int got = signalfd(fd, &signals, flags);
    if (got >= 0 && fd < 0) gain(&ledger_site_signalfd, 0);
    return got;
}

#define TWO_FDS(name, parameters, call)                                                                           \
    SITE(site_##name, "fd")                                                                                       \
    static NOINLINE int site_##name parameters {                                                                  \
        int got = call;                                                                                           \
        if (got == 0) gain(&ledger_site_##name, 0), gain(&ledger_site_##name, 0);                                 \
        return got;                                                                                               \
    }

TWO_FDS(pipe, (int *fds), pipe(fds))
TWO_FDS(pipe2, (int *fds, int flags), pipe2(fds, flags))
TWO_FDS(socketpair, (int domain, int *fds), socketpair(domain, SOCK_STREAM, 0, fds))

static int listener(struct sockaddr_in *address) {
    socklen_t length = sizeof *address;
    int fd = site_socket(AF_INET);
    *address = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    CHECK(bind(fd, (struct sockaddr *)address, length) == 0 && listen(fd, 8) == 0);
    CHECK(getsockname(fd, (struct sockaddr *)address, &length) == 0);
    return fd;
}

static int connected(const struct sockaddr_in *address) {
    int fd = site_socket(AF_INET);
    CHECK(connect(fd, (const struct sockaddr *)address, sizeof *address) == 0);
    return fd;
}

static int pair[2], opened, replaced;

static void fd_acquire(void) {
    int fds[2];
    struct sockaddr_in address;
    int server = listener(&address);
    CHECK((opened = site_open("/dev/null")) >= 0 && site_openat("/dev/zero") >= 0 && site_raw("/dev/full") >= 0);
    char path[] = "/tmp/resources-XXXXXX";
    CHECK(close(mkstemp(path)) == 0 && site_creat(path) >= 0 && unlink(path) == 0);
    connected(&address), connected(&address);
    CHECK(site_accept(server) >= 0 && site_accept4(server) >= 0);
    CHECK(site_dup(opened) >= 0 && site_dup2(opened, 200) == 200 && site_dup3(opened, 201) == 201);
    CHECK(site_pipe(pair) == 0 && site_pipe2(fds, O_CLOEXEC) == 0 && site_socketpair(AF_UNIX, fds) == 0);
    CHECK(site_eventfd(0) >= 0 && site_epoll_create(1) >= 0 && site_epoll_create1(0) >= 0);
    int signals = site_signalfd(-1, 0);
    CHECK(signals >= 0 && site_signalfd(signals, 0) == signals); // the second changes the first
    CHECK(site_timerfd(CLOCK_MONOTONIC) >= 0 && site_inotify_init() >= 0 && site_inotify_init1(0) >= 0);
    CHECK(site_memfd(0) >= 0 && site_fcntl(opened, F_DUPFD) >= 0 && site_fcntl(opened, F_DUPFD_CLOEXEC) >= 0);
    CHECK(fcntl(opened, F_GETFD) == 0); // fcntl, and no new descriptor
    // Descriptor 0 is one like any other.
    int input = dup(0);
    CHECK(input > 0 && close(0) == 0 && site_open("/dev/null") == 0);
    CHECK(site_dup2(input, 0) == 0 && close(input) == 0);
    lose(&ledger_site_open, 0); // it was replaced
}

static void fd_fail(void) {
    int unused[2];
    CHECK(site_open(GONE) < 0 && site_openat(GONE) < 0 && site_raw(GONE) < 0 && site_creat(GONE) < 0);
    CHECK(site_socket(-1) < 0 && site_accept(opened) < 0 && site_accept4(-1) < 0 && site_dup(-1) < 0);
    CHECK(site_dup2(-1, 200) < 0 && site_dup3(opened, opened) < 0); // 200 stays as it is
    CHECK(dup2(opened, opened) == opened);                          // does nothing
    CHECK(site_pipe2(unused, -1) < 0 && site_socketpair(-1, unused) < 0 && site_eventfd(-1) < 0);
    CHECK(site_epoll_create(-1) < 0 && site_epoll_create1(-1) < 0 && site_signalfd(-1, -1) < 0);
    CHECK(site_timerfd(-1) < 0 && site_inotify_init1(-1) < 0 && site_memfd(~0u) < 0 && site_fcntl(-1, F_DUPFD) < 0);
    struct rlimit limit, none;
    CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    none = limit, none.rlim_cur = 0;
    CHECK(setrlimit(RLIMIT_NOFILE, &none) == 0);
    CHECK(site_open("/dev/null") < 0 && site_pipe(unused) < 0 && site_dup(opened) < 0);
    CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
}

static void fd_release(void) {
    CHECK(close(opened) == 0 && close(opened) < 0); // the second releases nothing
    lose(&ledger_site_open, 0);
    replaced = site_openat("/dev/null"); // often the same number
    CHECK(close(-1) < 0 && close(100000) < 0);
    CHECK(site_dup2(replaced, 201) == 201); // what 201 was is released
    lose(&ledger_site_dup3, 0);
    CHECK(syscall(SYS_close_range, pair[0], pair[0], 0) == 0);
    lose(&ledger_site_pipe, 0);
    CHECK(syscall(SYS_close_range, pair[1], pair[1], 4) == 0); // CLOSE_RANGE_CLOEXEC closes nothing
    CHECK(syscall(SYS_close_range, 200, ~0u, 0) == 0);
    lose(&ledger_site_dup2, 0), lose(&ledger_site_dup2, 0);
}

// ---- file, dir

#define STREAM(name, parameters, call) ACQUIRE(name, "file", FILE *, parameters, call, got != NULL)

STREAM(fopen, (const char *path), fopen(path, "r"))
STREAM(fdopen, (int fd), fdopen(fd, "r"))
STREAM(freopen, (const char *path, FILE *old), freopen(path, "r", old))
STREAM(tmpfile, (void), tmpfile())
STREAM(popen, (const char *command), popen(command, "r"))
static char *memory;
static size_t memory_size;
STREAM(open_memstream, (void), open_memstream(&memory, &memory_size))

static FILE *stream, *second;

static void file_acquire(void) {
    CHECK((stream = site_fopen("/dev/null")) && (second = site_fopen("/dev/zero")) && site_fopen("/dev/full"));
    CHECK(site_fdopen(open("/dev/null", O_RDONLY)) && site_tmpfile() && site_open_memstream());
    FILE *pipe = site_popen("exit 3"), *another = site_popen("true");
    CHECK(pipe && another && pclose(pipe) == 3 << 8);
    lose(&ledger_site_popen, 0);
    CHECK(site_freopen("/dev/zero", second) == second);
    lose(&ledger_site_fopen, 0);
}

static void file_fail(void) {
    CHECK(!site_fopen(GONE) && !site_fdopen(-1) && !fopen("/dev/null", "?"));
}

static void file_release(void) {
    CHECK(fclose(stream) == 0 && site_fopen("/dev/null")); // often the same address
    lose(&ledger_site_fopen, 0);
    CHECK(!site_freopen(GONE, second)); // what it was is closed all the same
    lose(&ledger_site_freopen, 0);
}

ACQUIRE(opendir, "dir", DIR *, (const char *path), opendir(path), got != NULL)
ACQUIRE(fdopendir, "dir", DIR *, (int fd), fdopendir(fd), got != NULL)

static DIR *directory;

static void dir_acquire(void) {
    CHECK((directory = site_opendir("/")) && site_opendir("/tmp") && site_opendir("/proc"));
    CHECK(site_fdopendir(open("/", O_RDONLY | O_DIRECTORY)));
}

static void dir_fail(void) { CHECK(!site_opendir(GONE) && !site_opendir("/dev/null") && !site_fdopendir(-1)); }

static void dir_release(void) {
    DIR *volatile none = NULL;
    CHECK(closedir(directory) == 0 && closedir(none) < 0);
    lose(&ledger_site_opendir, 0);
    CHECK(site_opendir("/dev")); // often the same address
}

// ---- sqlite, sqlite-stmt

typedef struct sqlite3 sqlite3;
typedef struct sqlite3_stmt sqlite3_stmt;
int sqlite3_open(const char *, sqlite3 **), sqlite3_open_v2(const char *, sqlite3 **, int, const char *);
int sqlite3_open16(const void *, sqlite3 **), sqlite3_close(sqlite3 *), sqlite3_close_v2(sqlite3 *);
int sqlite3_prepare(sqlite3 *, const char *, int, sqlite3_stmt **, const char **);
int sqlite3_prepare_v2(sqlite3 *, const char *, int, sqlite3_stmt **, const char **);
int sqlite3_prepare_v3(sqlite3 *, const char *, int, unsigned, sqlite3_stmt **, const char **);
int sqlite3_prepare16_v2(sqlite3 *, const void *, int, sqlite3_stmt **, const void **);
int sqlite3_finalize(sqlite3_stmt *), sqlite3_step(sqlite3_stmt *);
int sqlite3_exec(sqlite3 *, const char *, int (*)(void *, int, char **, char **), void *, char **);

// A handle where an argument says.
#define BEHIND(name, resource, type, parameters, call)                                                            \
    SITE(site_##name, resource)                                                                                   \
    static NOINLINE type site_##name parameters {                                                                 \
        type got = NULL;                                                                                          \
        call;                                                                                                     \
        if (got != NULL) gain(&ledger_site_##name, 0);                                                            \
        return got;                                                                                               \
    }

BEHIND(sqlite_open, "sqlite", sqlite3 *, (const char *path), sqlite3_open(path, &got))
BEHIND(sqlite_open_v2, "sqlite", sqlite3 *, (const char *path, int flags), sqlite3_open_v2(path, &got, flags, NULL))
BEHIND(sqlite_open16, "sqlite", sqlite3 *, (const char16_t *path), sqlite3_open16(path, &got))
BEHIND(prepare, "sqlite-stmt", sqlite3_stmt *, (sqlite3 *db, const char *sql), sqlite3_prepare(db, sql, -1, &got, NULL))
BEHIND(prepare_v2, "sqlite-stmt", sqlite3_stmt *, (sqlite3 *db, const char *sql),
       sqlite3_prepare_v2(db, sql, -1, &got, NULL))
BEHIND(prepare_v3, "sqlite-stmt", sqlite3_stmt *, (sqlite3 *db, const char *sql),
       sqlite3_prepare_v3(db, sql, -1, 0, &got, NULL))
BEHIND(prepare16, "sqlite-stmt", sqlite3_stmt *, (sqlite3 *db, const char16_t *sql),
       sqlite3_prepare16_v2(db, sql, -1, &got, NULL))

static sqlite3 *database;
static sqlite3_stmt *statement;

static void sqlite_acquire(void) {
    CHECK((database = site_sqlite_open(":memory:")) && site_sqlite_open(":memory:"));
    CHECK(site_sqlite_open_v2(":memory:", 6) && site_sqlite_open16(u":memory:"));
}

// A connection that could not be opened is to be closed, too.
static void sqlite_fail(void) {
    sqlite3 *failed = site_sqlite_open_v2(GONE, 1);
    CHECK(failed && sqlite3_close(failed) == 0);
    lose(&ledger_site_sqlite_open_v2, 0);
}

static void sqlite_release(void) {
    sqlite3_stmt *busy = NULL;
    CHECK(sqlite3_prepare_v2(database, "select 1", -1, &busy, NULL) == 0);
    CHECK(sqlite3_close(database) != 0); // SQLITE_BUSY: still open
    CHECK(sqlite3_finalize(busy) == 0 && sqlite3_close(database) == 0 && sqlite3_close(NULL) == 0);
    lose(&ledger_site_sqlite_open, 0);
    CHECK(site_sqlite_open_v2(":memory:", 6)); // often the same address
}

static void statement_acquire(void) {
    CHECK(sqlite3_open(":memory:", &database) == 0);
    CHECK((statement = site_prepare(database, "select 1")) && site_prepare_v2(database, "select 2"));
    CHECK(site_prepare_v3(database, "select 3") && site_prepare16(database, u"select 4"));
    // sqlite3_exec has statements of its own, and so has a change of the schema.
    CHECK(sqlite3_exec(database, "create table t (a); insert into t values (1); select * from t", NULL, NULL, NULL) == 0);
    sqlite3_stmt *stale = site_prepare_v2(database, "select a from t");
    CHECK(sqlite3_exec(database, "alter table t add column b; analyze; vacuum", NULL, NULL, NULL) == 0);
    CHECK(sqlite3_step(stale) == 100); // SQLITE_ROW, after it was prepared anew
}

static void statement_fail(void) {
    CHECK(!site_prepare(database, "nonsense") && !site_prepare_v2(database, "select * from nothing"));
    CHECK(!site_prepare_v3(database, "") && !site_prepare16(database, u"-- nothing"));
    CHECK(sqlite3_exec(database, "select * from nothing", NULL, NULL, NULL) != 0);
}

static void statement_release(void) {
    CHECK(sqlite3_finalize(statement) == 0 && sqlite3_finalize(NULL) == 0);
    lose(&ledger_site_prepare, 0);
    CHECK(site_prepare_v2(database, "select 5"));
}

// ---- thread

static pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;

static void *returns(void *argument) { return argument; }
static int returns_int(void *argument) { return argument != NULL; }
static void *detaches_itself(void *argument) {
    CHECK(pthread_detach(pthread_self()) == 0);
    return argument;
}
static void *waits(void *argument) {
    pthread_mutex_lock(&gate), pthread_mutex_unlock(&gate);
    return argument;
}

SITE(site_pthread_create, "thread")
static NOINLINE pthread_t site_pthread_create(const pthread_attr_t *attributes, void *(*run)(void *)) {
    pthread_t thread;
    CHECK(pthread_create(&thread, attributes, run, NULL) == 0);
    gain(&ledger_site_pthread_create, 0);
    return thread;
}

SITE(site_thrd_create, "thread")
static NOINLINE thrd_t site_thrd_create(void) {
    thrd_t thread;
    CHECK(thrd_create(&thread, returns_int, NULL) == thrd_success);
    gain(&ledger_site_thrd_create, 0);
    return thread;
}

static pthread_t joined, waiting, detached;

static void thread_acquire(void) {
    pthread_attr_t attributes;
    CHECK(pthread_mutex_lock(&gate) == 0);
    joined = site_pthread_create(NULL, returns), waiting = site_pthread_create(NULL, waits);
    detached = site_pthread_create(NULL, returns);
    CHECK(site_thrd_create());
    CHECK(thrd_join(site_thrd_create(), NULL) == thrd_success && thrd_detach(site_thrd_create()) == thrd_success);
    lose(&ledger_site_thrd_create, 0), lose(&ledger_site_thrd_create, 0);
    // Threads that are nobody's to join: born so, or by their own doing, perhaps before pthread_create has returned.
    CHECK(pthread_attr_init(&attributes) == 0);
    site_pthread_create(&attributes, returns); // attributes alone change nothing
    CHECK(pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED) == 0);
    for (int i = 0; i < 200; i++) {
        site_pthread_create(&attributes, returns), site_pthread_create(NULL, detaches_itself);
        lose(&ledger_site_pthread_create, 0), lose(&ledger_site_pthread_create, 0);
    }
}

static void thread_fail(void) {
    pthread_attr_t attributes;
    pthread_t none;
    CHECK(pthread_attr_init(&attributes) == 0 && pthread_attr_setstacksize(&attributes, 1ul << 46) == 0);
    CHECK(pthread_create(&none, &attributes, returns, NULL) != 0);
    CHECK(pthread_tryjoin_np(waiting, NULL) == EBUSY); // not released
}

static void thread_release(void) {
    CHECK(pthread_mutex_unlock(&gate) == 0);
    CHECK(pthread_join(joined, NULL) == 0 && pthread_join(waiting, NULL) == 0 && pthread_detach(detached) == 0);
    CHECK(pthread_join(pthread_self(), NULL) != 0); // EDEADLK
    for (int i = 0; i < 3; i++) lose(&ledger_site_pthread_create, 0);
    site_pthread_create(NULL, returns); // often the same address
}

// ---- mutex

static pthread_mutex_t plain = PTHREAD_MUTEX_INITIALIZER, tried = PTHREAD_MUTEX_INITIALIZER, recursive, checked;
static pthread_mutex_t timed = PTHREAD_MUTEX_INITIALIZER, shared = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t condition = PTHREAD_COND_INITIALIZER;
static int is_waiting;

#define LOCK(name, call) ACQUIRE(name, "mutex", int, (pthread_mutex_t * mutex), call, got == 0)

static const struct timespec soon = {.tv_sec = 1};
LOCK(lock, pthread_mutex_lock(mutex))
LOCK(trylock, pthread_mutex_trylock(mutex))
LOCK(timedlock, pthread_mutex_timedlock(mutex, &soon))

static void *waits_for_condition(void *argument) {
    CHECK(site_lock(&shared) == 0);
    is_waiting = 1;
    while (is_waiting) pthread_cond_wait(&condition, &shared); // holds it no more, while it waits
    CHECK(pthread_mutex_unlock(&shared) == 0);
    return argument;
}

static pthread_t waiter;

static void mutex_acquire(void) {
    pthread_mutexattr_t kind;
    CHECK(pthread_mutexattr_init(&kind) == 0 && pthread_mutexattr_settype(&kind, PTHREAD_MUTEX_RECURSIVE) == 0);
    CHECK(pthread_mutex_init(&recursive, &kind) == 0);
    CHECK(pthread_mutexattr_settype(&kind, PTHREAD_MUTEX_ERRORCHECK) == 0 && pthread_mutex_init(&checked, &kind) == 0);
    CHECK(site_lock(&plain) == 0 && site_trylock(&tried) == 0 && site_timedlock(&timed) == 0);
    CHECK(site_lock(&checked) == 0 && pthread_mutex_unlock(&checked) == 0);
    lose(&ledger_site_lock, 0);
    // Held three times, it is one that is held.
    CHECK(site_lock(&recursive) == 0 && pthread_mutex_lock(&recursive) == 0 && pthread_mutex_trylock(&recursive) == 0);
    CHECK(pthread_mutex_unlock(&recursive) == 0);
    CHECK(pthread_create(&waiter, NULL, waits_for_condition, NULL) == 0);
    for (int waits = 0; !waits;) { // it has the mutex, or waits
        CHECK(pthread_mutex_lock(&shared) == 0);
        waits = is_waiting;
        CHECK(pthread_mutex_unlock(&shared) == 0);
    }
    lose(&ledger_site_lock, 0);
}

static void mutex_fail(void) {
    CHECK(site_trylock(&plain) == EBUSY && site_timedlock(&timed) == ETIMEDOUT);
    CHECK(site_lock(&checked) == 0 && site_lock(&checked) == EDEADLK && pthread_mutex_unlock(&checked) == 0);
    lose(&ledger_site_lock, 0);
}

static void mutex_release(void) {
    CHECK(pthread_mutex_unlock(&plain) == 0 && pthread_mutex_unlock(&recursive) == 0); // once more is to come
    lose(&ledger_site_lock, 0);
    CHECK(pthread_mutex_unlock(&checked) == EPERM && pthread_mutex_unlock(&checked) == EPERM);
    CHECK(pthread_mutex_lock(&shared) == 0);
    is_waiting = 0;
    CHECK(pthread_cond_signal(&condition) == 0 && pthread_mutex_unlock(&shared) == 0);
    CHECK(pthread_join(waiter, NULL) == 0);
}

// ---- dl

ACQUIRE(dlopen, "dl", void *, (const char *name), dlopen(name, RTLD_NOW), got != NULL)

static void *thrice, *once;

static void dl_acquire(void) {
    CHECK((thrice = site_dlopen("libm.so.6")) && dlopen("libm.so.6", RTLD_NOW) == thrice);
    CHECK(dlopen("libm.so.6", RTLD_NOW) == thrice && (once = site_dlopen("libresolv.so.2")));
    CHECK(dlclose(thrice) == 0); // two are left
}

static void dl_fail(void) { CHECK(!site_dlopen(GONE)); }

static void dl_release(void) {
    CHECK(dlclose(once) == 0);
    lose(&ledger_site_dlopen, 0);
    CHECK(dlclose(thrice) == 0); // one is left
}

// ---- ssl

void *SSL_CTX_new(const void *), SSL_CTX_free(void *), *TLS_method(void), *SSL_new(void *), SSL_free(void *);
int SSL_up_ref(void *), SSL_CTX_up_ref(void *), BIO_up_ref(void *), X509_up_ref(void *), EVP_PKEY_up_ref(void *);
void *BIO_new(const void *), *BIO_s_mem(void), *X509_new(void), X509_free(void *), *EVP_PKEY_new(void);
void EVP_PKEY_free(void *), SSL_set_bio(void *, void *, void *), BIO_free_all(void *);
void SSL_set_connect_state(void *), SSL_set_accept_state(void *);
int BIO_free(void *), SSL_do_handshake(void *);

#define OBJECT(name, parameters, call) ACQUIRE(name, "ssl", void *, parameters, call, got != NULL)

OBJECT(SSL_CTX_new, (const void *method), SSL_CTX_new(method))
OBJECT(SSL_new, (void *context), SSL_new(context))
OBJECT(BIO_new, (const void *method), BIO_new(method))
OBJECT(X509_new, (void), X509_new())
OBJECT(EVP_PKEY_new, (void), EVP_PKEY_new())

static void *context, *connection, *certificate;

static void ssl_acquire(void) {
    CHECK((context = site_SSL_CTX_new(TLS_method())) && (connection = site_SSL_new(context)));
    CHECK(site_BIO_new(BIO_s_mem()) && (certificate = site_X509_new()) && site_EVP_PKEY_new());
    CHECK(X509_up_ref(certificate) == 1);
    void *chain = site_BIO_new(BIO_s_mem());
    BIO_free_all(chain);
    lose(&ledger_site_BIO_new, 0);
    // A connection owns its BIOs, and a handshake that gets no answer makes objects of its own.
    void *client = site_SSL_new(context), *in = site_BIO_new(BIO_s_mem()), *out = site_BIO_new(BIO_s_mem());
    SSL_set_bio(client, in, out), SSL_set_connect_state(client);
    CHECK(SSL_do_handshake(client) != 1);
    SSL_free(client);
    lose(&ledger_site_SSL_new, 0), lose(&ledger_site_BIO_new, 0), lose(&ledger_site_BIO_new, 0);
}

static void ssl_fail(void) { CHECK(!site_SSL_CTX_new(NULL) && !site_SSL_new(NULL)); }

static void ssl_release(void) {
    SSL_CTX_free(context); // the connection has it still
    SSL_free(NULL), X509_free(NULL), BIO_free(NULL), EVP_PKEY_free(NULL), SSL_CTX_free(NULL);
    X509_free(certificate); // one reference is left
    void *another = site_X509_new();
    X509_free(another);
    lose(&ledger_site_X509_new, 0);
}

// ---- python: its functions, called from outside as an extension module does. (Within Python's own code compilers
// put copies of them in place of calls, which nobody can probe.)

static void *(*py_malloc[3])(size_t), *(*py_calloc[3])(size_t, size_t), *(*py_realloc[3])(void *, size_t);
static void (*py_free[3])(void *);

SITE(site_python_malloc, "python")
static NOINLINE void *site_python_malloc(int domain, size_t n) {
    return noted(&ledger_site_python_malloc, py_malloc[domain](n), n);
}

SITE(site_python_calloc, "python")
static NOINLINE void *site_python_calloc(int domain, size_t n, size_t m) {
    return noted(&ledger_site_python_calloc, py_calloc[domain](n, m), n * m);
}

SITE(site_python_realloc, "python")
static NOINLINE void *site_python_realloc(int domain, void *old, size_t n) {
    return noted(&ledger_site_python_realloc, py_realloc[domain](old, n), n);
}

static void python_prepare(void) {
    void *library = NULL;
    for (int version = 8; version < 20 && !library; version++) {
        char name[32];
        snprintf(name, sizeof name, "libpython3.%d.so.1.0", version);
        library = dlopen(name, RTLD_NOW | RTLD_GLOBAL);
    }
    CHECK(library);
    void (*initialize)(int) = dlsym(library, "Py_InitializeEx");
    initialize(0);
    static const char *domains[3] = {"PyMem_Raw", "PyMem_", "PyObject_"};
    for (int domain = 0; domain < 3; domain++) {
        char name[32];
#define FIND(where, what)                                                                                         \
    snprintf(name, sizeof name, "%s" what, domains[domain]);                                                      \
    CHECK((*(void **)&where[domain] = dlsym(library, name)) != NULL)
        FIND(py_malloc, "Malloc");
        FIND(py_calloc, "Calloc");
        FIND(py_realloc, "Realloc");
        FIND(py_free, "Free");
    }
}

static void *blocks[3];

static void python_acquire(void) {
    for (int domain = 0; domain < 3; domain++) {
        CHECK(site_python_malloc(domain, 100) && site_python_calloc(domain, 7, 30));
        CHECK((blocks[domain] = site_python_malloc(domain, 5000)) && site_python_malloc(domain, 0));
        void *moved = site_python_malloc(domain, 60);
        CHECK(moved && site_python_realloc(domain, moved, 90000) && site_python_realloc(domain, NULL, 33));
        lose(&ledger_site_python_malloc, 60);
    }
}

static void python_fail(void) {
    for (int domain = 0; domain < 3; domain++) {
        CHECK(!site_python_malloc(domain, impossible_size) && !site_python_calloc(domain, impossible_size, 2));
        CHECK(!site_python_realloc(domain, blocks[domain], impossible_size)); // the old block stays
    }
}

static void python_release(void) {
    for (int domain = 0; domain < 3; domain++) {
        py_free[domain](blocks[domain]), py_free[domain](NULL);
        lose(&ledger_site_python_malloc, 5000);
        CHECK(site_python_malloc(domain, 5000)); // often the same address
    }
}

static void nothing(void) {}

static const struct {
    const char *name;
    void (*phases[3])(void);
    void (*prepare)(void);
} resources[] = {
    {"fd", {fd_acquire, fd_fail, fd_release}, nothing},
    {"file", {file_acquire, file_fail, file_release}, nothing},
    {"dir", {dir_acquire, dir_fail, dir_release}, nothing},
    {"sqlite", {sqlite_acquire, sqlite_fail, sqlite_release}, nothing},
    {"sqlite-stmt", {statement_acquire, statement_fail, statement_release}, nothing},
    {"thread", {thread_acquire, thread_fail, thread_release}, nothing},
    {"mutex", {mutex_acquire, mutex_fail, mutex_release}, nothing},
    {"dl", {dl_acquire, dl_fail, dl_release}, nothing},
    {"ssl", {ssl_acquire, ssl_fail, ssl_release}, nothing},
    {"python", {python_acquire, python_fail, python_release}, python_prepare},
};

int main(int argc, char **argv) {
    CHECK(argc == 2);
    for (size_t i = 0; i < sizeof resources / sizeof *resources; i++) {
        if (strcmp(resources[i].name, argv[1]) != 0) continue;
        resources[i].prepare();
        say("READY");
        for (int phase = 0; phase < 3; phase++) {
            hear();
            resources[i].phases[phase]();
            say_ledger();
        }
        hear();
        return 0;
    }
    die("no such resource");
}
