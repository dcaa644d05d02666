//! The catalog's record: whatever reads as one has exactly that encoding.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sinter::format::catalog::Record;

fuzz_target!(|data: &[u8]| {
    if let Ok(record) = Record::decode(data) {
        assert_eq!(record.encode().expect("what was read can be written"), data);
    }
});
