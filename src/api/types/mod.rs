//! What goes over REST, as Rust types; the command line reads with the same ones, and the `OpenAPI` document
//! is made from them.
//!
//! Fields are named as clients see them. Sizes are bytes, ratios are finite, times are RFC 3339 in UTC.

mod analytics;
mod array;
mod cluster;
mod metrics;
mod mount;
mod problem;
mod snapshot;
mod status;
mod volume;

pub use analytics::*;
pub use array::*;
pub use cluster::*;
pub use metrics::*;
pub use mount::*;
pub use problem::*;
pub use snapshot::*;
pub use status::*;
pub use volume::*;
