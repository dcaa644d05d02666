//! No silent corruption: whatever is flipped, lost or misdirected on a device, every read is right or an error,
//! nothing panics, and nothing else is taken along.

#![expect(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

mod faults;
mod flips;
mod full;
mod layout;
mod pool;
