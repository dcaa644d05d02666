//! Replication: who is primary, who must hold a write, and what may be answered.
//!
//! One part decides and follows, without sockets, threads or clocks of its own: *decisions*, which a small consensus
//! group orders; the *role* of one node, a machine of state, input and time that says what to send, to propose and to
//! answer; the *stream* to a secondary and its *follower* there. Around them are thin drivers: *control*, the group;
//! *identity* and *links*, who a node is and how nodes talk; the *node* at work, and the *cluster* as it has it.
//!
//! The shape is that of PacificA (Lin et al., Microsoft Research 2008): consensus decides on the configuration only,
//! data goes straight from the primary to the members of the in-sync set.

pub mod bookmarks;
pub mod cluster;
pub mod compare;
pub mod control;
pub mod decisions;
pub mod epochs;
pub mod follower;
pub mod history;
pub mod identity;
pub mod lag;
pub mod link;
pub mod node;
pub mod ring;
pub mod role;
pub mod room;
pub mod session;
pub mod stream;
pub mod timing;
pub mod wire;
