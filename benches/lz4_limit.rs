//! The limit that LZ4 at 4 KiB sets on an image: each unique non-zero block compressed alone, 4096
//! bytes where that does not shrink it, summed by the byte. No array that reduces by 4 KiB blocks
//! with LZ4 can hold the image in less; `scripts/bench-reduction` compares Sinter with it.
//!
//! `cargo bench --bench lz4_limit -- IMAGE` prints one line of JSON.

mod image;

use std::error::Error;
use std::io::Write as _;
use std::ops::ControlFlow;
use std::path::PathBuf;

use image::BLOCK_BYTES;

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args().skip(1).find(|argument| !argument.starts_with("--"));
    let Some(path) = path.map(PathBuf::from) else {
        // `cargo bench` without arguments runs every bench.
        writeln!(std::io::stderr(), "lz4_limit: give an image: cargo bench --bench lz4_limit -- IMAGE")?;
        return Ok(());
    };
    let mut compressed = vec![0u8; lz4_flex::block::get_maximum_output_size(BLOCK_BYTES)];
    let (mut limit_bytes, mut incompressible_blocks) = (0, 0u64);
    let census = image::for_each_unique_block(&path, |block| {
        // The buffer has room for the worst case, so that a failure can only mean no gain.
        let length = lz4_flex::block::compress_into(block, &mut compressed).unwrap_or(BLOCK_BYTES);
        if length >= BLOCK_BYTES {
            incompressible_blocks += 1;
        }
        limit_bytes += length.min(BLOCK_BYTES);
        ControlFlow::Continue(())
    })?;
    let non_zero_bytes = (census.blocks - census.zero_blocks) * BLOCK_BYTES as u64;
    let result = serde_json::json!({
        "image_bytes": census.blocks * BLOCK_BYTES as u64,
        "non_zero_bytes": non_zero_bytes,
        "unique_bytes": census.unique_blocks * BLOCK_BYTES as u64,
        "incompressible_blocks": incompressible_blocks,
        "limit_bytes": limit_bytes,
        "limit_ratio": non_zero_bytes as f64 / (limit_bytes.max(1)) as f64,
    });
    writeln!(std::io::stdout(), "{result}")?;
    Ok(())
}
