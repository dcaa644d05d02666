//! The array beside its model, and one step of a program on both.

use std::collections::BTreeMap;
use std::sync::Arc;

use sinter::array::Array;
use sinter::array::ArrayOptions;
use sinter::array::BlockService;
use sinter::array::ExtentKind;
use sinter::array::GroupedWrite;
use sinter::array::NewVolume;
use sinter::array::Volume;
use sinter::array::VolumeState;
use sinter::array::VolumeUpdate;
use sinter::error::ErrorKind;
use sinter::store::Environment;
use sinter::store::Store;
use sinter::sync::RandomSource;
use sinter::units::ByteCount;
use sinter::units::Uuid;

use crate::kind;
use crate::pool::SeededRandom;
use crate::pool::new_store;

pub(crate) const BLOCK: usize = 4096;

/// One of a few names, of a volume that may or may not exist.
pub(crate) type Name = u8;

/// What a write writes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Content {
    /// Bytes from a seed: equal seeds make equal, hardly compressible data.
    Random(u8),
    /// A repeated word.
    Pattern([u8; 4]),
    Zeros,
}

impl Content {
    fn bytes(self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        match self {
            Content::Random(seed) => SeededRandom::new(seed.into()).fill(&mut bytes),
            Content::Pattern(word) => {
                for (at, byte) in bytes.iter_mut().enumerate() {
                    *byte = word[at % 4];
                }
            }
            Content::Zeros => {}
        }
        bytes
    }
}

/// One step of a program.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Create { name: Name, size: u32 },
    Delete { name: Name, force: bool },
    Rename { name: Name, to: Name },
    Describe { name: Name, description: String, tags: BTreeMap<String, String> },
    Resize { name: Name, size: u32 },
    Connect { name: Name },
    Disconnect { name: Name },
    Write { name: Name, at: u32, len: u32, content: Content },
    WriteTogether { name: Name, writes: Vec<(u32, u32, Content)> },
    Zero { name: Name, at: u32, len: u32 },
    Trim { name: Name, at: u32, len: u32 },
    Read { name: Name, at: u32, len: u32 },
    Status { name: Name, at: u32, len: u32, extents_max: u8 },
    Flush { name: Name },
    Background,
    Reload,
}

/// What the model knows of a volume.
struct ModelVolume {
    id: Uuid,
    bytes: Vec<u8>,
    description: String,
    tags: BTreeMap<String, String>,
    connected: Option<Arc<Volume>>,
}

impl ModelVolume {
    fn has(&self, at: u32, len: u32) -> bool {
        at as usize + len as usize <= self.bytes.len()
    }

    fn is_hole(&self, block: usize) -> bool {
        self.bytes[block * BLOCK..(block + 1) * BLOCK].iter().all(|byte| *byte == 0)
    }
}

pub(crate) struct World {
    store: Arc<Store>,
    environment: Environment,
    array: Arc<Array>,
    model: BTreeMap<Name, ModelVolume>,
    /// Services of volumes that were deleted under them.
    orphans: Vec<Arc<Volume>>,
}

fn text(name: Name) -> String {
    format!("volume {name}")
}

fn open(store: &Arc<Store>, environment: &Environment) -> Arc<Array> {
    let options = ArrayOptions::new("model");
    Array::new(store.clone(), options, environment.clone()).unwrap()
}

fn round_up(size: u32) -> usize {
    (size as usize).next_multiple_of(BLOCK)
}

impl World {
    pub(crate) fn new(seed: u64) -> World {
        let (store, environment) = new_store(seed);
        let array = open(&store, &environment);
        World { store, environment, array, model: BTreeMap::new(), orphans: Vec::new() }
    }

    /// One step, on both; panics where they differ.
    pub(crate) fn step(&mut self, step: &Step) {
        match step {
            Step::Create { name, size } => self.create(*name, *size),
            Step::Delete { name, force } => self.delete(*name, *force),
            Step::Rename { name, to } => self.rename(*name, *to),
            Step::Describe { name, description, tags } => self.describe(*name, description, tags),
            Step::Resize { name, size } => self.resize(*name, *size),
            Step::Connect { name } => {
                let opened = self.array.open_volume(&text(*name));
                match self.model.get_mut(name) {
                    Some(volume) => volume.connected = Some(opened.unwrap()),
                    None => assert_eq!(kind(opened), ErrorKind::NotFound),
                }
            }
            Step::Disconnect { name } => {
                if let Some(volume) = self.model.get_mut(name) {
                    volume.connected = None;
                }
            }
            Step::Background => {
                self.store.background_step().unwrap();
            }
            Step::Reload => {
                self.orphans.clear();
                self.model.values_mut().for_each(|volume| volume.connected = None);
                self.array = open(&self.store, &self.environment);
                self.check_all();
            }
            io => self.io(io),
        }
    }

