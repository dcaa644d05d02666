//! Making and opening pools.

mod open;
mod walk;

pub(crate) use self::walk::read_header;

use std::sync::Arc;

use crate::device::Device;
use crate::error::{Error, ErrorKind, Result};
use crate::format::page::Table;
use crate::format::root::CheckpointRoot;
use crate::format::segment::SegmentKind;
use crate::format::superblock::{DEVICES_MAX, DeviceRecord, SUPERBLOCK_AREA_BYTES, Superblock};
use crate::sync::{Condition, Mutex};
use crate::units::{
    BLOCK_BYTES, ByteCount, CheckpointNumber, DeviceOffset, Epoch, Incarnation, Lsn, MapNodeId, SegmentId,
    SessionMemory, Uuid,
};

use super::blocks::changes::Changes;
use super::blocks::ids::IdSpace;
use super::blocks::index::FingerprintIndex;
use super::blocks::rebuild::Rebuild;
use super::core::{Core, Objects};
use super::geometry::{Geometry, segment_bytes_for, segments_on};
use super::heat::{Heat, heat_bytes};
use super::helpers::Helpers;
use super::log::appender::Appender;
use super::log::open_log::OpenLog;
use super::log::segments::SegmentTable;
use super::map::borrow::Borrowers;
use super::options::{Environment, PoolIdentity, StoreOptions};
use super::probe::wrong_version;
use super::run::Caller;
use super::sessions::Sessions;
use super::table::cache::Cache;
use super::{Figures, Store};

impl Store {
    /// Makes a new, empty pool on the devices, whatever they hold, and opens it. Sizes are checked before
    /// anything is written.
    ///
    /// # Errors
    /// `Invalid` for devices that are too small or too many, `Device`, `NoSpace`.
    pub fn create(
        devices: Vec<Arc<dyn Device>>,
        options: StoreOptions,
        environment: Environment,
    ) -> Result<Store> {
        Store::create_as(devices, options, environment, None)
    }

    /// As `create`, with the identity of a pool that another node has: its fingerprints mean the same, and what is
    /// shipped goes on behind its position. The ids of the devices are its own.
    ///
    /// # Errors
    /// As `create`.
    pub fn create_as(
        devices: Vec<Arc<dyn Device>>,
        options: StoreOptions,
        environment: Environment,
        identity: Option<&PoolIdentity>,
    ) -> Result<Store> {
        if devices.is_empty() || devices.len() > DEVICES_MAX {
            let what = format!("{} devices: a pool has from 1 to {DEVICES_MAX}", devices.len());
            return Err(Error::new(ErrorKind::Invalid, what));
        }
        let total: u64 = devices.iter().map(|device| device.len().0).sum();
        let segment_bytes = match options.segment_bytes.0 {
            0 => segment_bytes_for(ByteCount(total)),
            _ => options.segment_bytes,
        };
        let random_id = || {
            let mut bytes = [0u8; 16];
            environment.random.fill(&mut bytes);
            Uuid::from_random(bytes)
        };
        let mut records = Vec::new();
        for device in &devices {
            let segments = segments_on(device.len(), segment_bytes.max(ByteCount(1)));
            if segments == 0 {
                let what = format!("{} of {} bytes is too small for a segment", device.name(), device.len());
                return Err(Error::new(ErrorKind::Invalid, what));
            }
            let segments = u32::try_from(segments).unwrap_or(u32::MAX);
            records.push(DeviceRecord { id: random_id(), segments });
        }
        let own = || {
            let pool = random_id();
            let mut fingerprint_key = [0u8; 32];
            environment.random.fill(&mut fingerprint_key);
            let position = (Epoch { generation: 1, number: 1 }, Lsn(0));
            PoolIdentity { pool, fingerprint_key, position }
        };
        let PoolIdentity { pool, fingerprint_key, position } = identity.cloned().unwrap_or_else(own);
        let created = environment.clock.since_unix_epoch().as_millis();
        let identity = Superblock {
            pool,
            fingerprint_key,
            device: 0,
            devices: records,
            segment_bytes,
            created: u64::try_from(created).unwrap_or(0),
            checkpoint: CheckpointNumber(0),
            incarnation: Incarnation(0),
            root: Vec::new(),
            root_copy: Vec::new(),
        };
        let root = CheckpointRoot {
            epoch: position.0,
            lsn: position.1,
            next_object: 1,
            next_node: MapNodeId(1),
            next_sequence: 1,
            ..CheckpointRoot::default()
        };
        let store = Store::assemble(devices, options, environment, identity, &root)?;
        store.wipe()?;
        let mut core = store.core.lock();
        core.segments.classify(|_| false);
        drop(core);
        store.begin_serving()?;
        Ok(store)
    }

