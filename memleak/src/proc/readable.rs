//! Descriptors that are waited for.

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
};

use tokio::io::{Interest, unix::AsyncFd};

/// Registers one of our descriptors for waiting until it is readable.
pub(crate) fn readable<F: AsFd + AsRawFd>(source: F) -> io::Result<AsyncFd<F>> {
    // SAFETY: `AsFd` says that the source holds its descriptor open; it is moved into what is
    // returned.
    unsafe { AsyncFd::register_with_interest(source, Interest::READABLE) }.map_err(io::Error::from)
}
