//! Pages of tables and trees: their header, the pointers to them, and the entries of each table.

use crate::units::{BLOCK_BYTES, BlockCount, BlockId, Fingerprint};

use super::bytes::{Append, Reader};
use super::location::Location;
use super::unpack::unpack;
use super::{FORMAT_VERSION, checksum, to_grain};

/// Bytes of a page without its header, before compression.
pub const PAGE_BYTES: usize = 4096;
/// Bytes of a page's header on media.
pub const PAGE_HEADER_BYTES: usize = 64;
/// Bytes of a pointer to a page.
pub const PAGE_POINTER_BYTES: usize = 32;
/// Pointers in one directory page.
pub const POINTERS_PER_PAGE: u64 = (PAGE_BYTES / PAGE_POINTER_BYTES) as u64;
/// Bytes of an entry of the block table.
pub const BLOCK_ENTRY_BYTES: usize = 32;
/// Entries of the block table in one page.
pub const BLOCK_ENTRIES_PER_PAGE: u64 = (PAGE_BYTES / BLOCK_ENTRY_BYTES) as u64;
/// Reference counts in one page.
pub const COUNTS_PER_PAGE: u64 = (PAGE_BYTES / 4) as u64;
/// Freed-id bits in one page: the first eight bytes hold their number.
pub const FREED_BITS_PER_PAGE: u64 = ((PAGE_BYTES - 8) * 8) as u64;
/// Bytes of an entry of the segment table.
pub const SEGMENT_ENTRY_BYTES: usize = 32;
/// Entries of the segment table in one page.
pub const SEGMENT_ENTRIES_PER_PAGE: u64 = (PAGE_BYTES / SEGMENT_ENTRY_BYTES) as u64;
/// Entries of a map node.
pub const NODE_ENTRIES: usize = 512;

const MAGIC: u32 = 0x4547_4150;
const SUMMED_BYTES: usize = PAGE_HEADER_BYTES - 8;

/// The tables of a pool, each a paged array.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Table {
    /// Volumes and snapshots, one page each.
    Objects = 1,
    /// The segment table.
    Segments = 2,
    /// Map nodes, one page each; its directory is the node table.
    Nodes = 3,
    /// The block table.
    Blocks = 4,
    /// Reference counts of blocks.
    BlockCounts = 5,
    /// Reference counts of nodes.
    NodeCounts = 6,
    /// Block ids below the high-water mark that are free.
    FreedBlocks = 7,
    /// Node ids below the high-water mark that are free.
    FreedNodes = 8,
}

impl Table {
    /// All tables, in the order in which a checkpoint lists their roots.
    pub const ALL: [Table; 8] = [
        Table::Objects,
        Table::Segments,
        Table::Nodes,
        Table::Blocks,
        Table::BlockCounts,
        Table::NodeCounts,
        Table::FreedBlocks,
        Table::FreedNodes,
    ];

    /// Position in `ALL`.
    #[must_use]
    pub fn index(self) -> usize {
        self as usize - 1
    }

    /// The table that a stored code names.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Table> {
        Table::ALL.into_iter().find(|table| *table as u8 == code)
    }
}

/// Which page of which table; level 0 is the table itself, higher ones are its directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PageKey {
    /// Highest first, so that a sorted list has the directory behind what it points to.
    pub level: u8,
    /// The table.
    pub table: Table,
    /// Number of the page within its level.
    pub number: u64,
}

impl std::hash::Hash for PageKey {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        state.write_u64(self.number | u64::from(self.level) << 56 | (self.table as u64) << 60);
    }
}

impl PageKey {
    /// A page of the table itself.
    #[must_use]
    pub fn leaf(table: Table, number: u64) -> PageKey {
        PageKey { level: 0, table, number }
    }

    /// The directory page that points to this one, and the position of the pointer in it.
    #[must_use]
    pub fn parent(self) -> (PageKey, usize) {
        let slot = usize::try_from(self.number % POINTERS_PER_PAGE).expect("below 128");
        (PageKey { level: self.level + 1, table: self.table, number: self.number / POINTERS_PER_PAGE }, slot)
    }
}

