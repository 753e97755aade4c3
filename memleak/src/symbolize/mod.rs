//! Addresses of a process, or of the kernel, turned into frames: function, offset, source line,
//! inlined callers.

pub mod demangle;
mod dlang;
mod dwarf;
mod identity;
mod kernel;
mod mapped;
mod members;
mod object;
mod perf_map;
mod reader;
mod regions;
mod scopes;
mod symbolizer;
mod symbols;

pub use crate::proc::target::{LiveTarget, Target};
pub use identity::{Anchor, ObjectNumber};
pub use kernel::{KernelSymbols, KernelSymbolsError, KernelTexts};
pub use mapped::Observed;
pub(crate) use members::WRAPPERS;
pub use members::{Holder, MemberAt, PointsTo, plain};
pub use object::Variable;
pub use symbolizer::{Location, Symbolizer, SymbolizerOptions};

/// Why a frame has no function name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum NoSymbol {
    /// No mapping of the process held the address.
    Unmapped,
    /// The mapping is not a file and no perf map names it (JIT code).
    Anonymous,
    /// What was mapped there when the stack was recorded was not seen in time.
    Uncertain,
    /// The file could not be opened or is not an ELF file that we can read.
    UnreadableObject,
    /// The object has no symbol that covers the address (stripped, no debug file found).
    NotInSymbolTable,
}

/// One frame, symbolized. An address with inlined calls gives several, innermost first, all but the
/// last `inlined`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Frame {
    /// The return address.
    pub ip: u64,
    /// Path of the object as the target names it (`[vdso]`, `[perf map]` if it has none).
    pub module: Option<String>,
    /// `ip` as an address of the object: minus its load bias.
    pub offset: Option<u64>,
    /// Demangled name.
    pub function: Option<String>,
    /// The name as the symbol table has it.
    pub symbol: Option<String>,
    /// `ip` minus the function's start. For an inlined function that of the function it was inlined
    /// into.
    pub function_offset: Option<u64>,
    /// Source file as the debug information names it.
    pub file: Option<String>,
    /// The folder that `file` is in, if that is not a whole path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub directory: Option<String>,
    /// Source line of the call.
    pub line: Option<u32>,
    /// The function was inlined into the next frame's.
    pub inlined: bool,
    /// Why there is no function.
    pub no_symbol: Option<NoSymbol>,
    /// Of a function of Rust's library, whose linkage name may leave them out: its name with its
    /// generic arguments, `new<app::Session>`. Not kept in files.
    #[serde(skip)]
    pub with_arguments: Option<String>,
}

impl Frame {
    /// A place of which no function is known, in an object or in none.
    pub fn without_function(ip: u64, module: Option<String>, offset: Option<u64>, why: NoSymbol) -> Self {
        Self {
            ip,
            module,
            offset,
            function: None,
            symbol: None,
            function_offset: None,
            file: None,
            directory: None,
            line: None,
            inlined: false,
            no_symbol: Some(why),
            with_arguments: None,
        }
    }
}
