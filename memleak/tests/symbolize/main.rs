//! The symbolizer on real files: compiled here, and compared with what binutils says of them.

mod files;
mod hostile;
mod live;
mod tools;
