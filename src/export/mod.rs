//! Thin adapters that offer volumes to clients. They know protocols and sockets; they never know
//! how a volume is kept, who replicates it, or what it is called inside the array.

mod clock;
pub mod fuse;
pub mod latency;
pub mod nbd;