/// What must be known of a page to read it and to see that it is the newest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct PagePointer {
    /// Where it is.
    pub location: Location,
    /// Where its second copy is, if it has one.
    pub copy: Location,
    /// Checksum of header and body as stored.
    pub checksum: u64,
    /// Raised at each rewrite.
    pub version: u32,
}

impl PagePointer {
    /// Whether there is no page: it reads as zeros.
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.location.is_none()
    }

    /// The stored form.
    #[must_use]
    pub fn encode(&self) -> [u8; PAGE_POINTER_BYTES] {
        let mut bytes = [0u8; PAGE_POINTER_BYTES];
        bytes[..8].copy_from_slice(&self.location.pack().to_le_bytes());
        bytes[8..16].copy_from_slice(&self.copy.pack().to_le_bytes());
        bytes[16..24].copy_from_slice(&self.checksum.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.version.to_le_bytes());
        bytes
    }

    /// Reads the stored form.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<PagePointer> {
        let mut reader = Reader::new(bytes);
        Some(PagePointer {
            location: Location::unpack(reader.u64()?),
            copy: Location::unpack(reader.u64()?),
            checksum: reader.u64()?,
            version: reader.u32()?,
        })
    }

    /// The pointer at `slot` of a directory page.
    #[must_use]
    pub fn at(page: &[u8; PAGE_BYTES], slot: usize) -> PagePointer {
        let from = slot * PAGE_POINTER_BYTES;
        PagePointer::decode(&page[from..from + PAGE_POINTER_BYTES]).expect("a slot holds a whole pointer")
    }

    /// Sets the pointer at `slot` of a directory page.
    pub fn put(&self, page: &mut [u8; PAGE_BYTES], slot: usize) {
        let from = slot * PAGE_POINTER_BYTES;
        page[from..from + PAGE_POINTER_BYTES].copy_from_slice(&self.encode());
    }
}

/// What the header of a page says beside its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct PageFacts {
    /// Raised at each rewrite.
    pub version: u32,
    /// Of a map node: 0 for a leaf, one more for each level above.
    pub node_level: u8,
    /// Of a map node: mapped blocks below it.
    pub mapped: BlockCount,
}

/// The header of a page or of padding, read without its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageHeader {
    /// Which page it is; `None` for padding.
    pub key: Option<PageKey>,
    /// What else it says.
    pub facts: PageFacts,
    /// Whether the body is compressed.
    pub compressed: bool,
    /// Bytes of the body as stored.
    pub body_len: u32,
}

impl PageHeader {
    /// Bytes from the start of this header to the next one.
    #[must_use]
    pub fn stride(&self) -> usize {
        to_grain(PAGE_HEADER_BYTES + self.body_len as usize)
    }

    fn encode(&self, pool: u64) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(PAGE_HEADER_BYTES + self.body_len as usize);
        bytes.put_u32(MAGIC);
        bytes.put_u16(FORMAT_VERSION);
        bytes.put_u8(self.key.map_or(0, |key| key.table as u8));
        bytes.put_u8(self.key.map_or(0, |key| key.level));
        bytes.put_u64(self.key.map_or(0, |key| key.number));
        bytes.put_u32(self.facts.version);
        bytes.put_u32(self.body_len);
        bytes.put_u64(self.facts.mapped.0);
        bytes.put_u64(pool);
        bytes.put_u8(self.facts.node_level);
        bytes.put_u8(u8::from(self.compressed));
        bytes.pad_to(SUMMED_BYTES);
        let sum = checksum(&bytes);
        bytes.put_u64(sum);
        bytes
    }

    /// Reads a header of the pool with the given id; `None` for anything else.
    #[must_use]
    pub fn decode(bytes: &[u8], pool: u64) -> Option<PageHeader> {
        let summed = bytes.get(..SUMMED_BYTES)?;
        if Reader::new(bytes.get(SUMMED_BYTES..)?).u64()? != checksum(summed) {
            return None;
        }
        let mut reader = Reader::new(summed);
        if reader.u32()? != MAGIC || reader.u16()? != FORMAT_VERSION {
            return None;
        }
        let table = reader.u8()?;
        let level = reader.u8()?;
        let number = reader.u64()?;
        let key =
            if table == 0 { None } else { Some(PageKey { level, table: Table::from_code(table)?, number }) };
        let version = reader.u32()?;
        let body_len = reader.u32()?;
        let mapped = BlockCount(reader.u64()?);
        if reader.u64()? != pool {
            return None;
        }
        let node_level = reader.u8()?;
        let compressed = reader.u8()? != 0;
        Some(PageHeader { key, facts: PageFacts { version, node_level, mapped }, compressed, body_len })
    }
}

