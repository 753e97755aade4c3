//! Which functions are probed, and where: the table (data only), the placement of each probe, and
//! the plan that joins rows with the symbols of a target's objects.

mod error;
pub mod gaps;
pub(crate) mod kernel;
pub mod plan;
mod planner;
mod point;
pub mod resource;
pub mod spec;
pub mod table;
mod usdt;
