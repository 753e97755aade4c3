//! The resources `sqlite`, `sqlite-stmt`, `ssl` and `python`: libraries' own objects.

use memleak_common::probe::{ProbeRow, Resource, flags, size, success};

use super::{Role, Row, Scope, if_equal, of, releases, returns, row, stores, takes, with};

/// sqlite.org/c3ref/open.html: a connection that could not be opened is to be closed all the same,
/// so it counts.
const SQLITE: ProbeRow = of(Resource::Sqlite, 0);
/// sqlite3_close returns SQLITE_BUSY and closes nothing while statements are left.
const SQLITE_CLOSE: ProbeRow = if_equal(releases(SQLITE, 0), 0);

/// sqlite.org/c3ref/prepare.html, finalize.html
const STATEMENT: ProbeRow = of(Resource::SqliteStmt, 0);
/// sqlite3_exec prepares statements by the function that is probed and ends them by one that is
/// not.
const STATEMENTS_WITHIN: ProbeRow = ProbeRow { success: success::ALWAYS, ..STATEMENT };

/// OpenSSL's objects are counted, each kind for itself: one kind holds references to another.
/// Manual pages SSL_new(3), SSL_CTX_new(3), BIO_new(3), X509_new(3), EVP_PKEY_new(3).
const fn ssl(kind: u8) -> ProbeRow {
    with(of(Resource::Ssl, kind), flags::COUNTED)
}

const SSL: ProbeRow = ssl(0);
const SSL_CTX: ProbeRow = ssl(1);
const BIO: ProbeRow = ssl(2);
const X509: ProbeRow = ssl(3);
const PKEY: ProbeRow = ssl(4);

/// docs.python.org/3/c-api/memory.html. The domains call each other: the outermost counts. A size
/// of 0 gives a block like any other.
const PYTHON: ProbeRow = of(Resource::Python, 0);
const PYTHON_MALLOC: ProbeRow = ProbeRow { size: size::ARG, size_arg: 0, ..returns(PYTHON) };
const PYTHON_CALLOC: ProbeRow =
    ProbeRow { size: size::PRODUCT, size_arg: 0, size_arg2: 1, ..returns(PYTHON) };
const PYTHON_REALLOC: ProbeRow = ProbeRow { size: size::ARG, size_arg: 1, ..releases(returns(PYTHON), 0) };
const PYTHON_FREE: ProbeRow = releases(PYTHON, 0);

const fn acquire(function: &'static str, probe: ProbeRow) -> Row {
    row(function, Role::Acquire, Scope::Anywhere, probe)
}

const fn resize(function: &'static str, probe: ProbeRow) -> Row {
    row(function, Role::Resize, Scope::Anywhere, probe)
}

const fn release(function: &'static str, probe: ProbeRow) -> Row {
    row(function, Role::Release, Scope::Anywhere, probe)
}

const fn fallible_release(function: &'static str, probe: ProbeRow) -> Row {
    row(function, Role::FallibleRelease, Scope::Anywhere, probe)
}

/// In no order that matters.
pub(super) const ROWS: &[Row] = &[
    acquire("sqlite3_open", stores(SQLITE, 1)),
    acquire("sqlite3_open_v2", stores(SQLITE, 1)),
    acquire("sqlite3_open16", stores(SQLITE, 1)),
    fallible_release("sqlite3_close", SQLITE_CLOSE),
    fallible_release("sqlite3_close_v2", SQLITE_CLOSE),
    acquire("sqlite3_prepare", stores(STATEMENT, 3)),
    acquire("sqlite3_prepare_v2", stores(STATEMENT, 3)),
    acquire("sqlite3_prepare_v3", stores(STATEMENT, 4)),
    acquire("sqlite3_prepare16", stores(STATEMENT, 3)),
    acquire("sqlite3_prepare16_v2", stores(STATEMENT, 3)),
    acquire("sqlite3_prepare16_v3", stores(STATEMENT, 4)),
    release("sqlite3_finalize", releases(STATEMENT, 0)),
    row("sqlite3_exec", Role::Shield, Scope::Anywhere, STATEMENTS_WITHIN),
    acquire("SSL_new", returns(SSL)),
    acquire("SSL_up_ref", takes(SSL, 0, 1)),
    release("SSL_free", releases(SSL, 0)),
    acquire("SSL_CTX_new", returns(SSL_CTX)),
    acquire("SSL_CTX_new_ex", returns(SSL_CTX)),
    acquire("SSL_CTX_up_ref", takes(SSL_CTX, 0, 1)),
    release("SSL_CTX_free", releases(SSL_CTX, 0)),
    acquire("BIO_new", returns(BIO)),
    acquire("BIO_new_ex", returns(BIO)),
    acquire("BIO_up_ref", takes(BIO, 0, 1)),
    release("BIO_free", releases(BIO, 0)),
    acquire("X509_new", returns(X509)),
    acquire("X509_new_ex", returns(X509)),
    acquire("X509_up_ref", takes(X509, 0, 1)),
    release("X509_free", releases(X509, 0)),
    acquire("EVP_PKEY_new", returns(PKEY)),
    acquire("EVP_PKEY_up_ref", takes(PKEY, 0, 1)),
    release("EVP_PKEY_free", releases(PKEY, 0)),
    acquire("PyMem_RawMalloc", PYTHON_MALLOC),
    acquire("PyMem_RawCalloc", PYTHON_CALLOC),
    resize("PyMem_RawRealloc", PYTHON_REALLOC),
    release("PyMem_RawFree", PYTHON_FREE),
    acquire("PyMem_Malloc", PYTHON_MALLOC),
    acquire("PyMem_Calloc", PYTHON_CALLOC),
    resize("PyMem_Realloc", PYTHON_REALLOC),
    release("PyMem_Free", PYTHON_FREE),
    acquire("PyObject_Malloc", PYTHON_MALLOC),
    acquire("PyObject_Calloc", PYTHON_CALLOC),
    resize("PyObject_Realloc", PYTHON_REALLOC),
    release("PyObject_Free", PYTHON_FREE),
];
