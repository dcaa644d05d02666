//! The `sinter` binary.

fn main() {}
