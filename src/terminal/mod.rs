//! Terminal output: lines, tables and progress. A closed pipe or a full disk is no panic.

pub mod chart;
pub mod out;
pub mod progress;
pub mod table;
