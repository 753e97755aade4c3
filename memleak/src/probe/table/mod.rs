//! Every function that is probed: one row each, data only. A row's index is the attach cookie and
//! its place in the map `PROBES`. Nothing else in the program knows a function by name.

mod allocators;
mod c_library;
mod control;
mod libraries;
mod memory;
mod row;
pub(crate) mod system_calls;
mod threads;
mod usdt;

use std::sync::LazyLock;

pub use row::{DEFAULT_RESOURCES, Role, Row, Scope};
pub(in crate::probe::table) use row::{if_equal, of, releases, returns, row, stores, takes, with};

/// The table of all built-in resources. Users' rows come after it.
pub static TABLE: LazyLock<Vec<Row>> = LazyLock::new(|| {
    [
        memory::ROWS,
        allocators::ROWS,
        c_library::ROWS,
        threads::ROWS,
        libraries::ROWS,
        system_calls::ROWS,
        usdt::ROWS,
        control::ROWS,
    ]
    .concat()
});

#[cfg(test)]
mod tests;
