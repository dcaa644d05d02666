//! Replication: who is primary, who must hold a write, and what may be answered.
//!
//! So far this is the part that decides, without sockets, threads or clocks of its own: *decisions*, which a small
//! consensus group orders, and the *role* of one node, a machine of state, input and time that says what to send,
//! to propose and to answer. It is proved in simulation (`kmod-free-tests/cluster`). *Control* is that group, with a
//! thread of its own. The daemon runs none of it yet.
//!
//! The shape is that of PacificA (Lin et al., Microsoft Research 2008): consensus decides on the configuration only,
//! data goes straight from the primary to the members of the in-sync set.

pub mod control;
pub mod decisions;
pub mod role;
pub mod timing;
