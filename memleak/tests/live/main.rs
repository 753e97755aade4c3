//! Live tests: the built `memleak` on real programs, as root. Each target program keeps a ledger of
//! its own (`tests/programs/ledger.h`), and the tracer's report must equal it.
//!
//! A test takes the machine for itself ([`guard::alone`]) and leaves no process and no BPF program
//! behind. It waits for events (a line, a report, a process's end), never for a time to pass.

mod growth;
mod guard;
mod ledger;
mod machine;
mod process;
mod programs;
mod ranges;
mod raw_mappings;
mod report;
mod soak;
mod stack_storage;
mod tracer;

mod account;
mod allocator_forms;
mod allocator_sources;
mod allocators;
mod answers;
mod commands;
mod copied;
mod daemons;
mod decoded;
mod doctor;
mod ends;
mod errors;
mod exact;
mod fallback;
mod files;
mod harm;
mod headless;
mod histories;
mod hostile;
mod human;
mod kernel;
mod kernel_ends;
mod kernel_facts;
mod kinds;
mod life;
mod limits;
mod listen;
mod losses;
mod members;
mod moments;
mod options;
mod outputs;
mod prometheus;
mod push;
mod resources;
mod robust;
mod rust_allocators;
mod sampling;
mod sites;
mod table;
mod targets;
mod terminal_view;
mod units;
mod unusual;
mod unwinding;
mod usdt;
mod user_rows;
mod why;
mod why_inputs;
mod why_types;
