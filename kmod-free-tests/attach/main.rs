//! `sinter attach`: its session against models, and the command against daemons that are killed.
//!
//! `SINTER_ATTACH_HISTORIES` asks for more histories of the model, `SINTER_ATTACH_KILLS` for more kills than the usual,
//! `SINTER_ATTACH_FAILOVERS` for more failovers.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod again;
#[path = "../common/daemon.rs"]
mod daemon;
#[path = "../rest/http.rs"]
#[allow(dead_code, reason = "another binary of tests uses the rest")]
mod http;
mod model;
mod once;
#[path = "../common/pool.rs"]
mod pool;
mod real;
mod several;
#[path = "../replica/world.rs"]
#[allow(dead_code, reason = "another binary of tests uses the rest")]
mod world;

fn number_from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}
