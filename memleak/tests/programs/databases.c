// Opens one database after the other, in files, and forgets to close every third; those have a statement left, too.
//
// usage: databases COUNT     phases: READY <go> <ledger> END <end>
#include "ledger.h"

typedef struct sqlite3 sqlite3;
typedef struct sqlite3_stmt sqlite3_stmt;
int sqlite3_open(const char *, sqlite3 **), sqlite3_close(sqlite3 *), sqlite3_finalize(sqlite3_stmt *);
int sqlite3_prepare_v2(sqlite3 *, const char *, int, sqlite3_stmt **, const char **), sqlite3_step(sqlite3_stmt *);
int sqlite3_exec(sqlite3 *, const char *, int (*)(void *, int, char **, char **), void *, char **);

static char path[] = "/tmp/databases-XXXXXX";

static struct site connections = {"site_open_database", "sqlite", 0, 0};
static struct site statements = {"site_open_database", "sqlite-stmt", 0, 0};
static struct site *entries[] __attribute__((section("ledger"), used)) = {&connections, &statements};

static NOINLINE sqlite3 *site_open_database(sqlite3_stmt **statement) {
    sqlite3 *database = NULL;
    CHECK(sqlite3_open(path, &database) == 0);
    CHECK(sqlite3_prepare_v2(database, "select count(*) from t", -1, statement, NULL) == 0);
    CHECK(sqlite3_step(*statement) == 100); // SQLITE_ROW: the file is open
    gain(&connections, 0), gain(&statements, 0);
    return database;
}

static NOINLINE void use_database(int number) {
    sqlite3_stmt *statement;
    sqlite3 *database = site_open_database(&statement);
    CHECK(sqlite3_exec(database, "select * from t", NULL, NULL, NULL) == 0);
    if (number % 3 == 0) return;
    CHECK(sqlite3_finalize(statement) == 0 && sqlite3_close(database) == 0);
    lose(&connections, 0), lose(&statements, 0);
}

int main(int argc, char **argv) {
    CHECK(argc == 2);
    sqlite3 *database = NULL;
    CHECK(close(mkstemp(path)) == 0 && sqlite3_open(path, &database) == 0);
    CHECK(sqlite3_exec(database, "create table t (a); insert into t values (1)", NULL, NULL, NULL) == 0);
    CHECK(sqlite3_close(database) == 0);
    say("READY");
    hear();
    for (int i = 0; i < atoi(argv[1]); i++) use_database(i);
    say_ledger();
    hear();
    unlink(path);
    return 0;
}
