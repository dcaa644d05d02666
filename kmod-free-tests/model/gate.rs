//! Where other nodes hold the array too: nothing is answered before the gate has said so, and the catalog follows
//! what was committed past the array.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use sinter::array::Array;
use sinter::array::ArrayOptions;
use sinter::array::BlockService;
use sinter::array::Commit;
use sinter::array::CommitGate;
use sinter::array::NewVolume;
use sinter::array::Tenure;
use sinter::array::service::Change;
use sinter::error::Error;
use sinter::error::ErrorKind;
use sinter::error::Result;
use sinter::format::system::Bookmark;
use sinter::store::CloneRequest;
use sinter::store::Store;
use sinter::units::BlockCount;
use sinter::units::ByteCount;
use sinter::units::Lba;
use sinter::units::Lsn;
use sinter::units::ObjectNumber;
use sinter::units::RequestId;
use sinter::units::RequestNumber;
use sinter::units::SessionId;
use sinter::units::Uuid;

use crate::kind;
use crate::management::open;
use crate::pool::new_store;

/// What a gate was asked, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Admit,
    Acknowledged(Lsn),
    Durable(Lsn),
    Read(ObjectNumber, u64, u64),
    TryRead(ObjectNumber, u64, u64),
}

/// Answers what it is told to, and checks that it is asked late enough.
struct Gate {
    store: Arc<Store>,
    asked: Mutex<Vec<Asked>>,
    refuses: Mutex<Option<ErrorKind>>,
    tenure: AtomicU64,
}

impl Gate {
    fn note(&self, asked: Asked) -> Result<()> {
        self.asked.lock().unwrap().push(asked);
        match *self.refuses.lock().unwrap() {
            Some(kind) => Err(Error::new(kind, "not here")),
            None => Ok(()),
        }
    }

    fn take(&self) -> Vec<Asked> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }
}

impl CommitGate for Gate {
    fn done(&self) {}

    fn admit(&self) -> Result<()> {
        self.note(Asked::Admit)
    }

    fn tenure(&self) -> Tenure {
        Tenure(self.tenure.load(Ordering::Relaxed))
    }

    fn acknowledged(&self, lsn: Lsn) -> Result<()> {
        self.note(Asked::Acknowledged(lsn))
    }

    fn durable(&self, lsn: Lsn) -> Result<()> {
        assert!(self.store.durable_lsn() >= lsn);
        self.note(Asked::Durable(lsn))
    }

    fn may_answer_read(&self, object: ObjectNumber, first: Lba, count: BlockCount) -> Result<()> {
        self.note(Asked::Read(object, first.0, count.0))
    }

    fn try_answer_read(&self, object: ObjectNumber, first: Lba, count: BlockCount) -> Result<bool> {
        let refused = self.note(Asked::TryRead(object, first.0, count.0)).is_err();
        Ok(!refused)
    }
}

fn gated() -> (Arc<Array>, Arc<Gate>) {
    let (store, environment) = new_store(1);
    let gate = Arc::new(Gate {
        store: store.clone(),
        asked: Mutex::default(),
        refuses: Mutex::default(),
        tenure: AtomicU64::new(0),
    });
    let options = ArrayOptions { gate: Some(gate.clone()), ..ArrayOptions::new("test") };
    (Array::new(store, options, environment).unwrap(), gate)
}

fn new(name: &str) -> NewVolume {
    NewVolume { name: name.to_owned(), size: ByteCount(1 << 20), ..NewVolume::default() }
}

#[test]
fn every_answer_has_passed_the_gate() {
    let (array, gate) = gated();
    array.create_volume(new("a")).unwrap();
    assert_eq!(gate.take(), [Asked::Admit, Asked::Durable(Lsn(1))]);
    let volume = array.open_volume("a").unwrap();
    let number = gate.store.objects().unwrap()[0].number;
    // The edges are read to be changed, and given to nobody.
    let commit = volume.write(100, &[7; 5000]).unwrap();
    assert_eq!(gate.take(), [Asked::Admit]);
    volume.acknowledge(commit).unwrap();
    volume.make_durable(commit).unwrap();
    assert_eq!(gate.take(), [Asked::Acknowledged(commit.0), Asked::Durable(commit.0)]);
    let mut buffer = [0; 5000];
    volume.read(4000, &mut buffer).unwrap();
    assert!(volume.try_read(4096, &mut buffer[..4096]).unwrap());
    volume.block_status(8192, ByteCount(4096), 4).unwrap();
    let reads = [Asked::Read(number, 0, 3), Asked::TryRead(number, 1, 1), Asked::Read(number, 2, 1)];
    assert_eq!(gate.take(), reads);
    volume.trim(0, ByteCount(8192)).unwrap();
    volume.write_zeroes(0, ByteCount(8192)).unwrap();
    volume.flush().unwrap();
    let newest = gate.store.last_lsn();
    assert_eq!(gate.take(), [Asked::Admit, Asked::Admit, Asked::Durable(newest)]);
}

