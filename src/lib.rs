//! Sinter, a virtual flash array: one daemon that pools devices or files, reduces data inline, and
//! serves thin volumes.
//!
//! The layers, top to bottom. A module names only modules on lines below its own; modules of one
//! line do not name each other; `main` sees all. `kmod-free-tests/tidy.rs` reads this diagram.
//!
//! ```text
//! cli
//! daemon
//! metrics
//! api export
//! replica
//! array
//! store
//! device format
//! error
//! units sync
//! ```

pub mod api;
pub mod array;
pub mod cli;
pub mod daemon;
pub mod device;
pub mod error;
pub mod export;
pub mod format;
pub mod metrics;
pub mod replica;
pub mod store;
pub mod sync;
pub mod units;
