//! Reduction: what a block is, its compression, and all of it for the blocks of some writes.

use std::cell::RefCell;
use std::sync::Arc;

use lz4_flex::block::{CompressTable, compress_into_with_table};
use rustc_hash::FxHashMap;

use crate::error::{ErrorKind, Result};
use crate::format::unpack::unpack;
use crate::format::{checksum, to_grain};
use crate::units::{BLOCK_BYTES, BlockId, Fingerprint};

use super::Store;
use super::commit::Verdict;
use super::fingerprint::fingerprints;
use super::helpers::SHARED_MAX;
use super::run::Caller;

/// What a block is before anything is looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// All zero.
    Zero,
    /// One repeated 32-bit word, not zero.
    Pattern(u32),
    /// Anything else.
    Data,
}

/// Looks for zeros and repeated words; ends at the first eight bytes that differ.
pub(crate) fn shape(block: &[u8]) -> Shape {
    let (words, _) = block.as_chunks::<8>();
    let first = words[0];
    if first[..4] != first[4..] || words.iter().any(|word| *word != first) {
        return Shape::Data;
    }
    match u32::from_le_bytes([first[0], first[1], first[2], first[3]]) {
        0 => Shape::Zero,
        word => Shape::Pattern(word),
    }
}

/// Fills a block with a repeated word.
pub(crate) fn fill_pattern(block: &mut [u8], word: u32) {
    for chunk in block.as_chunks_mut::<4>().0 {
        *chunk = word.to_le_bytes();
    }
}

/// A block is stored compressed only if that saves at least an eighth.
const WORTHWHILE: usize = BLOCK_BYTES - BLOCK_BYTES / 8;

/// What compression needs besides the block, kept by each thread: clearing it costs less than making it anew.
struct Workspace {
    table: CompressTable,
    packed: Vec<u8>,
}

thread_local! {
    static WORKSPACE: RefCell<Workspace> = RefCell::new(Workspace {
        table: CompressTable::small(),
        packed: vec![0; lz4_flex::block::get_maximum_output_size(BLOCK_BYTES)],
    });
}

/// Appends the block to `out`, compressed if that is worth it, and returns the stored length: `BLOCK_BYTES` for
/// a block that is not compressed.
pub(crate) fn compress(block: &[u8], out: &mut Vec<u8>) -> usize {
    WORKSPACE.with_borrow_mut(|workspace| {
        let packed = compress_into_with_table(block, &mut workspace.packed, &mut workspace.table);
        let stored = match packed {
            Ok(len) if len <= WORTHWHILE => &workspace.packed[..len],
            _ => block,
        };
        out.extend_from_slice(stored);
        stored.len()
    })
}

/// A block as it is to be stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PackedBlock {
    bytes: Vec<u8>,
    checksum: u64,
}

/// Packs a block by itself.
pub(crate) fn pack(block: &[u8]) -> PackedBlock {
    let mut bytes = Vec::new();
    compress(block, &mut bytes);
    let checksum = checksum(&bytes);
    PackedBlock { bytes, checksum }
}

/// Undoes `compress`; `false` for bytes that are no compressed block.
pub(crate) fn decompress(stored: &[u8], block: &mut [u8]) -> bool {
    if stored.len() == BLOCK_BYTES {
        block.copy_from_slice(stored);
        return true;
    }
    block.len() == BLOCK_BYTES && unpack(stored, block)
}

/// A block after reduction.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Reduced {
    Zero,
    Pattern(u32),
    /// Another node could not read it.
    Lost,
    /// Stored already, as far as could be seen.
    Candidate {
        block: BlockId,
        fingerprint: Fingerprint,
    },
    /// Its stored bytes are at the next place of the payload.
    Stored {
        stored_len: u16,
        fingerprint: Fingerprint,
        checksum: u64,
        heals: Option<BlockId>,
    },
    /// The same as an earlier block of this operation.
    Twin {
        of: usize,
    },
}

/// What has been made of the blocks of one write: what each of them is, and what of them is to be stored.
pub struct Reduction {
    pub(crate) blocks: Vec<Reduced>,
    /// The stored bytes of those that are `Reduced::Stored`, in order, each padded to a grain.
    pub(crate) payload: Arc<Vec<u8>>,
}

