//! The media format: golden bytes, the document, and decoders on bytes of any kind.

#![expect(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

mod decoders;
mod document;
mod golden;
mod samples;
