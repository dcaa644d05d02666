//! Addresses, numbers and sizes, each a type of its own so that two of them cannot be swapped.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Binary units of size, largest first, each with its power of two.
pub const BINARY_UNITS: [(&str, u32); 6] =
    [("EiB", 60), ("PiB", 50), ("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];

/// Bytes of one block: the unit of mapping and reduction.
pub const BLOCK_BYTES: usize = 4096;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number!(
    /// Index of a block within one volume or snapshot.
    Lba(u64)
);
number!(
    /// A number of blocks.
    BlockCount(u64)
);
number!(
    /// A number of bytes.
    ByteCount(u64)
);
number!(
    /// Stable name of one stored unique block; survives relocation.
    BlockId(u64)
);
number!(
    /// Stable name of one node of a radix tree; 0 names no node.
    MapNodeId(u64)
);
number!(
    /// One segment of the pool: the unit of allocation, collection and wear.
    SegmentId(u32)
);
number!(
    /// Number of one operation of the array, without gap through all epochs.
    Lsn(u64)
);
number!(
    /// A client whose requests outlive its connections: a number that nobody guesses.
    SessionId(u128)
);
number!(
    /// One request of a session, in the order in which they were taken.
    RequestNumber(u64)
);
number!(
    /// Which memory of sessions a node has: another one wherever it began without what was there before.
    SessionMemory(u64)
);
number!(
    /// A volume or snapshot as the store knows it; never used twice.
    ObjectNumber(u64)
);
number!(
    /// Number of a checkpoint, one more than the one before.
    CheckpointNumber(u64)
);
number!(
    /// One opening of a pool, drawn anew each time.
    Incarnation(u64)
);
number!(
    /// Byte offset on one device.
    DeviceOffset(u64)
);

impl Lba {
    /// The block `count` further on.
    #[must_use]
    pub fn plus(self, count: u64) -> Lba {
        Lba(self.0 + count)
    }
}

impl Lsn {
    /// The number of the next operation.
    #[must_use]
    pub fn next(self) -> Lsn {
        Lsn(self.0 + 1)
    }
}

impl ByteCount {
    /// How many blocks hold this many bytes (the last may be partly used).
    #[must_use]
    pub fn blocks(self) -> BlockCount {
        BlockCount(self.0.div_ceil(BLOCK_BYTES as u64))
    }

    /// For people: at most four digits, rounded (`9.77 GiB`). It does not read back exactly.
    #[must_use]
    pub fn rounded(self) -> String {
        for (unit, shift) in BINARY_UNITS {
            let whole = 1u64 << shift;
            if self.0 >= whole {
                let value = self.0 as f64 / whole as f64;
                return match value {
                    100.0.. => format!("{value:.0} {unit}"),
                    10.0.. => format!("{value:.1} {unit}"),
                    _ => format!("{value:.2} {unit}"),
                };
            }
        }
        format!("{} B", self.0)
    }
}

impl BlockCount {
    /// The bytes of this many blocks.
    #[must_use]
    pub fn bytes(self) -> ByteCount {
        ByteCount(self.0 * BLOCK_BYTES as u64)
    }
}

/// The term of one primary: raised at each promotion, its generation only by force.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Epoch {
    /// Raised only when an operator forces a promotion.
    pub generation: u32,
    /// Raised at each promotion.
    pub number: u32,
}

/// A request that is carried out once, however often it is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId {
    /// Whose.
    pub session: SessionId,
    /// Which of its requests.
    pub number: RequestNumber,
}

/// 128 bits of keyed BLAKE3 of an uncompressed block.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Fingerprint(pub [u8; 16]);

impl Fingerprint {
    /// The first eight bytes as a number, for hash tables.
    #[must_use]
    pub fn head(&self) -> u64 {
        let mut head = [0u8; 8];
        head.copy_from_slice(&self.0[..8]);
        u64::from_le_bytes(head)
    }

    /// The last eight bytes as a number.
    #[must_use]
    pub fn tail(&self) -> u64 {
        let mut tail = [0u8; 8];
        tail.copy_from_slice(&self.0[8..]);
        u64::from_le_bytes(tail)
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.0 {
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

/// A 16-byte name that is unique without asking anyone: pools, devices, volumes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct Uuid(pub [u8; 16]);

impl Uuid {
    /// A version 4 UUID from 16 random bytes (RFC 9562, section 5.4).
    #[must_use]
    pub fn from_random(mut bytes: [u8; 16]) -> Uuid {
        bytes[6] = (bytes[6] & 0x0f) | 0x40;
        bytes[8] = (bytes[8] & 0x3f) | 0x80;
        Uuid(bytes)
    }

    /// The first eight bytes as a number: enough to tell a stray structure of another pool.
    #[must_use]
    pub fn head(&self) -> u64 {
        let mut head = [0u8; 8];
        head.copy_from_slice(&self.0[..8]);
        u64::from_le_bytes(head)
    }

    /// Reads the hyphenated form of 36 characters; `None` for anything else.
    #[must_use]
    pub fn parse(text: &str) -> Option<Uuid> {
        let text = text.as_bytes();
        if text.len() != 36 {
            return None;
        }
        let mut bytes = [0u8; 16];
        let mut nibbles = 0;
        for (position, character) in text.iter().enumerate() {
            if matches!(position, 8 | 13 | 18 | 23) {
                if *character != b'-' {
                    return None;
                }
                continue;
            }
            let nibble = u8::try_from(char::from(*character).to_digit(16)?).ok()?;
            let byte = bytes.get_mut(nibbles / 2)?;
            *byte = (*byte << 4) | nibble;
            nibbles += 1;
        }
        Some(Uuid(bytes))
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, byte) in self.0.iter().enumerate() {
            if matches!(position, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuid_reads_back_what_it_shows() {
        let uuid = Uuid::from_random([0xa7; 16]);
        assert_eq!(Uuid::parse(&uuid.to_string()), Some(uuid));
        assert_eq!(Uuid::parse("a7a7a7a7-a7a7-47a7-a7a7-a7a7a7a7a7a"), None);
        assert_eq!(Uuid::parse("a7a7a7a7-a7a7-47a7-a7a7-a7a7a7a7a7ag"), None);
    }
}
