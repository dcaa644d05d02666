//! `sinter attach`: its session against a model, and the command against daemons that are killed.
//!
//! `SINTER_ATTACH_HISTORIES` asks for more histories of the model, `SINTER_ATTACH_KILLS` for more kills than the usual.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

#[path = "../common/daemon.rs"]
mod daemon;
mod model;
mod real;

fn number_from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}
