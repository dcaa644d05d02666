//! Writes that cover blocks in part, from several threads at once: nothing is lost.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use sinter::array::Array;
use sinter::array::ArrayOptions;
use sinter::array::BlockService;
use sinter::array::NewVolume;
use sinter::array::Volume;
use sinter::units::ByteCount;

use crate::be_polite;
use crate::pool::new_store;
use crate::world::BLOCK;

/// An array with one volume of a few blocks, opened by as many clients as asked for.
fn clients(count: usize) -> (Arc<Array>, Vec<Arc<Volume>>) {
    let (store, environment) = new_store(1);
    let array = Array::new(store, ArrayOptions::new("threads"), environment).unwrap();
    let new = NewVolume { name: "shared".to_owned(), size: ByteCount(1 << 16), ..NewVolume::default() };
    array.create_volume(new).unwrap();
    let clients = (0..count).map(|_| array.open_volume("shared").unwrap()).collect();
    (array, clients)
}

/// Each client owns a few hundred bytes, side by side, so that blocks are shared by up to eight.
#[test]
fn neighbours_in_one_block_do_not_lose_each_others_writes() {
    const OWN: usize = 700;
    let (_array, clients) = clients(8);
    std::thread::scope(|scope| {
        for (client, volume) in clients.iter().enumerate() {
            scope.spawn(move || {
                be_polite();
                let at = (client * OWN) as u64;
                for round in 0..2000u32 {
                    let own = [(round as usize + client) as u8 | 1; OWN];
                    if round % 4 == 3 {
                        volume.write_zeroes(at, ByteCount(OWN as u64)).unwrap();
                    } else {
                        volume.write(at, &own).unwrap();
                    }
                    let expected = if round % 4 == 3 { [0; OWN] } else { own };
                    let mut found = [0xee; OWN];
                    volume.read(at, &mut found).unwrap();
                    assert!(found == expected, "client {client} lost its write of round {round}");
                }
            });
        }
    });
}

/// One client writes, zeroes and trims whole blocks, others write parts of them meanwhile. What no
/// part covers is always what the first one left there last.
#[test]
fn a_partial_write_brings_nothing_old_back() {
    const PART: usize = 512;
    const BLOCKS: usize = 2;
    let (_array, clients) = clients(3);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (whole, parts) = clients.split_first().unwrap();
        be_polite();
        for (client, volume) in parts.iter().enumerate() {
            let done = &done;
            scope.spawn(move || {
                be_polite();
                // The ends of the blocks, and across the border between them.
                let at = [BLOCK - PART / 2, BLOCKS * BLOCK - PART][client] as u64;
                while !done.load(Ordering::Relaxed) {
                    volume.write(at, &[0xff; PART]).unwrap();
                }
            });
        }
        let checked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for round in 0..6000u32 {
                let len = ByteCount((BLOCKS * BLOCK) as u64);
                let fill = match round % 4 {
                    0 => whole.write_zeroes(0, len).map(|_| 0),
                    1 => whole.trim(0, len).map(|_| 0),
                    _ => whole.write(0, &[round as u8 | 1; BLOCKS * BLOCK]).map(|_| round as u8 | 1),
                };
                let fill = fill.unwrap();
                let mut found = [0xee; BLOCKS * BLOCK];
                whole.read(0, &mut found).unwrap();
                for outside in [0..BLOCK - PART / 2, BLOCK + PART / 2..BLOCKS * BLOCK - PART] {
                    let old = found[outside].iter().find(|byte| **byte != fill);
                    assert_eq!(old, None, "round {round} wrote {fill}");
                }
            }
        }));
        done.store(true, Ordering::Relaxed);
        if let Err(panic) = checked {
            std::panic::resume_unwind(panic);
        }
    });
}

/// Large unaligned writes side by side share only the blocks at their borders.
#[test]
fn unaligned_neighbours_share_their_border_blocks() {
    const LEN: usize = 3 * BLOCK;
    let (_array, clients) = clients(4);
    std::thread::scope(|scope| {
        for (client, volume) in clients.iter().enumerate() {
            scope.spawn(move || {
                be_polite();
                let at = (100 + client * LEN) as u64;
                for round in 0..1000usize {
                    let own = vec![(round * 7 + client) as u8; LEN];
                    volume.write(at, &own).unwrap();
                    let mut found = vec![0xee; LEN];
                    volume.read(at, &mut found).unwrap();
                    assert!(found == own, "client {client} lost a part of its write of round {round}");
                }
            });
        }
    });
}
