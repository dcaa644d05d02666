//! Paged arrays under one cache budget.

pub(crate) mod cache;
pub(crate) mod paged;
