//! Scrub as the layers above see it.

use crate::store::ScrubStatus;

use super::Array;

impl Array {
    /// Begins a scrub at its start; whoever calls the store's steps carries it out.
    pub fn start_scrub(&self) -> ScrubStatus {
        self.store.start_scrub();
        self.store.scrub_status()
    }

    /// Ends the scrub that is under way, if one is.
    pub fn stop_scrub(&self) -> ScrubStatus {
        self.store.stop_scrub();
        self.store.scrub_status()
    }

    /// How far the newest scrub has come, and what it has found.
    #[must_use]
    pub fn scrub_status(&self) -> ScrubStatus {
        self.store.scrub_status()
    }
}
