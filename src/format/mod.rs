//! Every structure on media, as bytes: the only module that turns one into the other.
//!
//! All numbers are little-endian. Decoders are total: they answer `None` for bytes that are no such
//! structure, never panic, and never allocate from a length that they have not checked.
//! `docs/ON-DISK-FORMAT.md` shows the layouts as rulers; a test compares it with the constants here.

pub mod batch;
pub mod bytes;
pub mod catalog;
pub mod cursor;
pub mod location;
pub mod objects;
pub mod operation;
pub mod page;
pub mod root;
pub mod segment;
pub mod superblock;
pub mod system;
pub mod unpack;

/// Version of the whole media format; a pool of another version is refused.
pub const FORMAT_VERSION: u16 = 4;

/// Everything in a segment starts at a multiple of this many bytes.
pub const GRAIN_BYTES: usize = 16;

/// What one sync covers never shares a stretch of this many bytes with a later write.
pub const SYNC_UNIT_BYTES: usize = 4096;

/// The checksum of all structures: XXH3, 64 bits, without a seed.
#[must_use]
pub fn checksum(bytes: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(bytes)
}

/// `len` rounded up to whole grains.
#[must_use]
pub fn to_grain(len: usize) -> usize {
    len.next_multiple_of(GRAIN_BYTES)
}
