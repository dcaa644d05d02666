//! The log and the segments that it, collection and checkpoints write into.

pub(crate) mod appender;
pub(crate) mod open_log;
pub(crate) mod segments;
pub(crate) mod victims;
pub(crate) mod wear;