    fn create(&mut self, name: Name, size: u32) {
        let new = NewVolume { name: text(name), size: ByteCount(size.into()), ..NewVolume::default() };
        let made = self.array.create_volume(new);
        if size == 0 || self.model.contains_key(&name) {
            let expected = if size == 0 { ErrorKind::Invalid } else { ErrorKind::Exists };
            assert_eq!(kind(made), expected);
            return;
        }
        let made = made.unwrap();
        assert_eq!(made.size_bytes.0, round_up(size) as u64);
        let volume = ModelVolume {
            id: made.id,
            bytes: vec![0; round_up(size)],
            description: String::new(),
            tags: BTreeMap::new(),
            connected: None,
        };
        self.model.insert(name, volume);
    }

    fn delete(&mut self, name: Name, force: bool) {
        let deleted = self.array.delete_volume(&text(name), force);
        match self.model.get(&name) {
            None => assert_eq!(kind(deleted), ErrorKind::NotFound),
            Some(volume) if volume.connected.is_some() && !force => {
                assert_eq!(kind(deleted), ErrorKind::Busy);
            }
            Some(_) => {
                deleted.unwrap();
                self.orphans.extend(self.model.remove(&name).and_then(|volume| volume.connected));
            }
        }
    }

    fn rename(&mut self, name: Name, to: Name) {
        let update = VolumeUpdate { name: Some(text(to)), ..VolumeUpdate::default() };
        let renamed = self.array.update_volume(&text(name), update);
        if !self.model.contains_key(&name) {
            assert_eq!(kind(renamed), ErrorKind::NotFound);
        } else if to != name && self.model.contains_key(&to) {
            assert_eq!(kind(renamed), ErrorKind::Exists);
        } else {
            assert_eq!(renamed.unwrap().name, text(to));
            let volume = self.model.remove(&name).unwrap();
            self.model.insert(to, volume);
        }
    }

    fn describe(&mut self, name: Name, description: &str, tags: &BTreeMap<String, String>) {
        let update =
            VolumeUpdate { name: None, description: Some(description.to_owned()), tags: Some(tags.clone()) };
        let Some(volume) = self.model.get_mut(&name) else {
            assert_eq!(kind(self.array.update_volume(&text(name), update)), ErrorKind::NotFound);
            return;
        };
        // By the id this time.
        self.array.update_volume(&volume.id.to_string(), update).unwrap();
        volume.description = description.to_owned();
        volume.tags = tags.clone();
    }

    fn resize(&mut self, name: Name, size: u32) {
        let resized = self.array.resize_volume(&text(name), ByteCount(size.into()));
        match self.model.get_mut(&name) {
            _ if size == 0 => assert_eq!(kind(resized), ErrorKind::Invalid),
            None => assert_eq!(kind(resized), ErrorKind::NotFound),
            Some(volume) if round_up(size) <= volume.bytes.len() => {
                assert_eq!(kind(resized), ErrorKind::Invalid);
            }
            Some(volume) => {
                assert_eq!(resized.unwrap().size_bytes.0, round_up(size) as u64);
                volume.bytes.resize(round_up(size), 0);
            }
        }
    }

    /// A step on blocks, through the open connection where there is one.
    fn io(&mut self, step: &Step) {
        let (Step::Write { name, .. }
        | Step::WriteTogether { name, .. }
        | Step::Zero { name, .. }
        | Step::Trim { name, .. }
        | Step::Read { name, .. }
        | Step::Status { name, .. }
        | Step::Flush { name }) = step
        else {
            unreachable!("{step:?} is no step on blocks");
        };
        let Some(volume) = self.model.get_mut(name) else { return };
        let service = volume.connected.clone();
        let service = service.unwrap_or_else(|| self.array.open_volume(&text(*name)).unwrap());
        match *step {
            Step::Write { at, len, content, .. } => {
                let data = content.bytes(len as usize);
                let written = service.write(at.into(), &data);
                if !volume.has(at, len) {
                    assert_eq!(kind(written), ErrorKind::Invalid);
                    return;
                }
                service.acknowledge(written.unwrap()).unwrap();
                volume.bytes[at as usize..][..len as usize].copy_from_slice(&data);
            }
            Step::WriteTogether { ref writes, .. } => {
                let data: Vec<Vec<u8>> =
                    writes.iter().map(|(_, len, content)| content.bytes(*len as usize)).collect();
                let group: Vec<GroupedWrite<'_>> = writes
                    .iter()
                    .zip(&data)
                    .map(|((at, ..), data)| GroupedWrite { request: None, offset: u64::from(*at), data })
                    .collect();
                for ((at, len, _), (data, written)) in
                    writes.iter().zip(data.iter().zip(service.write_group(&group)))
                {
                    if volume.has(*at, *len) {
                        service.acknowledge(written.unwrap()).unwrap();
                        volume.bytes[*at as usize..][..*len as usize].copy_from_slice(data);
                    } else {
                        assert_eq!(kind(written), ErrorKind::Invalid);
                    }
                }
            }
            Step::Zero { at, len, .. } => {
                let zeroed = service.write_zeroes(at.into(), ByteCount(len.into()));
                if !volume.has(at, len) {
                    assert_eq!(kind(zeroed), ErrorKind::Invalid);
                    return;
                }
                service.make_durable(zeroed.unwrap()).unwrap();
                volume.bytes[at as usize..][..len as usize].fill(0);
            }
            Step::Trim { at, len, .. } => {
                let trimmed = service.trim(at.into(), ByteCount(len.into()));
                if !volume.has(at, len) {
                    assert_eq!(kind(trimmed), ErrorKind::Invalid);
                    return;
                }
                service.acknowledge(trimmed.unwrap()).unwrap();
                let first = (at as usize).next_multiple_of(BLOCK);
                let end = (at + len) as usize / BLOCK * BLOCK;
                if first < end {
                    volume.bytes[first..end].fill(0);
                }
            }
            Step::Read { at, len, .. } => check_read(volume, &*service, at, len),
            Step::Status { at, len, extents_max, .. } => {
                check_status(volume, &*service, at, len, extents_max.into());
            }
            _ => service.flush().unwrap(),
        }
    }

