//! Sparse content in memory, copied on write: what the devices of tests are made of.
//!
//! Never-written ranges read as zeros and cost nothing; a clone shares every page with its
//! original until one of them changes it.

use std::sync::Arc;

use rustc_hash::FxHashMap;

/// Bytes that are kept, shared and copied together.
const PAGE_BYTES: usize = 4096;

type Page = [u8; PAGE_BYTES];

/// A range of bytes without end, all zeros at first.
#[derive(Clone, Debug, Default)]
pub(super) struct Image {
    pages: FxHashMap<u64, Arc<Page>>,
}

/// The part of one page that a range covers.
struct Piece {
    page: u64,
    /// First byte within the page.
    start: usize,
    len: usize,
}

/// The range, cut at page boundaries.
fn pieces(offset: u64, len: u64) -> impl Iterator<Item = Piece> {
    let mut position = offset;
    let end = offset + len;
    std::iter::from_fn(move || {
        if position == end {
            return None;
        }
        let start = usize::try_from(position % PAGE_BYTES as u64).expect("it is below a page");
        let room = (PAGE_BYTES - start) as u64;
        let len = usize::try_from(room.min(end - position)).expect("it is at most a page");
        let piece = Piece { page: position / PAGE_BYTES as u64, start, len };
        position += len as u64;
        Some(piece)
    })
}

impl Image {
    /// Fills `buffer` from `offset`.
    pub(super) fn read(&self, offset: u64, buffer: &mut [u8]) {
        let mut rest = buffer;
        for piece in pieces(offset, rest.len() as u64) {
            let (part, behind) = rest.split_at_mut(piece.len);
            match self.pages.get(&piece.page) {
                Some(page) => part.copy_from_slice(&page[piece.start..][..piece.len]),
                None => part.fill(0),
            }
            rest = behind;
        }
    }

    /// Puts `bytes` at `offset`.
    pub(super) fn write(&mut self, offset: u64, bytes: &[u8]) {
        let mut rest = bytes;
        for piece in pieces(offset, bytes.len() as u64) {
            let (part, behind) = rest.split_at(piece.len);
            self.page_mut(piece.page)[piece.start..][..piece.len].copy_from_slice(part);
            rest = behind;
        }
    }

    /// Makes the range read as zeros, and forgets pages that it covers whole.
    pub(super) fn zero(&mut self, offset: u64, len: u64) {
        for piece in pieces(offset, len) {
            if piece.len == PAGE_BYTES {
                self.pages.remove(&piece.page);
            } else if self.pages.contains_key(&piece.page) {
                self.page_mut(piece.page)[piece.start..][..piece.len].fill(0);
            }
        }
    }

    fn page_mut(&mut self, page: u64) -> &mut Page {
        Arc::make_mut(self.pages.entry(page).or_insert_with(|| Arc::new([0; PAGE_BYTES])))
    }

    /// Pages that take memory.
    #[cfg(test)]
    pub(super) fn pages_kept(&self) -> usize {
        self.pages.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LEN: usize = 3 * PAGE_BYTES + 100;

    #[derive(Clone, Debug)]
    enum Step {
        Write(usize, Vec<u8>),
        Zero(usize, usize),
        Clone,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..LEN, proptest::collection::vec(any::<u8>(), 0..2 * PAGE_BYTES))
                .prop_map(|(offset, bytes)| Step::Write(offset, bytes)),
            (0..LEN, 0..=2 * PAGE_BYTES).prop_map(|(offset, len)| Step::Zero(offset, len)),
            Just(Step::Clone),
        ]
    }

    fn content(image: &Image) -> Vec<u8> {
        let mut bytes = vec![0xee; LEN];
        image.read(0, &mut bytes);
        bytes
    }

    proptest! {
        #[test]
        fn does_what_plain_bytes_do(steps in proptest::collection::vec(step(), 1..20)) {
            let mut image = Image::default();
            let mut plain = vec![0u8; LEN];
            let mut clones = Vec::new();
            for step in steps {
                match step {
                    Step::Write(offset, bytes) => {
                        let len = bytes.len().min(LEN - offset);
                        image.write(offset as u64, &bytes[..len]);
                        plain[offset..offset + len].copy_from_slice(&bytes[..len]);
                    }
                    Step::Zero(offset, len) => {
                        let len = len.min(LEN - offset);
                        image.zero(offset as u64, len as u64);
                        plain[offset..offset + len].fill(0);
                    }
                    Step::Clone => clones.push((image.clone(), plain.clone())),
                }
                prop_assert_eq!(&content(&image), &plain);
            }
            for (clone, plain) in clones {
                prop_assert_eq!(content(&clone), plain);
            }
        }
    }

    #[test]
    fn what_is_zeroed_whole_takes_no_memory() {
        let mut image = Image::default();
        image.write(100, &[1; 2 * PAGE_BYTES]);
        assert_eq!(image.pages_kept(), 3);
        image.zero(0, 2 * PAGE_BYTES as u64);
        assert_eq!(image.pages_kept(), 1);
        image.zero(1 << 50, 1 << 12);
        assert_eq!(image.pages_kept(), 1);
    }
}
