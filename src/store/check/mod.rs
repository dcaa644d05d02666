//! Check: is everything that the pool says of itself true? And repair: making it true again.
//!
//! A check recounts from the roots and changes nothing (`verify`); a repair rewrites what can be counted, and gives
//! up as lost what cannot be read (`repair`). Both work on a pool that nobody serves.

mod places;
pub mod plant;
mod repair;
mod verify;

use std::sync::Arc;

use crate::device::Device;
use crate::error::Result;
use crate::units::{ByteCount, ObjectNumber};

use super::Store;
use super::options::{Environment, StoreOptions};

/// One fault that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What is wrong with what.
    pub what: String,
    /// Some of the places where clients meet it, as far as they are known.
    pub places: Vec<Place>,
    /// Places beyond those.
    pub places_more: u64,
}

impl Fault {
    fn new(what: String) -> Fault {
        Fault { what, places: Vec::new(), places_more: 0 }
    }
}

/// A stretch of a volume or snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Which one.
    pub object: ObjectNumber,
    /// Where it begins, in bytes.
    pub offset: u64,
    /// How long it is; what is shorter than a map node's share of it ends earlier.
    pub length: ByteCount,
}

/// A volume or snapshot that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckedObject {
    /// Its number in the pool.
    pub number: ObjectNumber,
    /// Its size.
    pub size: ByteCount,
    /// What the layer above keeps of it.
    pub opaque: Vec<u8>,
}

/// What a check has looked at and found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Volumes and snapshots.
    pub objects: Vec<CheckedObject>,
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
            let mut found = store.verify_opened(progress)?;
            found.log_is_damaged = !report.damage.is_empty();
            found.faults.extend(report.damage.into_iter().map(Fault::new));
            Ok(found)
        }
        CheckMode::LastCheckpointOnly => {
            let (store, _) = Store::open_checkpoint(devices, options, environment)?;
            store.verify_opened(progress)
        }
        CheckMode::Repair => repair::repair(devices, options, environment, progress),
    }
}
