//! LZ4 blocks, unpacked.
//!
//! What is stored is short (a block or a page) and full of runs: zeros, and fields that repeat every few
//! bytes. Such a match overlaps what it makes. It is copied sixteen bytes at a time here; the library that
//! packs copies it byte by byte, which takes four times as long for a block half of which is zeros.
//!
//! Promised: whatever the bytes are, it ends after steps in proportion to their number and to the length
//! asked for, and says whether they were a packed block of exactly that length.

/// Bytes that are copied at a time. Up to this many too many are written, and overwritten by what follows.
const STEP: usize = 16;

/// A token, literals of one step and an offset are read at once where so many bytes are left.
const AHEAD: usize = 32;

/// No match is shorter; its length is told from here on.
const MATCH_MIN: usize = 4;

/// Longer copies are left to the system's own.
const LONG: usize = 4 * STEP;

/// Fills `out` with what `packed` is; `false`, and `out` undefined, for bytes that are not a packed block
/// of that length.
#[must_use]
pub fn unpack(packed: &[u8], out: &mut [u8]) -> bool {
    unpack_all(packed, out).is_some_and(|len| len == out.len())
}

/// How many bytes were unpacked, and `None` where a length or an offset points outside.
#[inline]
fn unpack_all(packed: &[u8], out: &mut [u8]) -> Option<usize> {
    let (mut from, mut at) = (0, 0);
    loop {
        let token;
        let offset;
        if let Some(ahead) = packed.get(from..)?.first_chunk::<AHEAD>()
            && ahead[0] >> 4 != 15
            && let Some(place) = out.get_mut(at..)?.first_chunk_mut::<STEP>()
        {
            token = usize::from(ahead[0]);
            let literals = token >> 4;
            place.copy_from_slice(&ahead[1..=STEP]);
            at += literals;
            offset = usize::from(u16::from_le_bytes([ahead[literals + 1], ahead[literals + 2]]));
            from += literals + 3;
        } else {
            token = usize::from(*packed.get(from)?);
            from += 1;
            let mut literals = token >> 4;
            if literals == 15 {
                literals += long_length(packed, &mut from)?;
            }
            out.get_mut(at..at + literals)?.copy_from_slice(packed.get(from..from + literals)?);
            from += literals;
            at += literals;
            // The last sequence has no match.
            if from == packed.len() {
                return Some(at);
            }
            offset = usize::from(u16::from_le_bytes(*packed.get(from..)?.first_chunk()?));
            from += 2;
        }
        let mut len = token & 15;
        if len == 15 {
            len += long_length(packed, &mut from)?;
        }
        len += MATCH_MIN;
        if offset == 0 || offset > at || len > out.len() - at {
            return None;
        }
        copy_match(out, at, offset, len);
        at += len;
    }
}

/// The rest of a length that did not fit into its half of the token.
fn long_length(packed: &[u8], from: &mut usize) -> Option<usize> {
    let mut len = 0;
    loop {
        let more = *packed.get(*from)?;
        *from += 1;
        len += usize::from(more);
        if more != u8::MAX {
            return Some(len);
        }
    }
}

/// Writes `len` bytes at `at` that each are the byte `offset` before them.
#[inline]
fn copy_match(out: &mut [u8], at: usize, offset: usize, len: usize) {
    let start = at - offset;
    let end = at + len;
    if end + STEP > out.len() || (offset >= len && len > LONG) {
        return copy_exactly(out, at, offset, len);
    }
    let mut to = at;
    if offset >= STEP {
        let mut from = start;
        while to < end {
            let bytes = sixteen(out, from);
            out[to..to + STEP].copy_from_slice(&bytes);
            from += STEP;
            to += STEP;
        }
    } else if offset == 1 {
        let byte = out[start];
        if len <= STEP { out[at..at + STEP].fill(byte) } else { out[at..end].fill(byte) }
    } else {
        let run = repeated(sixteen(out, start), offset);
        let whole = STEP - STEP % offset;
        while to < end {
            out[to..to + STEP].copy_from_slice(&run);
            to += whole;
        }
    }
}

fn sixteen(out: &[u8], from: usize) -> [u8; STEP] {
    out[from..from + STEP].try_into().expect("as many bytes")
}

