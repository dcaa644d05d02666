//! Thin adapters that offer volumes to clients. They know protocols and sockets; they never know
//! how a volume is kept, who replicates it, or what it is called inside the array.

pub mod nbd;
