//! What the tasks share with `bench/`: other programs are run, packages asked for, root's rights
//! taken in one way.

pub mod packages;
pub mod privilege;
pub mod run;