    /// Overwrites what another pool may have left where superblocks are looked for.
    fn wipe(&self) -> Result<()> {
        let zeros = vec![0u8; usize::try_from(SUPERBLOCK_AREA_BYTES).expect("64 KiB")];
        for device in &self.devices {
            for offset in [0, device.len().0 - SUPERBLOCK_AREA_BYTES] {
                device.write_at(DeviceOffset(offset), &[&zeros]).map_err(|error| {
                    Error::caused(ErrorKind::Device, format!("writing to {}", device.name()), error)
                })?;
            }
        }
        self.sync_all()
    }

    /// A store as of a checkpoint's root, without the tables that are held in memory.
    fn assemble(
        devices: Vec<Arc<dyn Device>>,
        options: StoreOptions,
        environment: Environment,
        identity: Superblock,
        root: &CheckpointRoot,
    ) -> Result<Store> {
        let counts: Vec<u32> = identity.devices.iter().map(|device| device.segments).collect();
        let geometry = Geometry::new(identity.segment_bytes, &counts, options.metadata_budget)?;
        let incarnation = Incarnation(environment.random.number().max(1));
        let log = OpenLog::new(root.lsn.next(), root.epoch, incarnation, geometry.dirty_limit);
        let pool_blocks = geometry.capacity_bytes() / BLOCK_BYTES as u64;
        let mut core = Core {
            pool_short: identity.pool.head(),
            cache: Cache::new(geometry.frames, 1),
            roots: root.tables,
            segments: SegmentTable::new(geometry.segments(), geometry.segment_bytes),
            objects: Objects::new(root.next_object),
            block_changes: Changes::default(),
            node_changes: Changes::default(),
            block_ids: IdSpace::new(Table::FreedBlocks, root.next_block.0, root.counters.freed_blocks),
            node_ids: IdSpace::new(Table::FreedNodes, root.next_node.0, root.counters.freed_nodes),
            release_queue: root.release_queue.iter().copied().collect(),
            borrowers: Borrowers::of(&root.borrowers),
            released_nodes: 0,
            dropped: Vec::new(),
            sharing: 1,
            checkpointed_at: environment.clock.monotonic(),
            quiet_since: (root.lsn, environment.clock.monotonic()),
            log,
            heat: Heat::new(pool_blocks, options.index_budget),
            moved: Appender::new(SegmentKind::Moved),
            cold: Appender::new(SegmentKind::Moved),
            leaving: std::collections::BTreeSet::new(),
            levelling: false,
            levelled_at: 0,
            metadata: Appender::new(SegmentKind::Metadata),
            metadata_copy: Appender::new(SegmentKind::MetadataCopy),
            next_sequence: root.next_sequence,
            counters: root.counters,
            checkpoint: root.number,
            root_extents: [identity.root.clone(), identity.root_copy.clone()].concat(),
            rebuild: Rebuild::of_table(root.next_block),
            bad_blocks: std::collections::BTreeSet::new(),
            sessions: Sessions::new(SessionMemory(incarnation.0)),
            may_lack: false,
            being_synced: root.syncing,
            following: false,
            stopped: None,
            opened_damaged: false,
            maintaining: false,
            waiting_for_maintenance: 0,
            faults: options.faults,
            geometry: geometry.clone(),
        };
        core.block_ids.no_quarantine = options.faults.reuse_ids_at_once;
        core.node_ids.no_quarantine = options.faults.reuse_ids_at_once;
        for change in &root.block_changes {
            core.block_changes.restore(change.id.0, change.delta);
        }
        for change in &root.node_changes {
            core.node_changes.restore(change.id.0, change.delta);
        }
        let heat_bytes = heat_bytes(pool_blocks, options.index_budget);
        let index = FingerprintIndex::new(ByteCount(options.index_budget.0.saturating_sub(heat_bytes)))?;
        Ok(Store {
            devices,
            options,
            environment,
            identity,
            geometry,
            core: Mutex::new(core),
            changed: Condition::new(),
            index,
            scrub: Mutex::default(),
            asking_host: Mutex::new(()),
            helpers: Helpers::default(),
            figures: Figures::default(),
        })
    }

