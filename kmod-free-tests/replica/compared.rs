//! What nodes are compared by: equal contents have equal digests, a difference of one block is one, and what is sparse
//! costs by what is mapped.

use sinter::replica::compare::Answer;
use sinter::replica::compare::Digest;
use sinter::replica::compare::Question;
use sinter::replica::compare::answer;
use sinter::replica::compare::blocks_of;
use sinter::replica::compare::decode;
use sinter::replica::compare::digest_from;
use sinter::replica::compare::digest_of;
use sinter::replica::compare::encode;
use sinter::store::Store;
use sinter::units::BlockCount;
use sinter::units::Lba;
use sinter::units::ObjectNumber;

use crate::pool::new_store;

/// As large as a volume may be: 256 TiB.
const LARGEST: BlockCount = BlockCount(1 << 36);

fn block(fill: u64) -> Vec<u8> {
    (0..512u64).flat_map(|word| (fill * 1000 + word * word).to_le_bytes()).collect()
}

/// Digests of a whole object, step by step.
fn all_of(store: &Store, object: ObjectNumber) -> (Vec<Digest>, u64) {
    let (mut at, mut digests) = (Lba(0), Vec::new());
    while at.0 < LARGEST.0 {
        let (digest, end) = digest_from(store, object, at, LARGEST).unwrap();
        assert!(end > at, "a step that leads nowhere");
        digests.push(digest);
        at = end;
    }
    let mapped = digests.iter().map(|digest| digest.mapped.0).sum();
    (digests, mapped)
}

#[test]
fn digests_are_equal_for_equal_contents_and_for_no_other() {
    let (one, _) = new_store(1);
    // The same seed: nodes of a cluster have one key for their fingerprints.
    let (other, _) = new_store(1);
    let stores = [&one, &other];
    let objects: Vec<ObjectNumber> =
        stores.iter().map(|store| store.create_object(LARGEST, b"disk").unwrap().0).collect();
    assert_eq!(objects[0], objects[1]);
    let object = objects[0];
    // Not in the same order, and in pieces: only what is mapped in the end counts.
    let places: Vec<u64> = (0..9000).map(|at| at * 3).chain([1 << 30, (1 << 36) - 1]).collect();
    for at in &places {
        one.write(object, Lba(*at), &block(*at % 700)).unwrap();
    }
    for at in places.iter().rev() {
        other.write(object, Lba(*at), &block(*at % 700)).unwrap();
    }
    for store in stores {
        store.write(object, Lba(1), &[7; 4096]).unwrap();
        store.zero(object, Lba(3), BlockCount(1)).unwrap();
    }
    let (own, mapped) = all_of(&one, object);
    assert_eq!(mapped, places.len() as u64, "one more is mapped, and one is not");
    assert!(own.len() > 1, "it takes several steps");
    assert_eq!(all_of(&other, object).0, own);

    other.write(object, Lba(1 << 30), &block(3)).unwrap();
    assert_ne!(all_of(&other, object).0, own);
    let range = |store: &Store| digest_of(store, object, Lba(1 << 29), BlockCount(1 << 34)).unwrap();
    assert_ne!(range(&one), range(&other));
    let before = |store: &Store| digest_of(store, object, Lba(1000), BlockCount(5000)).unwrap();
    assert_eq!(before(&one), before(&other));
    let near = |store: &Store| blocks_of(store, object, Lba((1 << 30) - 5), BlockCount(10)).unwrap();
    let differ: Vec<usize> = (0..10).filter(|at| near(&one)[*at] != near(&other)[*at]).collect();
    assert_eq!(differ, [5]);
    // Far more than was asked about is no answer to wait for.
    assert_eq!(digest_of(&one, object, Lba(0), LARGEST).unwrap().map(|it| it.mapped.0), Some(mapped));
    for at in 0..9000 {
        other.write(object, Lba(40_000 + at), &block(at % 700)).unwrap();
    }
    assert_eq!(digest_of(&other, object, Lba(0), LARGEST).unwrap(), None);
}

#[test]
fn questions_that_cannot_be_answered_are_refused_without_harm() {
    let (store, _) = new_store(3);
    let (object, _) = store.create_object(BlockCount(1000), b"disk").unwrap();
    let (first, count) = (Lba(u64::MAX), BlockCount(u64::MAX));
    let none = ObjectNumber(u64::MAX);
    for question in [
        Question::Digest { object, first, count },
        Question::Digest { object, first: Lba(0), count },
        Question::Digest { object, first: Lba(999), count: BlockCount(2) },
        Question::Blocks { object, first, count },
        Question::Blocks { object, first: Lba(0), count: BlockCount(257) },
        Question::Discard,
    ] {
        let sent: Question = decode(&encode(&question).unwrap()).unwrap();
        assert_eq!(sent, question);
        assert!(matches!(answer(&store, &question), Answer::Failed(_)), "{question:?}");
    }
    let gone = Question::Blocks { object: none, first: Lba(0), count: BlockCount(1) };
    assert_eq!(answer(&store, &gone), Answer::NotFound);
    assert_eq!(answer(&store, &Question::Objects(none)), Answer::Objects(Vec::new(), false));
    let whole = encode(&Question::Objects(object)).unwrap();
    for end in 0..whole.len() {
        assert!(decode::<Question>(&whole[..end]).is_err(), "cut to {end}");
    }
    for bytes in [&b"{}"[..], b"\"Everything\"", &[0xff; 300], &vec![b'['; 1 << 16]] {
        assert!(decode::<Question>(bytes).is_err());
    }
}
