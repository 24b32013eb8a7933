//! What is measured: the registry of names, sums that any distribution over ranks folds to the
//! same bits, tables of all samples' rows, and the judgement of which evaluation was best.

pub mod additive;
pub mod best;
pub mod registry;
pub mod table;