/// A page as it is stored: header and body, the body compressed when that helps.
#[must_use]
pub fn encode_page(key: PageKey, facts: PageFacts, page: &[u8; PAGE_BYTES], pool: u64) -> Vec<u8> {
    let packed = lz4_flex::block::compress(page);
    let compressed = packed.len() < PAGE_BYTES;
    let body: &[u8] = if compressed { &packed } else { page };
    let body_len = u32::try_from(body.len()).expect("a page is 4096 bytes");
    let mut bytes = PageHeader { key: Some(key), facts, compressed, body_len }.encode(pool);
    bytes.put_slice(body);
    bytes
}

/// Padding of exactly `len` bytes, a multiple of 16 and at least one header: whoever walks the
/// segment finds what follows.
#[must_use]
pub fn encode_padding(len: usize, pool: u64) -> Vec<u8> {
    let body_len = u32::try_from(len - PAGE_HEADER_BYTES).expect("padding is shorter than a segment");
    let facts = PageFacts::default();
    let mut bytes = PageHeader { key: None, facts, compressed: false, body_len }.encode(pool);
    bytes.pad_to(len);
    bytes
}

/// Reads a stored page and checks that it is the one that `pointer` names.
#[must_use]
pub fn decode_page(
    stored: &[u8],
    key: PageKey,
    pointer: &PagePointer,
    pool: u64,
) -> Option<(PageFacts, Box<[u8; PAGE_BYTES]>)> {
    if checksum(stored) != pointer.checksum {
        return None;
    }
    let header = PageHeader::decode(stored, pool)?;
    let body = stored.get(PAGE_HEADER_BYTES..)?;
    if header.key != Some(key)
        || header.facts.version != pointer.version
        || body.len() != header.body_len as usize
    {
        return None;
    }
    let mut page = Box::new([0u8; PAGE_BYTES]);
    if header.compressed {
        if !unpack(body, page.as_mut_slice()) {
            return None;
        }
    } else {
        page.copy_from_slice(body.get(..PAGE_BYTES)?);
    }
    Some((header.facts, page))
}

/// What the block table says of one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct BlockEntry {
    /// Where its stored bytes are; `Location::NONE` for an id that names no block. A length of 4096 means
    /// that they are not compressed.
    pub location: Location,
    /// Not offered for deduplication any more: too many references.
    pub crowded: bool,
    /// Fingerprint of the uncompressed block.
    pub fingerprint: Fingerprint,
    /// Checksum of the stored bytes.
    pub checksum: u64,
}

const CROWDED: u64 = 1 << 61;

impl BlockEntry {
    /// The entry of a block within its page of the table.
    #[must_use]
    pub fn at(page: &[u8; PAGE_BYTES], block: BlockId) -> BlockEntry {
        let from = BlockEntry::offset(block);
        let mut reader = Reader::new(&page[from..from + BLOCK_ENTRY_BYTES]);
        let mut read = || -> Option<BlockEntry> {
            let packed = reader.u64()?;
            Some(BlockEntry {
                location: Location::unpack(packed),
                crowded: packed & CROWDED != 0,
                fingerprint: Fingerprint(reader.array()?),
                checksum: reader.u64()?,
            })
        };
        read().expect("a slot holds a whole entry")
    }

