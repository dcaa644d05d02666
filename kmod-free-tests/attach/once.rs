//! Requests over real stores: a primary dies after any of the operations that carry one out.

use std::sync::Arc;

use sinter::array::Array;
use sinter::array::ArrayOptions;
use sinter::array::BlockService;
use sinter::array::NewVolume;
use sinter::array::Volume;
use sinter::array::service::Change;
use sinter::replica::ring::Next;
use sinter::replica::ring::Ring;
use sinter::store::Applied;
use sinter::store::Progress;
use sinter::store::Store;
use sinter::units::ByteCount;
use sinter::units::Lsn;
use sinter::units::RequestId;
use sinter::units::RequestNumber;
use sinter::units::SessionId;

use crate::pool::Pool;

const OFFSET: usize = 100;
const LEN: usize = 1 << 20;
const SIZE: usize = 2 << 20;

const REQUEST: RequestId = RequestId { session: SessionId(7), number: RequestNumber(3) };

fn volume(pool: &Pool, store: &Arc<Store>) -> Arc<Volume> {
    let array = Array::new(Arc::clone(store), ArrayOptions::new("one"), pool.environment.clone()).unwrap();
    if array.volumes().is_empty() {
        let new = NewVolume { name: "disk".to_owned(), size: ByteCount(SIZE as u64), ..NewVolume::default() };
        array.create_volume(new).unwrap();
    }
    array.open_volume("disk").unwrap()
}

/// Carries a change out on one node, and again on another that holds only the first of its operations and what somebody
/// else has written over all of them.
fn cut_everywhere(change: Change<'_>, becomes: &[u8]) {
    let mut pool = Pool::new(1);
    let ring = Arc::new(Ring::new(ByteCount(64 << 20)));
    pool.options.sink = Some(Arc::clone(&ring) as Arc<_>);
    let first = Arc::new(pool.create());
    ring.listen_from(first.last_lsn());
    let before_all = first.last_lsn();
    let one = volume(&pool, &first);
    one.write(0, &vec![5; SIZE]).unwrap();
    let begun = first.last_lsn();
    one.change_once(REQUEST, change).unwrap();
    let end = first.last_lsn();
    one.change_once(REQUEST, change).unwrap();
    assert_eq!(first.last_lsn(), end, "it was done already");
    assert!(end > begun.next(), "it takes several operations");

    let mut known = None;
    for last in begun.0..=end.0 {
        let pool = Pool::new(1);
        let second = Arc::new(pool.create());
        for lsn in before_all.0 + 1..=last {
            let Next::Operation(shipment) = ring.get(Lsn(lsn)) else { panic!("operation {lsn} is gone") };
            assert_eq!(second.apply(&shipment).unwrap(), Applied::UpTo(Lsn(lsn)));
        }
        let done = match second.progress_of(REQUEST) {
            Progress::Through(done) => usize::try_from(done.0).unwrap(),
            Progress::Done => LEN,
        };
        assert!(known < Some(done) && (done == LEN) == (last == end.0), "{known:?} and then {done}");
        known = Some(done);
        let two = volume(&pool, &second);
        two.write(0, &vec![9; SIZE]).unwrap();
        two.change_once(REQUEST, change).unwrap();
        let mut found = vec![0; SIZE];
        two.read(0, &mut found).unwrap();
        let (left, rest) = found.split_at(OFFSET + done);
        assert!(left.iter().all(|byte| *byte == 9), "somebody's write was undone, {done} bytes were known");
        assert!(rest[..LEN - done] == becomes[done..], "the rest was not done, {done} bytes were known");
        assert!(rest[LEN - done..].iter().all(|byte| *byte == 9));
        assert_eq!(second.progress_of(REQUEST), Progress::Done);
    }
}

#[test]
fn what_was_done_in_part_is_gone_on_with_and_what_others_wrote_meanwhile_stays() {
    let data: Vec<u8> = (0..LEN).map(|at| u8::try_from(at % 251).unwrap()).collect();
    cut_everywhere(Change::Write { offset: OFFSET as u64, data: &data }, &data);
    let zeroes = Change::Zeroes { offset: OFFSET as u64, len: ByteCount(LEN as u64) };
    cut_everywhere(zeroes, &vec![0; LEN]);
}
