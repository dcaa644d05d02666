//! Clusters of real daemons on loopback, as users form and use them.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that fails panics")]

#[path = "../process/client.rs"]
#[allow(dead_code, reason = "another binary of tests uses the rest")]
mod client;
mod command_line;
mod compared;
#[path = "../common/daemon.rs"]
mod daemon;
mod disasters;
mod failovers;
#[path = "../rest/http.rs"]
mod http;
mod loss;
mod netns;
mod passed_on;
#[path = "../common/pool.rs"]
mod pool;
mod renewal;
mod routes;
mod tokens;
mod verified;
mod world;