    /// Sets the entry of a block within its page of the table.
    pub fn put(&self, page: &mut [u8; PAGE_BYTES], block: BlockId) {
        let from = BlockEntry::offset(block);
        let slot = &mut page[from..from + BLOCK_ENTRY_BYTES];
        let packed = self.location.pack() | if self.crowded { CROWDED } else { 0 };
        slot[..8].copy_from_slice(&packed.to_le_bytes());
        slot[8..24].copy_from_slice(&self.fingerprint.0);
        slot[24..].copy_from_slice(&self.checksum.to_le_bytes());
    }

    fn offset(block: BlockId) -> usize {
        usize::try_from(block.0 % BLOCK_ENTRIES_PER_PAGE).expect("below 128") * BLOCK_ENTRY_BYTES
    }
}

/// What a volume holds for one block: an entry of a leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mapping {
    /// Nothing: zeros.
    Hole,
    /// A repeated 32-bit word, not zero.
    Pattern(u32),
    /// A stored block.
    Block(BlockId),
    /// Given up by a repair: an I/O error until written again.
    Lost,
}

const MAPPING_KIND_SHIFT: u32 = 60;
const MAPPING_BLOCK: u64 = 2;
/// Of an entry that names a block: the leaf has no reference to it, but a leaf that lends it has.
const BORROWED: u64 = 1 << 59;

impl Mapping {
    /// The stored form.
    #[must_use]
    pub fn pack(self) -> u64 {
        match self {
            Mapping::Hole => 0,
            Mapping::Pattern(word) => 1 << MAPPING_KIND_SHIFT | u64::from(word),
            Mapping::Block(block) => MAPPING_BLOCK << MAPPING_KIND_SHIFT | block.0,
            Mapping::Lost => 3 << MAPPING_KIND_SHIFT,
        }
    }

    /// Reads the stored form; a kind that does not exist is `Lost`, which is an error to its reader.
    #[must_use]
    pub fn unpack(packed: u64) -> Mapping {
        let low = packed & ((1 << MAPPING_KIND_SHIFT) - 1);
        match packed >> MAPPING_KIND_SHIFT {
            0 if low == 0 => Mapping::Hole,
            1 => Mapping::Pattern(u32::try_from(low & 0xffff_ffff).expect("masked")),
            MAPPING_BLOCK => Mapping::Block(BlockId(low & !BORROWED)),
            _ => Mapping::Lost,
        }
    }

    /// The stored form of an entry whose block, if it names one, is borrowed.
    #[must_use]
    pub fn borrowed(packed: u64) -> u64 {
        if packed >> MAPPING_KIND_SHIFT == MAPPING_BLOCK { packed | BORROWED } else { packed }
    }

    /// The stored form of an entry whose block, if it names one, is not borrowed.
    #[must_use]
    pub fn owned(packed: u64) -> u64 {
        if Mapping::is_borrowed(packed) { packed & !BORROWED } else { packed }
    }

    /// Whether an entry names a block that is borrowed.
    #[must_use]
    pub fn is_borrowed(packed: u64) -> bool {
        packed >> MAPPING_KIND_SHIFT == MAPPING_BLOCK && packed & BORROWED != 0
    }

    /// The block that an entry names and has a reference to.
    #[must_use]
    pub fn owned_block(packed: u64) -> Option<BlockId> {
        match Mapping::unpack(packed) {
            Mapping::Block(block) if !Mapping::is_borrowed(packed) => Some(block),
            _ => None,
        }
    }
}

const _: () = assert!(BLOCK_BYTES == PAGE_BYTES, "pages and blocks share one size");
const _: () = assert!(PAGE_HEADER_BYTES + PAGE_BYTES <= super::location::LOCATED_BYTES_MAX);
