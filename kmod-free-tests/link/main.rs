//! Links between nodes over real sockets: who is let in, what frames carry, and that nothing a stranger sends does
//! harm.

#![expect(clippy::unwrap_used, reason = "a test ends where it cannot go on")]
#![expect(clippy::disallowed_methods, reason = "real sockets wait in real time, and tests measure it")]

mod hostile;
mod identity;
mod talk;
mod tunnels;
mod world;
