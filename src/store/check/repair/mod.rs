//! Repair: what can be counted is counted anew from the roots, what nothing reaches is let go of, and what cannot
//! be read is given up as lost, never as zeros.
//!
//! The order is what makes it safe, also when it is broken off and started again. *Before anything is written*
//! the live bytes of every segment are counted, because a segment that wrongly counts none would be taken for a free
//! one. *Before the log is replayed* the maps are mended and the counts of nodes are right, because replay asks
//! whether a node is shared. Changes of counts are never merged into counts that have not been verified: a count that
//! is too low would take a block away from those who still refer to it. Whatever has been written in between leaves
//! counts right or too high, which costs space until the next repair and nothing else.
//!
//! A mapping whose block is nowhere or fails its checksum becomes `Mapping::Lost`: an I/O error until it is written
//! again. So does everything below a map node that cannot be read, holes included, because nobody knows any more
//! which were holes. A device that fails to answer ends the repair: it may answer again, or a copy of it may.

mod blocks;
mod nodes;
mod tables;

use std::sync::Arc;

use crate::device::Device;
use crate::error::Result;
use crate::format::page::PageKey;
use crate::format::root::CheckpointRoot;
use crate::units::MapNodeId;

use super::super::Store;
use super::super::map::LEVEL_MAX;
use super::super::options::{Environment, OpenReport, StoreOptions};
use super::super::run::Caller;
use super::{CheckReport, FAULTS_MAX, Fault};

/// Opens the pool, repairs it, and checks it.
///
/// A log that is damaged is left alone: what it has lost must be given up by whoever opens the pool for it.
///
/// # Errors
/// `Corrupt` where there is no checkpoint to begin with, `Device`, `NoSpace`, and as `Store::open` for a wrong list
/// of devices.
pub(crate) fn repair(
    devices: Vec<Arc<dyn Device>>,
    options: StoreOptions,
    environment: Environment,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<CheckReport> {
    let (store, root) = Store::at_checkpoint(devices, options, environment)?;
    let chain = store.walk_chain(&root)?;
    if !chain.damage.is_empty() && !store.options.accept_loss {
        let faults = chain.damage.into_iter().map(Fault::new).collect();
        return Ok(CheckReport { faults, ..CheckReport::default() });
    }
    let mut repair = Repair::new(&store, &root);
    repair.tables()?;
    store.core.lock().segments.classify(|segment| chain.segments.contains(&segment.0));
    repair.nodes()?;
    repair.checkpoint()?;

    let mut replayed = OpenReport::default();
    store.replay(&root, &chain, &mut replayed)?;
    if !replayed.damage.is_empty() && !store.options.accept_loss {
        let faults = replayed.damage.into_iter().map(Fault::new).collect();
        let (repairs, repairs_more) = (repair.repairs, repair.repairs_more);
        return Ok(CheckReport { faults, repairs, repairs_more, ..CheckReport::default() });
    }
    store.close_chain(&chain);
    store.begin_log()?;
    repair.moment = Moment::Serving;
    repair.checkpoint()?;

    // Replay has changed the maps since.
    repair.nodes()?;
    repair.blocks(progress)?;
    repair.touch_half_damaged()?;
    {
        let mut core = store.core.lock();
        core.bad_blocks.clear();
        core.segments.clear_damaged();
    }
    repair.checkpoint()?;
    let (repairs, repairs_more) = (repair.repairs, repair.repairs_more);
    Ok(CheckReport { repairs, repairs_more, ..store.verify_opened(progress)? })
}

/// Where in the opening a repair is, and so where in the log its checkpoints say that replay begins.
#[derive(Clone, Copy)]
enum Moment<'a> {
    /// As of the checkpoint that was found.
    BeforeReplay(&'a CheckpointRoot),
    /// Behind everything.
    Serving,
}

/// A repair under way.
struct Repair<'a> {
    store: &'a Store,
    moment: Moment<'a>,
    repairs: Vec<Fault>,
    repairs_more: u64,
    /// Pages of which one copy is damaged and the other is not.
    half_damaged: Vec<PageKey>,
    /// References found to each node.
    node_references: Vec<u32>,
    /// By level, a node below which everything is lost; shared within the subtree that is made to say so.
    lost_nodes: [Option<MapNodeId>; LEVEL_MAX as usize + 1],
}

impl<'a> Repair<'a> {
    fn new(store: &'a Store, root: &'a CheckpointRoot) -> Repair<'a> {
        Repair {
            store,
            moment: Moment::BeforeReplay(root),
            repairs: Vec::new(),
            repairs_more: 0,
            half_damaged: Vec::new(),
            node_references: Vec::new(),
            lost_nodes: [None; LEVEL_MAX as usize + 1],
        }
    }

    fn note(&mut self, what: String) {
        if self.repairs.len() < FAULTS_MAX {
            self.repairs.push(Fault::new(what));
        } else {
            self.repairs_more += 1;
        }
    }

    /// Makes what has been mended durable; changes of counts stay pending.
    fn checkpoint(&self) -> Result<()> {
        match self.moment {
            Moment::BeforeReplay(root) => self.store.checkpoint_before_replay(root),
            Moment::Serving => self.store.checkpoint_without_merge(),
        }
    }

    /// Has pages written anew of which one copy is damaged.
    fn touch_half_damaged(&mut self) -> Result<()> {
        for key in std::mem::take(&mut self.half_damaged) {
            let touched = self.store.run(Caller::Maintenance, |core| {
                // What nothing reached has gone meanwhile.
                if core.pointer(key)?.is_none() { Ok(()) } else { core.touch_page(key) }
            });
            touched?;
            self.note(format!(
                "one copy of page {} of table {:?} (level {}) was damaged",
                key.number, key.table, key.level
            ));
            self.checkpoint_if_full()?;
        }
        Ok(())
    }

    fn checkpoint_if_full(&self) -> Result<()> {
        let full = {
            let core = self.store.core.lock();
            core.cache.dirty_pages() >= core.geometry.dirty_start
                || core.dropped.len() >= core.geometry.dirty_start
        };
        if full { self.checkpoint() } else { Ok(()) }
    }
}
