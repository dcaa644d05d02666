//! The NBD handshake, fed as a connection feeds it: every message of a client, in one piece or cut short.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use sinter::array::service::BlockService;
use sinter::error::{Error, ErrorKind, Result};
use sinter::export::nbd::handshake::{Handshake, Step};
use sinter::export::nbd::{ExportEntry, ExportSource};

/// Lists one export, and has none.
struct Closed;

impl ExportSource for Closed {
    fn list(&self) -> Vec<ExportEntry> {
        vec![ExportEntry { name: "demo".to_owned(), description: "for fuzzing".to_owned() }]
    }

    fn open(&self, name: &str) -> Result<Arc<dyn BlockService>> {
        Err(Error::new(ErrorKind::NotFound, format!("there is no export {name}")))
    }
}

fuzz_target!(|data: &[u8]| {
    let mut handshake = Handshake::default();
    let mut rest = data;
    let mut output = Vec::new();
    loop {
        output.clear();
        match handshake.step(rest, &mut output, &Closed) {
            Step::Taken(taken) => {
                assert!(taken > 0 && taken <= rest.len());
                rest = &rest[taken..];
            }
            Step::More | Step::Close | Step::Go(..) => break,
        }
        // An answer is never out of proportion to what was asked.
        assert!(output.len() <= 64 * 1024);
    }
});
