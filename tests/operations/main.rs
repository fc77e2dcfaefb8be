//! Every operation of the CPU device against its contract, written out in double precision as plainly as it reads.

mod case;
mod elementwise;
mod inner_adam;
mod losses;
mod low_rank;
mod normalise;
mod products;
mod rates;
mod updates;
