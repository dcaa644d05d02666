//! What a member or a client may send to the cluster's port instead of questions for blocks, for comparisons and for
//! certificates: nobody is harmed, and nothing is given to those who may not have it.

use std::time::Duration;

use sinter::error::ErrorKind;
use sinter::replica::compare;
use sinter::replica::compare::Question;
use sinter::replica::identity::ClientId;
use sinter::replica::identity::IdentityFiles;
use sinter::replica::identity::NodeIdentity;
use sinter::replica::identity::NodeKey;
use sinter::replica::identity::PeerName;
use sinter::replica::identity::SigningRequest;
use sinter::replica::identity::Stored;
use sinter::replica::link::FRAME_BYTES_MAX;
use sinter::replica::link::Frame;
use sinter::replica::link::Link;
use sinter::replica::link::connect;
use sinter::replica::node::frames;
use sinter::replica::wire;
use sinter::sync::seeded::SeededNumbers;
use sinter::units::BlockCount;
use sinter::units::Fingerprint;
use sinter::units::Lba;
use sinter::units::ObjectNumber;
use sinter::units::Uuid;

use crate::world::World;
use crate::world::base64;
use crate::world::member;
use crate::world::read;
use crate::world::write;

const PATIENCE: Duration = Duration::from_secs(10);
/// A certificate that is to be renewed.
const RENEW: u8 = 21;
/// What a daemon may need besides while it is asked for nonsense: the frames themselves, and room to spare.
const MEMORY_KIB: u64 = 64 << 10;

fn stored(world: &World, name: &str) -> Stored {
    IdentityFiles::in_directory(world.path(name).join("cluster")).load().unwrap().unwrap()
}

/// A node's port, as whoever asks it.
struct Asked<'a> {
    address: String,
    by: &'a NodeIdentity,
}

impl<'a> Asked<'a> {
    fn of(world: &World, name: &str, by: &'a NodeIdentity) -> Asked<'a> {
        let address = member(world.url("a"), name)["cluster_address"].as_str().unwrap().to_owned();
        Asked { address, by }
    }

    fn link(&self) -> Link {
        connect(&self.address, self.by, None, PATIENCE).unwrap()
    }

    /// What a frame is answered with; nothing where the connection is closed.
    fn answer(&self, kind: u8, body: &[u8]) -> Option<Frame> {
        let mut link = self.link();
        // It may be closed before all of it has been sent.
        link.send(kind, &[body]).ok()?;
        match link.receive(Some(PATIENCE)) {
            Ok(frame) => Some(frame.expect("neither an answer nor an end")),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
                None
            }
        }
    }
}

/// The most memory that a process has had.
fn most_memory_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse().unwrap()
}

/// What is like a good body and is none: cut short, with something behind it, with a bit turned over, and bytes that come
/// from nowhere.
fn bodies(good: &[u8]) -> Vec<Vec<u8>> {
    let mut numbers = SeededNumbers::new(7);
    let mut bodies: Vec<Vec<u8>> = (0..good.len()).map(|len| good[..len].to_vec()).collect();
    bodies.push([good, &[0]].concat());
    bodies.push([good, good].concat());
    bodies.push(vec![0xff; FRAME_BYTES_MAX]);
    bodies.push(vec![b'['; 1 << 20]);
    for len in [1, 16, 17, 96, 100, 5000] {
        let mut bytes = vec![0; len];
        numbers.fill(&mut bytes);
        bodies.push(bytes);
    }
    bodies
}

#[test]
fn what_means_nothing_is_refused_by_a_node_that_serves() {
    let world = World::formed();
    assert_eq!(write(world.url("a"), 0, "before"), 200);
    let (a, b) = (stored(&world, "a").identity, stored(&world, "b").identity);
    // The primary asks to compare, the other one for blocks and certificates.
    let (asks_a, asks_b) = (Asked::of(&world, "a", &b), Asked::of(&world, "b", &a));
    let memory = || [world.node("a").pid(), world.node("b").pid()].map(most_memory_kib);
    let before = memory();

    let objects = compare::encode(&Question::Objects(ObjectNumber(0))).unwrap();
    assert_eq!(asks_b.answer(frames::COMPARE, &objects).unwrap().kind, frames::COMPARE);
    for body in bodies(&objects) {
        let answer = asks_b.answer(frames::COMPARE, &body);
        assert!(answer.is_none(), "{:?} is answered", String::from_utf8_lossy(&body));
    }
    let unknown = wire::encode_fetch(&Fingerprint([7; 16]));
    let nothing = asks_a.answer(frames::FETCH, &unknown).unwrap();
    assert_eq!(wire::decode_fetched(&nothing.body), Some(None));
    for body in bodies(&unknown) {
        let is_question = body.len() == unknown.len() && body[0] == wire::WIRE_VERSION;
        let answer = asks_a.answer(frames::FETCH, &body);
        assert_eq!(answer.is_some(), is_question, "{body:?}");
    }
    let request = b.signing_request().unwrap().to_bytes();
    let renewed = asks_a.answer(RENEW, &request).unwrap();
    assert_eq!(b.renewed(renewed.body).unwrap().peer().name, b.peer().name);
    let elsewhere = SigningRequest::new(b.key(), Uuid([9; 16])).unwrap().to_bytes();
    // The key of somebody else, with the proof of another one.
    let foreign = SigningRequest::new(&NodeKey::generate().unwrap(), b.peer().cluster).unwrap().to_bytes();
    let mixed = [&foreign[..32], &request[32..]].concat();
    for body in bodies(&request).into_iter().chain([elsewhere, mixed]) {
        assert!(asks_a.answer(RENEW, &body).is_none(), "{body:?} is signed");
    }

    for (before, after) in before.into_iter().zip(memory()) {
        assert!(after < before + MEMORY_KIB, "{before} KiB before, {after} after");
    }
    assert_eq!(read(world.url("b"), 0), base64("before"));
    assert_eq!(write(world.url("b"), 4096, "after"), 200);
    world.until_in_sync("b");
}

