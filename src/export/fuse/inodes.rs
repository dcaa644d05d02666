//! Inode numbers: what the kernel calls the files and directories that it has looked up.
//!
//! A number is made from the id of what it stands for, so that it is the same after a remount. The
//! table holds what the kernel knows, and no more: an entry goes when the kernel has forgotten it.

use std::collections::HashMap;

use xxhash_rust::xxh3::xxh3_64;

use super::catalog::FileId;
use crate::sync::Mutex;

/// The number of a file or directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Inode(pub u64);

impl Inode {
    /// The directory that the mount shows.
    pub const ROOT: Inode = Inode(1);
    const VOLUMES: Inode = Inode(2);
    const SNAPSHOTS: Inode = Inode(3);
}

/// What a number stands for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Object {
    /// The top.
    Root,
    /// `volumes`.
    Volumes,
    /// `snapshots`.
    Snapshots,
    /// `snapshots/VOLUME`, by the volume's name.
    SnapshotsOf(String),
    /// A volume or snapshot.
    File(FileId),
}

/// Bits of a number that come from an id; the four above say what kind of thing it is.
const ID_BITS: u32 = 60;

impl Object {
    /// The number, unless another object has it already.
    pub(super) fn usual_inode(&self) -> Inode {
        let (kind, id) = match self {
            Object::Root => return Inode::ROOT,
            Object::Volumes => return Inode::VOLUMES,
            Object::Snapshots => return Inode::SNAPSHOTS,
            Object::File(FileId::Volume(id)) => (1, id.head()),
            Object::File(FileId::Snapshot { id, .. }) => (2, id.head()),
            Object::SnapshotsOf(volume) => (3, xxh3_64(volume.as_bytes())),
        };
        Inode((kind << ID_BITS) | (id >> (u64::BITS - ID_BITS)))
    }
}

/// The table.
#[derive(Default)]
pub(super) struct Inodes {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    known: HashMap<Inode, Known>,
    numbers: HashMap<Object, Inode>,
}

struct Known {
    object: Object,
    /// How often the kernel was told the number; it forgets as often.
    lookups: u64,
}

impl Inodes {
    /// The object's number, which the kernel is told once more.
    pub(super) fn look_up(&self, object: Object) -> Inode {
        let usual = object.usual_inode();
        if usual <= Inode::SNAPSHOTS {
            return usual;
        }
        let mut state = self.state.lock();
        let number = state.numbers.get(&object).copied().unwrap_or_else(|| {
            // Two ids with the same beginning are unheard of; should they meet, the later one moves on.
            let mut number = usual;
            while state.known.contains_key(&number) {
                number = Inode(number.0.wrapping_add(1).max(Inode::SNAPSHOTS.0 + 1));
            }
            number
        });
        let known = state.known.entry(number).or_insert_with(|| Known { object: object.clone(), lookups: 0 });
        known.lookups += 1;
        state.numbers.insert(object, number);
        number
    }

    /// What the number stands for; `None` where the kernel was never told it.
    pub(super) fn object(&self, inode: Inode) -> Option<Object> {
        match inode {
            Inode::ROOT => Some(Object::Root),
            Inode::VOLUMES => Some(Object::Volumes),
            Inode::SNAPSHOTS => Some(Object::Snapshots),
            _ => self.state.lock().known.get(&inode).map(|known| known.object.clone()),
        }
    }

    /// The kernel has forgotten so many of its lookups.
    pub(super) fn forget(&self, inode: Inode, lookups: u64) {
        let mut state = self.state.lock();
        let Some(known) = state.known.get_mut(&inode) else { return };
        known.lookups = known.lookups.saturating_sub(lookups);
        if known.lookups == 0
            && let Some(known) = state.known.remove(&inode)
        {
            state.numbers.remove(&known.object);
        }
    }

    /// How many numbers the kernel knows, fixed ones apart.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        let state = self.state.lock();
        assert_eq!(state.known.len(), state.numbers.len());
        state.known.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Uuid;

    fn volume(last: u8) -> Object {
        let mut id = [7; 16];
        id[15] = last;
        Object::File(FileId::Volume(Uuid(id)))
    }

    #[test]
    fn numbers_live_as_long_as_the_kernel_knows_them() {
        let inodes = Inodes::default();
        let number = inodes.look_up(volume(1));
        assert_eq!(inodes.look_up(volume(1)), number);
        assert_eq!(number, volume(1).usual_inode());
        inodes.forget(number, 1);
        assert_eq!(inodes.object(number), Some(volume(1)));
        inodes.forget(number, 1);
        assert_eq!((inodes.object(number), inodes.len()), (None, 0));
        inodes.forget(number, 1);
        inodes.forget(Inode::ROOT, 5);
        assert_eq!(inodes.object(Inode::ROOT), Some(Object::Root));
    }

    #[test]
    fn ids_that_begin_alike_get_numbers_of_their_own() {
        let inodes = Inodes::default();
        let numbers: Vec<Inode> = (0..20).map(|last| inodes.look_up(volume(last))).collect();
        for (last, number) in (0..20).zip(&numbers) {
            assert_eq!(inodes.object(*number), Some(volume(last)));
        }
        assert_eq!(inodes.len(), 20);
        let snapshot = Object::File(FileId::Snapshot { of: Uuid([1; 16]), id: Uuid([7; 16]) });
        assert_ne!(snapshot.usual_inode(), volume(7).usual_inode());
        assert_ne!(
            Object::SnapshotsOf("a".to_owned()).usual_inode(),
            Object::SnapshotsOf("b".to_owned()).usual_inode()
        );
    }
}
