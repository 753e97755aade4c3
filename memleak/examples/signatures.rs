//! Prints lines for the table of signatures (`memleak/src/target/signatures.txt`): those of the
//! functions of a program at these addresses. `cargo xtask signatures` starts it.
//!
//! signatures PROGRAM FUNCTION=ADDRESS...

use std::{io, path::PathBuf};

use memleak::target::signatures::describe;

fn main() -> io::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let program = PathBuf::from(arguments.next().unwrap_or_default());
    let function = |argument: String| {
        let (name, vaddr) = argument.split_once('=')?;
        Some((name.to_owned(), u64::from_str_radix(vaddr, 16).ok()?))
    };
    let functions: Option<Vec<_>> = arguments.map(function).collect();
    let functions = functions.ok_or_else(|| io::Error::other("PROGRAM FUNCTION=ADDRESS..."))?;
    for line in describe(&program, &functions)? {
        println!("{line}");
    }
    Ok(())
}
