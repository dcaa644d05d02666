//! A pool that lost what it once called durable.

use std::io::{Read as _, Seek as _, SeekFrom, Write as _};

use crate::client::{path, run};
use crate::daemon::{Daemon, Scratch};

const LEN: usize = 16 << 20;

/// Bytes that neither compress nor repeat.
fn noise() -> Vec<u8> {
    let mut state = 88_172_645_463_325_252u64;
    let mut bytes = Vec::with_capacity(LEN);
    while bytes.len() < LEN {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes
}

#[test]
fn p2_a_damaged_log_is_served_read_only_and_says_so() {
    let scratch = Scratch::new();
    let image = scratch.join("image");
    let bytes = noise();
    std::fs::write(&image, &bytes).unwrap();
    let daemon = Daemon::start(scratch.path(), &["--volume", "a:64MiB"]);
    run("nbdcopy", &["--flush", path(&image), &daemon.uri("a")]);
    // The log says that it is durable in the batch that follows.
    run("qemu-io", &["-f", "raw", "-c", "write -P 7 32M 4096", "-c", "flush", &daemon.uri("a")]);
    daemon.kill();
    flip_stored_block(&scratch, &bytes[LEN / 2..LEN / 2 + 4096]);

    let daemon = Daemon::start(scratch.path(), &[]);
    assert!(daemon.announcement.contains("READ-ONLY"), "{}", daemon.announcement);
    run("nbdinfo", &["--is", "read-only", &daemon.uri("a")]);
    assert_eq!(daemon.terminate().code(), Some(14));

    let daemon = Daemon::start(scratch.path(), &["--accept-loss"]);
    assert!(!daemon.announcement.contains("READ-ONLY"), "{}", daemon.announcement);
    let said = run("qemu-io", &["-f", "raw", "-c", "write -P 9 32M 4096", "-c", "flush", &daemon.uri("a")]);
    assert!(!said.contains("failed"), "{said}");
    assert!(daemon.terminate().success());
}

/// Finds a block where the log holds it, as it is because it does not compress, and turns one of its bits over.
fn flip_stored_block(scratch: &Scratch, block: &[u8]) {
    let pool = scratch.join("pool.sinter");
    let mut file = std::fs::OpenOptions::new().read(true).write(true).open(&pool).unwrap();
    // A pool of 16 GiB is mostly a hole; what was written lies at its beginning.
    let mut stored = vec![0u8; 256 << 20];
    file.read_exact(&mut stored).unwrap();
    let at = stored.windows(64).position(|window| window == &block[..64]).expect("the block was stored");
    file.seek(SeekFrom::Start(at as u64 + 8)).unwrap();
    file.write_all(&[block[8] ^ 1]).unwrap();
}
