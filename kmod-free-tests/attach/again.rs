//! Requests that are sent again, to real daemons: by a client that numbers them itself, and by `sinter attach` while
//! others write too, primaries die, and all that was not flushed is lost.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use sinter::array::SessionTerms;
use sinter::export::nbd::client::Client;
use sinter::export::nbd::dial::Address;
use sinter::export::nbd::dial::Patience;
use sinter::export::nbd::line::Line;
use sinter::export::nbd::wire::transmission::command as verb;
use sinter::replica::identity::CERTIFICATE_LIFE;
use sinter::replica::identity::IdentityFiles;
use sinter::units::SessionId;

use crate::daemon::Daemon;
use crate::daemon::Scratch;
use crate::daemon::output_in_time;
use crate::number_from_environment;
use crate::real::Attached;
use crate::real::assert_done;
use crate::real::command;
use crate::real::fio;
use crate::real::signal;
use crate::world::World;
use crate::world::members;
use crate::world::until;

/// How often the primary is killed below two clients, unless more is asked for.
const FAILOVERS: u64 = 3;

const MIB: usize = 1 << 20;

/// A client that numbers its requests.
struct Numbering {
    line: Line,
    terms: SessionTerms,
}

impl Numbering {
    fn connect(daemon: &Daemon, session: u128) -> Numbering {
        let address = Address::Unix(daemon.socket());
        let session = Some(SessionId(session));
        let client = Client::connect_within(&address, "disk", 1, &Patience::default(), session).unwrap();
        let terms = client.terms();
        Numbering { line: client.into_line(Duration::from_secs(30)).unwrap(), terms }
    }

    fn ask(&mut self, command: u16, number: u64, offset: usize, len: usize, payload: &[u8]) -> Vec<u8> {
        let (offset, len) = (offset as u64, u32::try_from(len).unwrap());
        self.line.sender.put(command, number, offset, len, payload).unwrap();
        self.line.sender.flush().unwrap();
        let answer = loop {
            if let Some(answer) = self.line.receiver.receive().unwrap() {
                break answer;
            }
        };
        assert!(answer.cookie == number && answer.error.is_none(), "{answer:?}");
        if command == verb::READ { answer.assemble(offset, len).unwrap() } else { Vec::new() }
    }

    fn write(&mut self, number: u64, offset: usize, byte: u8, len: usize) {
        self.ask(verb::WRITE, number, offset, len, &vec![byte; len]);
    }

    fn trim(&mut self, number: u64, offset: usize, len: usize) {
        self.ask(verb::TRIM, number, offset, len, &[]);
    }

    /// Whether a range holds this byte alone.
    fn holds(&mut self, number: u64, offset: usize, len: usize, byte: u8) -> bool {
        self.ask(verb::READ, number, offset, len, &[]).iter().all(|found| *found == byte)
    }
}

/// Ends a primary and waits for the next one.
fn fail_over(world: &mut World, from: &str, to: &str) {
    world.take(from).kill();
    until("the other one serves", || members(world.url(to))["primary_serves"] == true);
}

#[test]
fn what_was_done_is_answered_by_the_next_primary_and_undoes_nothing() {
    let mut world = World::formed();
    let mut one = Numbering::connect(world.node("a"), 1);
    let first_terms = one.terms;
    assert!(first_terms.history.is_some() && first_terms.memory.is_some());
    // Several operations, with parts of blocks at both ends.
    one.write(1, 100, 1, MIB);
    one.write(2, 4 * MIB, 2, MIB);
    one.trim(3, 4 * MIB, MIB);
    let mut other = Numbering::connect(world.node("a"), 2);
    other.write(1, 0, 9, 2 * MIB);
    other.write(2, 4 * MIB, 9, MIB);
    drop((one, other));

    fail_over(&mut world, "a", "b");
    let again = |daemon: &Daemon| {
        let mut one = Numbering::connect(daemon, 1);
        assert_eq!(one.terms, first_terms, "nothing was lost, and all is remembered");
        one.write(1, 100, 1, MIB);
        one.write(2, 4 * MIB, 2, MIB);
        one.trim(3, 4 * MIB, MIB);
        assert!(one.holds(100, 0, 2 * MIB, 9) && one.holds(101, 4 * MIB, MIB, 9));
        one
    };
    // What was not done is, and by the same client.
    again(world.node("b")).write(4, 6 * MIB, 4, MIB);
    Numbering::connect(world.node("b"), 2).write(3, 6 * MIB, 9, MIB);

    // A node that was away learns from the other what was done before it came back, and since.
    world.restart("a");
    world.until_in_sync("b");
    fail_over(&mut world, "b", "a");
    let mut one = again(world.node("a"));
    one.write(4, 6 * MIB, 4, MIB);
    assert!(one.holds(102, 6 * MIB, MIB, 9));
    one.write(5, 6 * MIB, 5, MIB);
    assert!(one.holds(103, 6 * MIB, MIB, 5));
}

