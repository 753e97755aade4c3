//! Pairs of functions that users write, as plain data: `--acquire SPEC`, `--release SPEC` and the
//! files of `--resources-file`. [`parser`] reads one specification, [`toml`] a file of them,
//! [`mod@group`] puts them together.
//!
//! ```text
//! acquire   = head [ "(" [ size ] ")" ] "->" handle [ "," handle ]
//!             { "counted" | "releasing" handle } [ "if" condition ]
//! release   = head "(" handle ")" [ "if" condition ]
//! head      = [ name "=" ] [ object ":" ] function
//! size      = ( "none" | arg | arg "*" arg | number ) "size"
//! handle    = place [ "as" type ]
//! place     = "ret" | arg | "*" arg | "*" "(" arg [ ( "+" | "-" ) number ] ")"
//! condition = "ret" [ "as" type ] ( "==" | "!=" | "<" | "<=" | ">" | ">=" ) [ "-" ] number
//! arg       = "arg1" | "arg2" | "arg3" | "arg4" | "arg5" | "arg6"
//! type      = "int" | "long"
//! number    = decimal digits | "0x" hexadecimal digits
//! name      = 1 to 64 letters, digits and _ . $ -
//! function  = letters, digits and _ . $ : the symbol as nm(1) prints it, mangled if it is C++
//! object    = a path, a file name or a library's name as with -O; in double quotes if it holds a space or one of
//!             : = ( ) , " ; inside of them \ takes the next character as it is
//! ```
//!
//! White space between the words does not count. Arguments are counted from 1.

mod ast;
pub(crate) mod files;
mod group;
mod lexer;
mod parser;
mod rows;
pub mod toml;

#[cfg(test)]
mod property_tests;

pub use ast::{
    AcquireSpec, Comparison, Condition, Handle, Head, MAX_ARGUMENT, ReleaseSpec, Size, Spec, ValuePlace,
    Width,
};
pub use group::{GroupError, UserResource, group};
pub use parser::{
    SpecError, SpecKind, parse_acquire, parse_condition, parse_handle, parse_release, parse_size,
};
pub use rows::{RowError, rows};
