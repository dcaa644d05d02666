//! Reading and writing little-endian fields within bounds.

/// Reads fields one behind the other; every verb answers `None` past the end.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Reads from the start of `bytes`.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { rest: bytes }
    }

    /// The next `len` bytes.
    pub fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(len)?;
        self.rest = rest;
        Some(taken)
    }

    /// The next `N` bytes as an array.
    pub fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.rest.split_first_chunk::<N>()?;
        self.rest = rest;
        Some(*taken)
    }

    /// The next byte.
    pub fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|bytes| bytes[0])
    }

    /// The next 16-bit number.
    pub fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    /// The next 32-bit number.
    pub fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    /// The next 48-bit number.
    pub fn u48(&mut self) -> Option<u64> {
        let low = self.array::<6>()?;
        let mut bytes = [0u8; 8];
        bytes[..6].copy_from_slice(&low);
        Some(u64::from_le_bytes(bytes))
    }

    /// The next 64-bit number.
    pub fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// What has not been read.
    #[must_use]
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }
}

/// Appends fields to a vector.
pub trait Append {
    /// Appends one byte.
    fn put_u8(&mut self, value: u8);
    /// Appends a 16-bit number.
    fn put_u16(&mut self, value: u16);
    /// Appends a 32-bit number.
    fn put_u32(&mut self, value: u32);
    /// Appends the low 48 bits of a number.
    fn put_u48(&mut self, value: u64);
    /// Appends a 64-bit number.
    fn put_u64(&mut self, value: u64);
    /// Appends bytes.
    fn put_slice(&mut self, bytes: &[u8]);
    /// Appends zeros up to `len` bytes in all.
    fn pad_to(&mut self, len: usize);
}

impl Append for Vec<u8> {
    fn put_u8(&mut self, value: u8) {
        self.push(value);
    }

    fn put_u16(&mut self, value: u16) {
        self.extend_from_slice(&value.to_le_bytes());
    }

    fn put_u32(&mut self, value: u32) {
        self.extend_from_slice(&value.to_le_bytes());
    }

    fn put_u48(&mut self, value: u64) {
        assert!(value < 1 << 48, "a 48-bit field cannot hold {value}");
        self.extend_from_slice(&value.to_le_bytes()[..6]);
    }

    fn put_u64(&mut self, value: u64) {
        self.extend_from_slice(&value.to_le_bytes());
    }

    fn put_slice(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }

    fn pad_to(&mut self, len: usize) {
        assert!(self.len() <= len, "{} bytes do not fit into {len}", self.len());
        self.resize(len, 0);
    }
}

/// The 64-bit number at `index` of a table of such numbers.
///
/// # Panics
/// When the table is shorter: tables are whole pages.
#[must_use]
pub fn get_u64(table: &[u8], index: usize) -> u64 {
    let at = index * 8;
    let mut bytes = [0u8; 8];
    bytes.copy_from_slice(&table[at..at + 8]);
    u64::from_le_bytes(bytes)
}

/// Sets the 64-bit number at `index`.
///
/// # Panics
/// As `get_u64`.
pub fn set_u64(table: &mut [u8], index: usize, value: u64) {
    let at = index * 8;
    table[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

/// The 32-bit number at `index` of a table of such numbers.
///
/// # Panics
/// As `get_u64`.
#[must_use]
pub fn get_u32(table: &[u8], index: usize) -> u32 {
    let at = index * 4;
    let mut bytes = [0u8; 4];
    bytes.copy_from_slice(&table[at..at + 4]);
    u32::from_le_bytes(bytes)
}

/// Sets the 32-bit number at `index`.
///
/// # Panics
/// As `get_u64`.
pub fn set_u32(table: &mut [u8], index: usize, value: u32) {
    let at = index * 4;
    table[at..at + 4].copy_from_slice(&value.to_le_bytes());
}
