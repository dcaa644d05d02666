//! Check: is everything that the pool says of itself true? And repair: making it true again.
//!
//! A check recounts from the roots and changes nothing (`verify`); a repair rewrites what can be counted, and gives
//! up as lost what cannot be read (`repair`). Both work on a pool that nobody serves.

pub mod plant;
mod repair;
mod verify;

use std::sync::Arc;

use crate::device::Device;
use crate::error::Result;

use super::Store;
use super::options::{Environment, StoreOptions};

/// One fault that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What is wrong with what.
    pub what: String,
}

/// What a check has looked at and found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Volumes and snapshots.
    pub objects: u64,
    /// Map nodes.
    pub nodes: u64,
    /// Stored blocks.
    pub blocks: u64,
    /// Bytes of blocks and pages whose checksums were verified.
    pub bytes_verified: u64,
    /// What is wrong, at most `FAULTS_MAX` of it.
    pub faults: Vec<Fault>,
    /// Faults beyond those.
    pub faults_more: u64,
    /// Whether the log is among what is damaged: no repair mends it, and only giving up what it held helps.
    pub log_is_damaged: bool,
    /// What a repair has put right or given up, at most `FAULTS_MAX` of it; `faults` is what is left then.
    pub repairs: Vec<Fault>,
    /// Repairs beyond those.
    pub repairs_more: u64,
}

/// What a check starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckMode {
    /// Opens the pool as serving does, recovery's checkpoint included.
    AfterRecovery,
    /// Looks at the last checkpoint and writes nothing.
    LastCheckpointOnly,
    /// Puts right what it finds, gives up what cannot be read, and then checks.
    Repair,
}

/// Most faults that a report holds.
pub const FAULTS_MAX: usize = 1000;

/// Checks a pool. `progress` is told now and then how many of how many blocks were verified.
///
/// # Errors
/// As `Store::open`, for a pool that cannot be opened at all.
pub fn check(
    devices: Vec<Arc<dyn Device>>,
    options: StoreOptions,
    environment: Environment,
    mode: CheckMode,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<CheckReport> {
    match mode {
        CheckMode::AfterRecovery => {
            let (store, report) = Store::open(devices, options, environment)?;
            let mut found = store.verify(progress)?;
            found.log_is_damaged = !report.damage.is_empty();
            found.faults.extend(report.damage.into_iter().map(|what| Fault { what }));
            Ok(found)
        }
        CheckMode::LastCheckpointOnly => {
            let (store, _) = Store::open_checkpoint(devices, options, environment)?;
            store.verify(progress)
        }
        CheckMode::Repair => repair::repair(devices, options, environment, progress),
    }
}