impl Reduction {
    /// The fingerprint of each block, zeros for those without one.
    pub(crate) fn fingerprints(&self) -> Vec<Fingerprint> {
        let of = |reduced: &Reduced| match reduced {
            Reduced::Candidate { fingerprint, .. } | Reduced::Stored { fingerprint, .. } => *fingerprint,
            Reduced::Zero | Reduced::Pattern(_) | Reduced::Lost | Reduced::Twin { .. } => {
                Fingerprint::default()
            }
        };
        let twin_of = |reduced: &Reduced| match reduced {
            Reduced::Twin { of: first } => of(&self.blocks[*first]),
            other => of(other),
        };
        self.blocks.iter().map(twin_of).collect()
    }
}

fn blocks_of(data: &[u8]) -> &[[u8; BLOCK_BYTES]] {
    data.as_chunks().0
}

impl Store {
    /// Reduces the whole blocks of several writes: patterns, fingerprints, candidates (confirmed in the table, unless
    /// `probing` is off), compression. Nothing is entered. Many blocks together cost less than one after the other.
    ///
    /// # Errors
    /// `Stopped`, `NoSpace`: a candidate could not be confirmed.
    pub(crate) fn reduce(&self, writes: &[&[u8]], probing: bool) -> Result<Vec<Reduction>> {
        let shapes: Vec<Shape> =
            writes.iter().flat_map(|data| blocks_of(data)).map(|block| shape(block)).collect();
        let all = writes.iter().flat_map(|data| blocks_of(data));
        let to_hash: Vec<&[u8; BLOCK_BYTES]> =
            all.zip(&shapes).filter(|(_, shape)| **shape == Shape::Data).map(|(block, _)| block).collect();
        let fingerprints = fingerprints(&self.identity.fingerprint_key, &to_hash);
        self.index.warm(fingerprints.iter());
        let mut fingerprints = fingerprints.into_iter();
        let mut shapes = shapes.into_iter();
        let one = |data: &&[u8]| {
            let blocks = shapes.by_ref().take(data.len() / BLOCK_BYTES).map(|shape| match shape {
                Shape::Zero => Reduced::Zero,
                Shape::Pattern(word) => Reduced::Pattern(word),
                Shape::Data => {
                    let fingerprint = fingerprints.next().expect("one for each block of data");
                    match self.index.probe(&fingerprint).filter(|_| probing) {
                        Some(block) => Reduced::Candidate { block, fingerprint },
                        None => Reduced::Stored { stored_len: 0, fingerprint, checksum: 0, heals: None },
                    }
                }
            });
            let mut blocks: Vec<Reduced> = blocks.collect();
            self.confirm_candidates(&mut blocks)?;
            find_twins(&mut blocks);
            Ok(blocks)
        };
        let reduced = writes.iter().map(one).collect::<Result<Vec<_>>>()?;
        Ok(self.pack_stored(writes, reduced))
    }

    /// Packs the blocks that are to be stored, with those who help where that pays.
    fn pack_stored(&self, writes: &[&[u8]], reduced: Vec<Vec<Reduced>>) -> Vec<Reduction> {
        let mut packing = Packing::of(reduced);
        let places = packing.places();
        let block_at = |place: &BlockPlace| &blocks_of(writes[place.write])[place.position];
        let _taking_part = self.helpers.begin_packing();
        for places in places.chunks(2 * SHARED_MAX) {
            let is_asking = self.helpers.are_worth_asking(places.len());
            let (own, shared) = places.split_at(if is_asking { places.len() / 2 } else { places.len() });
            let offer = is_asking.then(|| self.helpers.offer(shared.iter().map(block_at)));
            self.helpers.measuring(&*self.environment.clock, own.len(), || {
                own.iter().for_each(|place| packing.pack_here(*place, block_at(place)));
            });
            let Some(offer) = offer else { continue };
            for (place, packed) in shared.iter().zip(self.helpers.take_back(&offer)) {
                packing.put(*place, &packed);
            }
        }
        packing.into_reductions()
    }

    /// Looks each candidate up in the table; what is none after all is to be stored.
    fn confirm_candidates(&self, blocks: &mut [Reduced]) -> Result<()> {
        for reduced in blocks {
            let Reduced::Candidate { block, fingerprint } = *reduced else { continue };
            let verdict = match self.run(Caller::Request, |core| core.verdict(block, &fingerprint)) {
                Ok(verdict) => verdict,
                // A damaged page of the table costs reduction, not the write.
                Err(error) if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Device) => Verdict::No,
                Err(error) => return Err(error),
            };
            let heals = (verdict == Verdict::Bad).then_some(block);
            if verdict != Verdict::Same {
                *reduced = Reduced::Stored { stored_len: 0, fingerprint, checksum: 0, heals };
            }
        }
        Ok(())
    }
}

