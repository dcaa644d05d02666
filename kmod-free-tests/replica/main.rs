//! Clusters of real daemons on loopback, as users form and use them.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that fails panics")]

mod asynchronous;
#[path = "../process/client.rs"]
#[allow(dead_code, reason = "another binary of tests uses the rest")]
mod client;
mod command_line;
mod compared;
mod comparing;
#[path = "../common/daemon.rs"]
mod daemon;
mod devices;
mod disasters;
mod failovers;
mod hostile;
#[path = "../rest/http.rs"]
mod http;
mod loss;
mod netns;
mod passed_on;
#[path = "../common/pool.rs"]
mod pool;
mod renewal;
mod rot;
mod routes;
mod space;
mod tokens;
mod verified;
mod world;