#[test]
fn what_the_gate_refuses_is_neither_done_nor_answered() {
    let (array, gate) = gated();
    array.create_volume(new("a")).unwrap();
    let volume = array.open_volume("a").unwrap();
    let commit = volume.write(0, &[7; 4096]).unwrap();
    *gate.refuses.lock().unwrap() = Some(ErrorKind::NotPrimary);
    let newest = gate.store.last_lsn();
    let mut buffer = [0; 4096];
    assert_eq!(kind(volume.read(0, &mut buffer)), ErrorKind::NotPrimary);
    assert!(!volume.try_read(0, &mut buffer).unwrap());
    assert_eq!(kind(volume.block_status(0, ByteCount(4096), 1)), ErrorKind::NotPrimary);
    assert_eq!(kind(volume.acknowledge(commit)), ErrorKind::NotPrimary);
    assert_eq!(kind(volume.make_durable(Commit(newest))), ErrorKind::NotPrimary);
    assert_eq!(kind(volume.flush()), ErrorKind::NotPrimary);
    assert_eq!(kind(volume.write(0, &[1; 100])), ErrorKind::NotPrimary);
    assert_eq!(kind(volume.write_zeroes(0, ByteCount(100))), ErrorKind::NotPrimary);
    assert_eq!(kind(volume.trim(0, ByteCount(4096))), ErrorKind::NotPrimary);
    assert_eq!(kind(array.create_volume(new("b"))), ErrorKind::NotPrimary);
    assert_eq!(kind(array.delete_volume("a", true)), ErrorKind::NotPrimary);
    assert_eq!(gate.store.last_lsn(), newest);
    assert_eq!(array.volumes().len(), 1);
}

#[test]
fn p7_what_a_client_sent_before_all_were_let_go_is_not_done_after() {
    let (array, gate) = gated();
    array.create_volume(new("a")).unwrap();
    let (cut, stays) = (array.open("a").unwrap(), array.open_volume("a").unwrap());
    cut.write(0, &[1; 4096]).unwrap();
    gate.tenure.store(1, Ordering::Relaxed);
    let after = array.open("a").unwrap();
    after.write(0, &[2; 4096]).unwrap();
    let newest = gate.store.last_lsn();
    assert_eq!(kind(cut.write(0, &[1; 4096])), ErrorKind::NotPrimary);
    assert_eq!(kind(cut.write_zeroes(0, ByteCount(4096))), ErrorKind::NotPrimary);
    assert_eq!(kind(cut.trim(0, ByteCount(4096))), ErrorKind::NotPrimary);
    let request = RequestId { session: SessionId(7), number: RequestNumber(1) };
    let sent_before = cut.change_once(request, Change::Write { offset: 0, data: &[1; 4096] });
    assert_eq!(kind(sent_before), ErrorKind::NotPrimary);
    assert_eq!(gate.store.last_lsn(), newest);
    let mut buffer = [0; 4096];
    after.read(0, &mut buffer).unwrap();
    assert_eq!(buffer, [2; 4096]);
    // A mount is not let go.
    stays.write(0, &[3; 4096]).unwrap();
}

#[test]
fn a_reloaded_catalog_is_that_of_the_store() {
    let (store, environment) = new_store(1);
    let array = open(&store, &environment);
    for name in ["stays", "goes", "grows"] {
        array.create_volume(new(name)).unwrap();
    }
    let [stays, goes, grows] = ["stays", "goes", "grows"].map(|name| array.open_volume(name).unwrap());
    // Another array on the same store stands for operations that came from elsewhere.
    let other = open(&store, &environment);
    other.delete_volume("goes", true).unwrap();
    other.create_volume(new("new")).unwrap();
    other.resize_volume("grows", ByteCount(2 << 20)).unwrap();
    let source =
        store.objects().unwrap().into_iter().find(|object| object.size.bytes().0 == 1 << 20).unwrap();
    let bookmark = Bookmark { id: Uuid([3; 16]), of: source.number, made_ms: 5 };
    let opaque = bookmark.record().encode().unwrap();
    store.clone_objects(&[CloneRequest { source: source.number, opaque: &opaque }]).unwrap();
    assert_eq!(kind(array.volume("new")), ErrorKind::NotFound);

    array.reload().unwrap();
    let names: Vec<String> = array.volumes().into_iter().map(|volume| volume.name).collect();
    assert_eq!(names, ["stays", "grows", "new"]);
    assert!(goes.is_deleted() && !stays.is_deleted() && !grows.is_deleted());
    assert_eq!(kind(goes.flush()), ErrorKind::NotFound);
    assert_eq!(grows.size(), ByteCount(2 << 20));
    stays.write(0, &[1; 4096]).unwrap();
    assert_eq!(kind(array.delete_volume("stays", false)), ErrorKind::Busy);
    // What the system keeps for itself is neither shown nor damaged.
    assert!(array.snapshots().is_empty());
    assert_eq!(array.status().problems.len(), other.status().problems.len());
    assert_eq!(array.freeze_management(|| array.volumes().len()), 3);
}