    /// Opens a fresh log segment under this incarnation, and makes the checkpoint before which nothing is
    /// appended or acknowledged: else a batch that one recovery dropped could come back in the next.
    fn begin_serving(&self) -> Result<()> {
        self.begin_log()?;
        // The checkpoint alone does not write it where no operation is new; and batches might survive without it.
        self.write_out_all()?;
        self.checkpoint_in_role()
    }

    /// Opens the log segment; the checkpoint that makes it count must follow. Replay, where there was any, is over.
    pub(crate) fn begin_log(&self) -> Result<()> {
        let (segment, successor) = self.take_log_segments()?;
        let mut core = self.core.lock();
        core.enter_segment(segment, successor);
        let max = core.geometry.borrowers.min(self.options.borrowers_max);
        core.borrowers.limit(max);
        Ok(())
    }

    /// Takes a segment where a log is to begin, and its successor.
    pub(crate) fn take_log_segments(&self) -> Result<(SegmentId, SegmentId)> {
        let take = || {
            self.run(Caller::Maintenance, |core| {
                core.prepare_segment(0, false)?;
                Ok(core.take_segment(SegmentKind::Log, false))
            })
        };
        Ok((take()?, take()?))
    }

    /// The first eight bytes of the pool's id.
    pub(crate) fn short_id(&self) -> u64 {
        self.identity.pool.head()
    }
}

/// A pool's newest superblock, of those that agree with each other.
fn newest_superblock(devices: &[Arc<dyn Device>]) -> Result<Superblock> {
    let mut newest: Option<Superblock> = None;
    for (index, device) in devices.iter().enumerate() {
        let found = super::root::read_superblocks(&**device);
        let Some(best) = found.into_iter().max_by_key(|superblock| superblock.checkpoint) else {
            if let Some(version) = super::root::other_version(&**device) {
                return Err(Error::new(ErrorKind::Busy, wrong_version(&**device, version)));
            }
            let what = format!("{} holds no superblock of a pool", device.name());
            return Err(Error::new(ErrorKind::Corrupt, what));
        };
        if best.devices.len() != devices.len() || best.device as usize != index {
            let what = format!(
                "{} is device {} of {} of its pool: give all devices, in their order",
                device.name(),
                best.device + 1,
                best.devices.len()
            );
            return Err(Error::new(ErrorKind::Busy, what));
        }
        if let Some(newest) = &newest
            && newest.pool != best.pool
        {
            let what = format!("{} belongs to another pool", device.name());
            return Err(Error::new(ErrorKind::Busy, what));
        }
        let room = segments_on(device.len(), best.segment_bytes.max(ByteCount(1)));
        if room < u64::from(best.devices[index].segments) {
            let what = format!("{} has become smaller than it was", device.name());
            return Err(Error::new(ErrorKind::Invalid, what));
        }
        if newest.as_ref().is_none_or(|newest| newest.checkpoint < best.checkpoint) {
            newest = Some(best);
        }
    }
    newest.ok_or_else(|| Error::new(ErrorKind::Invalid, "a pool has at least one device"))
}