#[test]
fn force_gives_the_history_another_name_and_a_failover_does_not() {
    let mut world = World::formed();
    let before = Numbering::connect(world.node("a"), 1).terms;
    assert_eq!(Numbering::connect(world.node("b"), 1).terms, before, "it is the same array");
    world.signal("b", "-STOP");
    Numbering::connect(world.node("a"), 1).write(1, 0, 1, 4096);
    world.take("a").kill();
    world.signal("b", "-CONT");
    until("it hears the witness", || members(world.url("b"))["has_quorum"] == true);
    let forced = world.cluster("b", &["promote", "--force", "--yes"]);
    assert_eq!(forced.status.code(), Some(0), "{forced:?}");
    until("it serves", || members(world.url("b"))["primary_serves"] == true);
    let mut one = Numbering::connect(world.node("b"), 1);
    assert_ne!(one.terms.history, before.history);
    assert_eq!(one.terms.memory, before.memory, "what b has done it knows");
    one.write(1, 0, 1, 4096);
    assert!(one.holds(3, 0, 4096, 1));
}

#[test]
fn clients_that_share_a_volume_notice_nothing_of_failovers() {
    let mut world = World::formed();
    let sockets =
        format!("unix:{},unix:{}", world.node("a").socket().display(), world.node("b").socket().display());
    let target = format!("{sockets}/disk");
    let homes = ["one", "two"].map(|name| world.path(name));
    let attached = homes.each_ref().map(|home| {
        std::fs::create_dir_all(home).unwrap();
        Attached::start(home, &target, &["--shared"])
    });
    let failovers = number_from_environment("SINTER_ATTACH_FAILOVERS").unwrap_or(FAILOVERS);
    let seconds = format!("--runtime={}", 6 * failovers);
    let more = ["--time_based", &seconds, "--fsync=64", "--rate_iops=500"];
    // Each verifies what it has written, and flushes: neither fails, though the other writes as well.
    let clients = [("one", "0"), ("two", "8m")];
    let clients: Vec<_> = clients
        .iter()
        .zip(&attached)
        .map(|((name, offset), attached)| fio(&attached.uri("disk"), name, offset, &more))
        .collect();
    for failover in 0..failovers {
        let (from, to) = if failover % 2 == 0 { ("a", "b") } else { ("b", "a") };
        std::thread::park_timeout(Duration::from_millis(1000));
        fail_over(&mut world, from, to);
        world.restart(from);
        world.until_in_sync(to);
    }
    clients.into_iter().for_each(assert_done);
    for attached in attached {
        assert!(attached.terminate().success());
    }
}

/// A client of `sinter attach` that stays.
fn client_of(attached: &Attached) -> Client {
    Client::connect(&Address::Unix(attached.socket().to_owned()), "disk", 1).unwrap()
}

/// Writes a block and waits until it is answered.
fn write(client: &mut Client, offset: u64, byte: u8) {
    client.write(offset, &[byte; 4096]).unwrap();
    let mut found = [0; 4096];
    client.read(offset, &mut found).unwrap();
    assert_eq!(found, [byte; 4096]);
}

fn copy(from: &Path, to: &Path) {
    assert!(Command::new("cp").args(["--sparse=always"]).args([from, to]).status().unwrap().success());
}

