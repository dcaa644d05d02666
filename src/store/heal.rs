//! Blocks whose stored bytes have failed their check, and writing them anew where somebody else has them.
//!
//! A block that is healed keeps its id: everything that refers to it is good again. It goes the way of one that
//! collection moves, so nothing is logged; after a crash before the next checkpoint the damaged place counts again, and
//! is found damaged again.

use crate::error::{Error, ErrorKind, Result};
use crate::format::checksum;
use crate::units::{BLOCK_BYTES, BlockId, Fingerprint};

use super::Store;
use super::fingerprint::fingerprint;
use super::reduce::{compress, decompress};
use super::run::Caller;

impl Store {
    /// Some of the blocks that have failed their check and not been written anew since, and what they should be.
    #[must_use]
    pub fn bad_blocks(&self, most: usize) -> Vec<(BlockId, Fingerprint)> {
        let ids: Vec<u64> = self.core.lock().bad_blocks.iter().copied().take(most).collect();
        let known = |id: u64| {
            let entry = self.run(Caller::Request, |core| core.block_entry(BlockId(id))).ok()?;
            (!entry.location.is_none()).then_some((BlockId(id), entry.fingerprint))
        };
        ids.into_iter().filter_map(known).collect()
    }

    /// Writes a block that has failed its check to another place, from stored bytes that somebody else had of it;
    /// whether it is good now: not where it is another one by now, or would be stored otherwise.
    ///
    /// # Errors
    /// `Corrupt` for bytes that are not this block; `Stopped`, `NoSpace`, `Device`.
    pub fn heal(&self, block: BlockId, named: &Fingerprint, stored: &[u8]) -> Result<bool> {
        let mut content = [0u8; BLOCK_BYTES];
        let known = decompress(stored, &mut content)
            && fingerprint(&self.identity.fingerprint_key, &content) == *named;
        if !known {
            let what = format!("what was brought for block {block} is another block");
            return Err(Error::new(ErrorKind::Corrupt, what));
        }
        let entry = self.run(Caller::Request, |core| core.block_entry(block))?;
        if entry.location.is_none() || entry.fingerprint != *named {
            return Ok(false);
        }
        // Whoever had it may have stored it otherwise than it was stored here.
        let mut packed = Vec::new();
        compress(&content, &mut packed);
        let here = |bytes: &&[u8]| {
            bytes.len() == usize::from(entry.location.len) && checksum(bytes) == entry.checksum
        };
        let Some(bytes) = [stored, packed.as_slice()].into_iter().find(here) else { return Ok(false) };
        while !self.begin_maintenance_or_wait()? {}
        let moved = self.move_anew(block, entry, bytes);
        self.end_maintenance();
        if !moved? {
            return Ok(false);
        }
        self.core.lock().bad_blocks.remove(&block.0);
        self.scrub.lock().note_healed();
        Ok(true)
    }
}
