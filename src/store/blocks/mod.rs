//! Blocks: the table that says where they are, their reference counts, and the fingerprint index.

pub(crate) mod changes;
pub(crate) mod ids;
pub(crate) mod index;
mod neighbours;
pub(crate) mod rebuild;
pub(crate) mod table;
