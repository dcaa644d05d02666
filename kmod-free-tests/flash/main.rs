//! Space and flash: what collection costs, how evenly segments wear, and that space comes back.
//!
//! `SINTER_FLASH_ROUNDS` makes the long run longer, `SINTER_FLASH_SEED` runs it under another seed.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test ends where it cannot go on, and says what it did"
)]

mod load;
mod long_run;
mod scrub;
mod space;
mod wear;

use sinter::store::Store;

/// `check` finds nothing.
fn assert_sound(store: &Store) {
    let report = store.verify(&mut |_, _| {}).unwrap();
    assert!(report.faults.is_empty(), "{:#?}", &report.faults[..report.faults.len().min(8)]);
}
