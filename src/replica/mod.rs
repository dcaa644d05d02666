//! Replication: who is primary, who must hold a write, and what may be answered.
//!
//! One part decides, without sockets, threads or clocks of its own: *decisions*, which a small consensus group
//! orders, and the *role* of one node, a machine of state, input and time that says what to send, to propose and to
//! answer. It is proved in simulation (`kmod-free-tests/cluster`); the daemon does not run it yet. Beside it are
//! *identity*, who a node is and how it joins, and *links*, over which nodes talk.
//!
//! The shape is that of PacificA (Lin et al., Microsoft Research 2008): consensus decides on the configuration only,
//! data goes straight from the primary to the members of the in-sync set.

pub mod decisions;
pub mod identity;
pub mod link;
pub mod role;
pub mod timing;
