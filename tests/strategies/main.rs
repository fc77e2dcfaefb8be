//! The inner loop's forms against each other, against finite differences and against what the algorithms say, on
//! random problems.

mod agreement;
mod calculus;
mod problems;