#[test]
fn questions_about_more_than_there_is_are_answered_and_change_nothing() {
    let world = World::formed();
    assert_eq!(write(world.url("a"), 0, "on both"), 200);
    let (a, b) = (stored(&world, "a").identity, stored(&world, "b").identity);
    let mut link = Asked::of(&world, "b", &a).link();
    let before = most_memory_kib(world.node("b").pid());
    let edge = |at: u64| [0, 1, 255, 256, 257, 1 << 20, at - 1, at];
    let mut asked = 0;
    for object in [0, 1, 2, u64::MAX] {
        for first in edge(u64::MAX) {
            for count in edge(u64::MAX) {
                let (object, first, count) = (ObjectNumber(object), Lba(first), BlockCount(count));
                for question in
                    [Question::Digest { object, first, count }, Question::Blocks { object, first, count }]
                {
                    let body = compare::encode(&question).unwrap();
                    link.send(frames::COMPARE, &[&body]).unwrap();
                    let answer = link.receive(Some(PATIENCE)).unwrap().unwrap();
                    assert!(answer.body.len() < 64 << 10, "{question:?}: {} bytes", answer.body.len());
                    let answer: compare::Answer = compare::decode(&answer.body).unwrap();
                    let listed = matches!(&answer, compare::Answer::Blocks(blocks) if blocks.len() > 256);
                    assert!(!listed, "{question:?}");
                    asked += 1;
                }
            }
        }
    }
    assert_eq!(asked, 4 * 8 * 8 * 2);
    let after = most_memory_kib(world.node("b").pid());
    assert!(after < before + MEMORY_KIB, "{before} KiB before, {after} after");
    // Only the primary compares.
    let told = compare::encode(&Question::Discard).unwrap();
    let answer = Asked::of(&world, "a", &b).answer(frames::COMPARE, &told).unwrap();
    let answer: compare::Answer = compare::decode(&answer.body).unwrap();
    assert!(matches!(answer, compare::Answer::Failed(_)), "{answer:?}");
    world.until_in_sync("a");
    assert_eq!(read(world.url("b"), 0), base64("on both"));
}

#[test]
fn a_client_is_told_nothing_of_what_the_array_holds() {
    let world = World::formed();
    assert_eq!(write(world.url("a"), 0, "secret"), 200);
    let authority = stored(&world, "a").authority.unwrap();
    let key = NodeKey::generate().unwrap();
    let request = SigningRequest::new(&key, authority.cluster()).unwrap();
    let now = sinter::daemon::environment().clock.since_unix_epoch();
    let certificate = authority.sign(PeerName::Client(ClientId([5; 8])), &request, now).unwrap();
    let client = NodeIdentity::new(certificate, authority.certificate().to_vec(), key).unwrap();
    let asks = Asked::of(&world, "a", &client);
    let objects = compare::encode(&Question::Objects(ObjectNumber(0))).unwrap();
    assert!(asks.answer(frames::COMPARE, &objects).is_none());
    assert!(asks.answer(frames::FETCH, &wire::encode_fetch(&Fingerprint([7; 16]))).is_none());
    let discard = compare::encode(&Question::Discard).unwrap();
    assert!(Asked::of(&world, "b", &client).answer(frames::COMPARE, &discard).is_none());
    // Its certificate is renewed, under its own name.
    let renewed = asks.answer(RENEW, &client.signing_request().unwrap().to_bytes()).unwrap();
    assert_eq!(client.renewed(renewed.body).unwrap().peer().name, client.peer().name);
    world.until_in_sync("a");
}