/// The first `period` bytes, over and over.
fn repeated(bytes: [u8; STEP], period: usize) -> [u8; STEP] {
    let mut bits = 8 * period;
    let mut run = u128::from_le_bytes(bytes) & ((1 << bits) - 1);
    while bits < 128 {
        run |= run << bits;
        bits *= 2;
    }
    run.to_le_bytes()
}

/// As `copy_match`, with nothing written behind the match.
#[inline(never)]
fn copy_exactly(out: &mut [u8], at: usize, offset: usize, len: usize) {
    let (start, end) = (at - offset, at + len);
    let mut to = at;
    while to < end {
        // What has been written so far repeats, too.
        let piece = (to - start).min(end - to);
        out.copy_within(start..start + piece, to);
        to += piece;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Runs, repeats of what came before, and noise: what matches of all offsets and lengths come from.
    fn content() -> impl Strategy<Value = Vec<u8>> {
        let run = (1..40usize, prop::collection::vec(any::<u8>(), 1..24))
            .prop_map(|(times, bytes)| bytes.repeat(times));
        let zeros = (1..2000usize).prop_map(|len| vec![0; len]);
        let noise = prop::collection::vec(any::<u8>(), 1..300);
        prop::collection::vec(prop_oneof![run, zeros, noise], 1..20).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn what_was_packed_comes_back(content in content()) {
            let packed = lz4_flex::block::compress(&content);
            let mut out = vec![0xa5; content.len()];
            prop_assert!(unpack(&packed, &mut out));
            prop_assert_eq!(&out, &content);
            // Neither a shorter nor a longer block is taken for it.
            prop_assert!(!unpack(&packed, &mut out[1..]));
            prop_assert!(!unpack(&packed, &mut vec![0; content.len() + 1]));
        }

        #[test]
        fn damaged_bytes_are_refused_or_mean_what_they_mean_elsewhere(
            content in content(),
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut packed = lz4_flex::block::compress(&content);
            for (place, byte) in damage {
                let place = place.index(packed.len());
                packed[place] = byte;
            }
            packed.truncate(1 + cut.index(packed.len()));
            let (mut out, mut elsewhere) = (vec![0xa5; content.len()], vec![0x5a; content.len()]);
            if unpack(&packed, &mut out) {
                let len = lz4_flex::block::decompress_into(&packed, &mut elsewhere);
                prop_assert!(len.is_ok_and(|len| len == content.len()));
                prop_assert_eq!(out, elsewhere);
            }
        }
    }

    #[test]
    fn every_offset_and_length_of_a_match_is_copied_like_byte_by_byte() {
        const SIZE: usize = 400;
        for at in [1, 2, 7, 15, 16, 17, 40, 100] {
            for offset in 1..=at {
                for len in (4..100).chain([SIZE - at - STEP, SIZE - at - 1, SIZE - at]) {
                    let mut out: Vec<u8> = (0..SIZE).map(|n| (n * 7 + 1) as u8).collect();
                    let mut wanted = out.clone();
                    for to in at..at + len {
                        wanted[to] = wanted[to - offset];
                    }
                    copy_match(&mut out, at, offset, len);
                    assert_eq!(out[..at + len], wanted[..at + len], "{len} bytes at {at}, {offset} back");
                }
            }
        }
    }

    #[test]
    fn what_points_outside_is_refused() {
        let refused: [&[u8]; 7] = [
            &[],
            // A literal, then an offset of nothing, and one to before the beginning.
            &[0x10, b'a', 0, 0],
            &[0x10, b'a', 2, 0, 0],
            // More literals than there are bytes, or room.
            &[0xf0, 255, 255, 255, 255],
            &[0xf0, 255],
            &[0x50, b'a', b'b', b'c', b'd', b'e'],
            // A match longer than the room.
            &[0x1f, b'a', 1, 0, 255, 0, 0],
        ];
        for packed in refused {
            assert!(!unpack(packed, &mut [0; 4]), "{packed:?}");
        }
        let mut out = [0; 4];
        assert!(unpack(&[0x40, b'a', b'b', b'c', b'd'], &mut out));
        assert_eq!(&out, b"abcd");
    }
}