#[test]
fn what_was_not_flushed_when_the_power_failed_is_written_again_or_its_flush_fails() {
    let scratch = Scratch::new();
    let data = scratch.path();
    let pool = data.join("pool");
    let device = format!("{},size=256MiB", pool.display());
    let start = || Daemon::start(data, &["--device", &device, "--volume", "disk:16MiB"]);
    let mut daemon = start();
    let target = format!("unix:{}/disk", daemon.socket().display());
    let attach = |name: &str, more: &[&str]| {
        let home = data.join(name);
        std::fs::create_dir_all(&home).unwrap();
        Attached::start(&home, &target, more)
    };
    let (alone, shared) = (attach("alone", &[]), attach("shared", &["--shared"]));
    let (mut one, mut two) = (client_of(&alone), client_of(&shared));

    // The death of the process alone loses nothing, and is known to.
    write(&mut two, 0, 1);
    daemon.kill();
    daemon = start();
    two.flush().unwrap();

    // What was written after the copy is lost, as with the power.
    signal("-STOP", daemon.pid());
    copy(&pool, &data.join("copy"));
    signal("-CONT", daemon.pid());
    write(&mut one, 1 << 20, 2);
    write(&mut two, 2 << 20, 3);
    daemon.kill();
    copy(&data.join("copy"), &pool);
    std::fs::remove_file(data.join("ending.json")).unwrap();
    let daemon = start();
    one.flush().unwrap();
    assert!(two.flush().is_err(), "nobody can say what became of it");
    let mut straight = Client::connect(&Address::Unix(daemon.socket()), "disk", 1).unwrap();
    let mut found = [0; 4096];
    straight.read(1 << 20, &mut found).unwrap();
    assert_eq!(found, [2; 4096], "it was written again before the flush");
    straight.read(2 << 20, &mut found).unwrap();
    assert_eq!(found, [0; 4096]);
    // Who comes later has lost nothing, also after a clean stop.
    let mut later = client_of(&shared);
    write(&mut later, 3 << 20, 4);
    assert!(daemon.terminate().success());
    let _daemon = start();
    later.flush().unwrap();
    assert!(two.flush().is_err());
}

/// The cluster's ports of the nodes that keep data.
fn cluster_ports(world: &World) -> Vec<String> {
    let members = members(world.url("a"));
    let data = members["nodes"].as_array().unwrap().iter().filter(|node| node["node_id"] != "w");
    data.map(|node| format!("cluster:{}", node["cluster_address"].as_str().unwrap())).collect()
}

fn new_token(world: &World, asked: &str, role: &str) -> String {
    let made = world.cluster(asked, &["token", "--role", role]);
    String::from_utf8(made.stdout).unwrap().trim().to_owned()
}

#[test]
fn at_the_cluster_port_a_client_shows_a_certificate_and_follows_the_primary() {
    let mut world = World::formed();
    let addresses = cluster_ports(&world);
    assert_eq!(addresses.len(), 2);
    let target = format!("{}/disk", addresses.join(","));
    let home = world.path("client");
    std::fs::create_dir_all(&home).unwrap();
    let (socket, identity) = (home.join("refused.sock"), home.join("identity"));
    let identity = identity.to_str().unwrap();
    let refused = |more: &[&str]| {
        let mut command = command(&home, &target, &socket, &[&["--identity", identity], more].concat());
        output_in_time(&mut command).status.code()
    };
    assert_eq!(refused(&[]), Some(2), "without a certificate");
    assert_eq!(
        refused(&["--token", &new_token(&world, "a", "data")]),
        Some(2),
        "with a token for something else"
    );
    let made = new_token(&world, "a", "client");
    let attached = Attached::start(&home, &target, &["--identity", identity, "--token", &made]);
    let mut client = client_of(&attached);
    write(&mut client, 0, 1);
    fail_over(&mut world, "a", "b");
    write(&mut client, 4096, 2);
    client.flush().unwrap();
    let mut found = [0; 4096];
    client.read(0, &mut found).unwrap();
    assert_eq!(found, [1; 4096]);
    assert!(attached.terminate().success());
    // The certificate is kept.
    let again = Attached::start(&home, &target, &["--identity", identity]);
    client_of(&again).read(4096, &mut found).unwrap();
    assert_eq!(found, [2; 4096]);
}