    /// Compares everything that can be seen.
    pub(crate) fn check_all(&mut self) {
        let mut listed: Vec<String> = self.array.volumes().into_iter().map(|info| info.name).collect();
        listed.sort();
        assert_eq!(listed, self.model.keys().map(|name| text(*name)).collect::<Vec<_>>());
        for (name, volume) in &self.model {
            let info = self.array.volume(&text(*name)).unwrap();
            assert_eq!(info, self.array.volume(&volume.id.to_string()).unwrap());
            assert_eq!(info.id, volume.id);
            assert_eq!(info.size_bytes.0, volume.bytes.len() as u64);
            assert_eq!((&info.description, &info.tags), (&volume.description, &volume.tags));
            let state = if volume.connected.is_some() { VolumeState::InUse } else { VolumeState::Available };
            assert_eq!(info.state, state);
            let service = self.array.open_volume(&text(*name)).unwrap();
            let len = volume.bytes.len() as u32;
            check_read(volume, &*service, 0, len);
            check_status(volume, &*service, 0, len, usize::MAX);
        }
        for orphan in &self.orphans {
            assert_eq!(kind(orphan.read(0, &mut [0])), ErrorKind::NotFound);
            assert_eq!(kind(orphan.write(0, &[1])), ErrorKind::NotFound);
        }
        let status = self.array.status();
        assert_eq!(status.volumes, self.model.len() as u64);
        let provisioned: usize = self.model.values().map(|volume| volume.bytes.len()).sum();
        assert_eq!(status.provisioned_bytes.0, provisioned as u64);
        assert_eq!(status.problems, []);
    }

    /// Writes a little to each volume, and compares what the array says they hold.
    pub(crate) fn check_used(&mut self) {
        let names: Vec<Name> = self.model.keys().copied().collect();
        for name in names {
            self.step(&Step::Write { name, at: 0, len: 1, content: Content::Pattern([1; 4]) });
            let volume = &self.model[&name];
            let used = (0..volume.bytes.len() / BLOCK).filter(|block| !volume.is_hole(*block)).count();
            let info = self.array.volume(&text(name)).unwrap();
            assert_eq!(info.used_bytes.0, (used * BLOCK) as u64);
            assert!(info.reduction_ratio.is_finite());
        }
    }
}

fn check_read(volume: &ModelVolume, service: &dyn BlockService, at: u32, len: u32) {
    let mut buffer = vec![0xee; len as usize];
    let read = service.read(at.into(), &mut buffer);
    if !volume.has(at, len) {
        assert_eq!(kind(read), ErrorKind::Invalid);
        assert_eq!(kind(service.try_read(at.into(), &mut buffer)), ErrorKind::Invalid);
        return;
    }
    read.unwrap();
    let expected = &volume.bytes[at as usize..][..len as usize];
    assert!(buffer == expected, "{len} bytes at {at} read otherwise than they were written");
    let mut buffer = vec![0xee; len as usize];
    if service.try_read(at.into(), &mut buffer).unwrap() {
        assert!(buffer == expected, "{len} bytes at {at} read otherwise than they were written");
    }
}

/// A hole is a block of zeros, and nothing else is.
fn check_status(volume: &ModelVolume, service: &dyn BlockService, at: u32, len: u32, extents_max: usize) {
    let status = service.block_status(at.into(), ByteCount(len.into()), extents_max);
    if len == 0 || !volume.has(at, len) {
        assert_eq!(kind(status), ErrorKind::Invalid);
        return;
    }
    let extents = status.unwrap();
    assert!(!extents.is_empty() && extents.len() <= extents_max.max(1));
    assert!(extents.windows(2).all(|pair| pair[0].kind != pair[1].kind), "{extents:?}");
    let (mut from, end) = (at as usize, (at + len) as usize);
    for extent in &extents {
        let to = from + extent.len.0 as usize;
        assert!(to > from && to <= end, "{extents:?} of {len} bytes at {at}");
        for block in from / BLOCK..to.div_ceil(BLOCK) {
            assert_eq!(extent.kind == ExtentKind::Hole, volume.is_hole(block), "block {block}: {extents:?}");
        }
        from = to;
    }
    assert!(extents_max != usize::MAX || from == end, "{extents:?} end before {end}");
}