/// A block of one of several writes.
#[derive(Clone, Copy)]
struct BlockPlace {
    write: usize,
    position: usize,
}

/// Several writes, some blocks of which are still to be packed.
struct Packing {
    reduced: Vec<Vec<Reduced>>,
    payloads: Vec<Vec<u8>>,
}

impl Packing {
    fn of(reduced: Vec<Vec<Reduced>>) -> Packing {
        let stored_bytes = |blocks: &Vec<Reduced>| blocks.iter().filter(is_stored).count() * BLOCK_BYTES;
        let payloads = reduced.iter().map(|blocks| Vec::with_capacity(stored_bytes(blocks))).collect();
        Packing { reduced, payloads }
    }

    /// The blocks that are to be stored, in the order in which they are to be packed.
    fn places(&self) -> Vec<BlockPlace> {
        let of_write = |(write, blocks): (usize, &Vec<Reduced>)| {
            let stored = blocks.iter().enumerate().filter(|(_, block)| is_stored(block));
            stored.map(|(position, _)| BlockPlace { write, position }).collect::<Vec<_>>()
        };
        self.reduced.iter().enumerate().flat_map(of_write).collect()
    }

    fn pack_here(&mut self, place: BlockPlace, block: &[u8]) {
        let payload = &mut self.payloads[place.write];
        let start = payload.len();
        compress(block, payload);
        let checksum = checksum(&payload[start..]);
        self.note(place, start, checksum);
    }

    fn put(&mut self, place: BlockPlace, packed: &PackedBlock) {
        let payload = &mut self.payloads[place.write];
        let start = payload.len();
        payload.extend_from_slice(&packed.bytes);
        self.note(place, start, packed.checksum);
    }

    /// What lies from `start` on in the payload is the block's.
    fn note(&mut self, place: BlockPlace, start: usize, sum: u64) {
        let payload = &mut self.payloads[place.write];
        let len = payload.len() - start;
        payload.resize(start + to_grain(len), 0);
        if let Reduced::Stored { stored_len, checksum, .. } = &mut self.reduced[place.write][place.position] {
            *stored_len = u16::try_from(len).expect("at most 4096");
            *checksum = sum;
        }
    }

    fn into_reductions(self) -> Vec<Reduction> {
        let one = |(blocks, payload)| Reduction { blocks, payload: Arc::new(payload) };
        self.reduced.into_iter().zip(self.payloads).map(one).collect()
    }
}

fn is_stored(reduced: &&Reduced) -> bool {
    matches!(reduced, Reduced::Stored { .. })
}

/// Of blocks that are alike, only the first is to be stored.
fn find_twins(blocks: &mut [Reduced]) {
    let stored = blocks.iter().filter(is_stored).count();
    if stored < 2 {
        return;
    }
    let mut seen: FxHashMap<Fingerprint, usize> = FxHashMap::default();
    seen.reserve(stored);
    for (position, block) in blocks.iter_mut().enumerate() {
        let Reduced::Stored { fingerprint, .. } = block else { continue };
        let of = *seen.entry(*fingerprint).or_insert(position);
        if of != position {
            *block = Reduced::Twin { of };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_told_apart() {
        let mut block = vec![0u8; BLOCK_BYTES];
        assert_eq!(shape(&block), Shape::Zero);
        fill_pattern(&mut block, 0x0102_0304);
        assert_eq!(shape(&block), Shape::Pattern(0x0102_0304));
        block[BLOCK_BYTES - 1] ^= 1;
        assert_eq!(shape(&block), Shape::Data);
    }

    #[test]
    fn what_was_compressed_comes_back() {
        let text: Vec<u8> = (0..BLOCK_BYTES).map(|n| (n / 7 % 251) as u8).collect();
        let noise: Vec<u8> =
            (0..BLOCK_BYTES as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        for block in [text, noise] {
            let mut out = vec![9u8; 3];
            let len = compress(&block, &mut out);
            assert_eq!(out.len(), 3 + len);
            let mut back = vec![0u8; BLOCK_BYTES];
            assert!(decompress(&out[3..], &mut back));
            assert_eq!(back, block);
        }
        assert!(!decompress(&[0xff; 100], &mut vec![0u8; BLOCK_BYTES]));
    }
}