#[test]
fn the_certificate_of_a_client_is_renewed_while_it_is_attached() {
    let mut world = World::formed();
    let target = format!("{}/disk", cluster_ports(&world).join(","));
    let home = world.path("client");
    std::fs::create_dir_all(&home).unwrap();
    let directory = home.join("identity");
    let identity = ["--identity", directory.to_str().unwrap()];
    let with_token = |world: &World, asked: &str| {
        [&identity[..], &["--token", &new_token(world, asked, "client")]].concat().join(" ")
    };
    let first = with_token(&world, "a");
    let attached = Attached::start(&home, &target, &first.split(' ').collect::<Vec<_>>());
    assert!(attached.terminate().success());
    let files = IdentityFiles::in_directory(&directory);
    let stored = || files.load().unwrap().unwrap().identity;
    let now = || sinter::daemon::environment().clock.since_unix_epoch();
    let authority = IdentityFiles::in_directory(world.path("a").join("cluster")).load().unwrap().unwrap();
    let authority = authority.authority.unwrap();
    let age = |left: Duration| {
        let (identity, signed) = (stored(), now() + left - CERTIFICATE_LIFE);
        let request = identity.signing_request().unwrap();
        let certificate = authority.sign(identity.peer().name, &request, signed).unwrap();
        files.save_renewed(&identity.renewed(certificate).unwrap()).unwrap();
    };

    // One that is younger is left alone.
    age(CERTIFICATE_LIFE * 2 / 3);
    let (young, name) = (stored().peer().valid_until, stored().peer().name);
    let attached = Attached::start(&home, &target, &identity);
    let mut client = client_of(&attached);
    write(&mut client, 0, 1);
    assert_eq!(stored().peer().valid_until, young);
    drop(client);
    assert!(attached.terminate().success());
    age(Duration::from_secs(15));
    let end = stored().peer().valid_until;
    let attached = Attached::start(&home, &target, &identity);
    let mut client = client_of(&attached);
    until("it is renewed", || !stored().renewal_due(now()));
    assert_eq!(stored().peer().name, name);
    // The former one has ended when the next connection is made.
    until("the former one has ended", || now() > end + Duration::from_secs(1));
    fail_over(&mut world, "a", "b");
    write(&mut client, 4096, 2);
    client.flush().unwrap();
    drop(client);
    assert!(attached.terminate().success());

    // Nobody renews one that has ended.
    age(Duration::ZERO);
    let refused = output_in_time(&mut command(&home, &target, &home.join("refused.sock"), &identity));
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("has ended"), "{refused:?}");
    let again = with_token(&world, "b");
    let attached = Attached::start(&home, &target, &again.split(' ').collect::<Vec<_>>());
    let mut found = [0; 4096];
    client_of(&attached).read(4096, &mut found).unwrap();
    assert_eq!(found, [2; 4096]);
    assert_ne!(stored().peer().name, name, "it is another client");
}

#[test]
fn a_primary_that_is_paused_is_left_for_the_next_one() {
    let world = World::formed();
    let target = format!(
        "unix:{},unix:{}/disk",
        world.node("a").socket().display(),
        world.node("b").socket().display()
    );
    let home = world.path("client");
    std::fs::create_dir_all(&home).unwrap();
    let attached = Attached::start(&home, &target, &["--shared"]);
    let mut client = client_of(&attached);
    write(&mut client, 0, 1);
    world.signal("a", "-STOP");
    let clock = sinter::daemon::environment().clock;
    let begun = clock.monotonic();
    write(&mut client, 4096, 2);
    client.flush().unwrap();
    let took = clock.monotonic() - begun;
    assert!(took < Duration::from_secs(9), "it took {took:?}");
    world.signal("a", "-CONT");
    world.until_in_sync("b");
    write(&mut client, 0, 3);
    client.flush().unwrap();
}
