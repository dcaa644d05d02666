//! Primaries that die, fall asleep and are told to go, again and again, while a client writes that knows what it was
//! promised.

use std::time::Duration;

use crate::client::Journal;
use crate::daemon::sinter;
use crate::world::World;
use crate::world::members;
use crate::world::until;

/// How many primaries go; `SINTER_FAILOVERS` says otherwise.
const FAILOVERS: u64 = 6;
/// Blocks of the volume that are written.
const BLOCKS: u64 = 4000;

/// Requests of a client that must not notice anything.
const REQUESTS: u64 = 30_000;

/// How a primary goes.
#[derive(Clone, Copy, Debug)]
enum Going {
    Killed,
    Paused,
    Told,
}

#[test]
fn p7_what_was_acknowledged_is_there_after_every_failover() {
    let failovers = std::env::var("SINTER_FAILOVERS").ok().and_then(|text| text.parse().ok());
    let mut world = World::formed();
    let journal = Journal::new(world.path("journal"));
    let (mut acknowledged, mut unanswered) = (0, 0);
    for round in 0..failovers.unwrap_or(FAILOVERS) {
        let (old, new) = if round % 2 == 0 { ("a", "b") } else { ("b", "a") };
        assert_eq!(members(world.url(new))["primary"], old, "round {round}");
        let going = [Going::Killed, Going::Paused, Going::Told][usize::try_from(round % 3).unwrap()];
        // Either node takes requests; a paused one would keep its own clients waiting.
        let through = if matches!(going, Going::Paused) || round % 4 < 2 { new } else { old };
        let writing = journal.write(&world.node(through).uri("disk"), round, BLOCKS, None);
        std::thread::park_timeout(Duration::from_millis(300 + 137 * (round % 5)));
        match going {
            Going::Killed => world.take(old).kill(),
            Going::Paused => world.signal(old, "-STOP"),
            Going::Told => drop(world.take(old).terminate()),
        }
        let ended = writing.ended();
        assert!(ended.acknowledged > 0, "round {round}: {ended:?}");
        acknowledged += ended.acknowledged;
        unanswered += ended.unanswered;
        until("the other one serves", || members(world.url(new))["primary_serves"] == true);
        assert!(journal.verify(&world.node(new).uri("disk")) > 0);
        match going {
            Going::Paused => world.signal(old, "-CONT"),
            Going::Killed | Going::Told => world.restart(old),
        }
        world.until_in_sync(new);
        // Through the former primary, which must not answer for itself.
        journal.verify(&world.node(old).uri("disk"));
    }
    println!("{acknowledged} requests acknowledged, {unanswered} under way when a primary went");
}

/// `sinter attach`, running; ended where the test ends.
pub(crate) struct Attached {
    child: std::process::Child,
    pub(crate) uri: String,
}

impl Attached {
    /// To the volume `disk`, over any of the nodes.
    pub(crate) fn to(world: &World, nodes: &[&str]) -> Attached {
        let socket = world.path("attached.sock");
        let unix = |name: &&str| format!("unix:{}", world.node(name).socket().display());
        let nodes: Vec<String> = nodes.iter().map(unix).collect();
        let mut command = sinter(&world.path(""));
        command.args(["attach", &format!("{}/disk", nodes.join(",")), "--unix"]).arg(&socket);
        let child = command.spawn().unwrap();
        let uri = format!("nbd+unix:///disk?socket={}", socket.display());
        let attached = Attached { child, uri };
        until("attach serves", || socket.exists());
        attached
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn p7_a_client_of_attach_notices_no_failover() {
    let mut world = World::formed();
    let attached = Attached::to(&world, &["a", "b"]);
    let uri = &attached.uri;
    let journal = Journal::new(world.path("journal"));
    let writing = journal.write(uri, 7, BLOCKS, Some(REQUESTS));
    for round in 0..4 {
        let (old, new) = if round % 2 == 0 { ("a", "b") } else { ("b", "a") };
        std::thread::park_timeout(Duration::from_millis(300));
        match round {
            0 | 1 => world.take(old).kill(),
            _ => drop(world.take(old).terminate()),
        }
        until("the other one serves", || members(world.url(new))["primary_serves"] == true);
        world.restart(old);
        world.until_in_sync(new);
    }
    // All requests were answered on the one connection that the client has had.
    let ended = writing.ended();
    assert_eq!(ended.unanswered, 0);
    assert!(ended.acknowledged > REQUESTS * 9 / 10, "all but flushes: {ended:?}");
    assert!(journal.verify(uri) > 0);
}
