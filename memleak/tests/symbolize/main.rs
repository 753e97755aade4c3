//! The symbolizer on real files: compiled here, and compared with what binutils says of them.

mod files;
mod hostile;
mod kernel;
mod live;
mod scopes;
mod tools;
