//! Where something is stored: segment, offset and length packed into 64 bits.
//!
//! ```text
//! bit  0        13                        41                61      64
//!      | length | offset in grains (28)   | segment (20)    | flags |
//! ```

use crate::units::SegmentId;

use super::GRAIN_BYTES;

const LENGTH_BITS: u32 = 13;
const OFFSET_BITS: u32 = 28;
const SEGMENT_BITS: u32 = 20;

/// Most segments of a pool.
pub const SEGMENTS_MAX: u32 = 1 << SEGMENT_BITS;

/// Longest thing that a location can name, in bytes.
pub const LOCATED_BYTES_MAX: usize = (1 << LENGTH_BITS) - 1;

/// A place in the pool; `Location::NONE` is no place, because a segment begins with its header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Hash, PartialOrd, Ord)]
pub struct Location {
    /// The segment.
    pub segment: SegmentId,
    /// Byte offset in the segment, a multiple of `GRAIN_BYTES`.
    pub offset: u32,
    /// Stored length in bytes, without padding.
    pub len: u16,
}

impl Location {
    /// No place.
    pub const NONE: Location = Location { segment: SegmentId(0), offset: 0, len: 0 };

    /// Whether this is no place.
    #[must_use]
    pub fn is_none(self) -> bool {
        self.len == 0
    }

    /// The bytes that it occupies, padding included.
    #[must_use]
    pub fn occupied_bytes(self) -> u32 {
        u32::from(self.len).next_multiple_of(GRAIN_BYTES as u32)
    }

    /// The packed form; the three flag bits are zero.
    #[must_use]
    pub fn pack(self) -> u64 {
        let grains = u64::from(self.offset) / GRAIN_BYTES as u64;
        debug_assert!(grains < 1 << OFFSET_BITS && self.segment.0 < SEGMENTS_MAX);
        u64::from(self.len) | grains << LENGTH_BITS | u64::from(self.segment.0) << (LENGTH_BITS + OFFSET_BITS)
    }

    /// Reads the packed form, whatever the flag bits say.
    #[must_use]
    pub fn unpack(packed: u64) -> Location {
        let field = |shift: u32, bits: u32| (packed >> shift) & ((1 << bits) - 1);
        let grains = field(LENGTH_BITS, OFFSET_BITS);
        Location {
            segment: SegmentId(
                u32::try_from(field(LENGTH_BITS + OFFSET_BITS, SEGMENT_BITS)).expect("20 bits"),
            ),
            offset: u32::try_from(grains * GRAIN_BYTES as u64).unwrap_or(u32::MAX),
            len: u16::try_from(field(0, LENGTH_BITS)).expect("13 bits"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn location_survives_packing() {
        for location in [
            Location::NONE,
            Location { segment: SegmentId(SEGMENTS_MAX - 1), offset: 0x0fff_fff0, len: 8191 },
            Location { segment: SegmentId(1), offset: 16, len: 1 },
        ] {
            assert_eq!(Location::unpack(location.pack()), location);
            assert_eq!(location.pack() >> 61, 0);
        }
    }
}
