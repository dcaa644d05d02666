//! Members talk: both ways at once, in pieces, in calls; and they end, whoever ends it.

use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use sinter::error::{Error, ErrorKind};
use sinter::replica::decisions::NodeId;
use sinter::replica::identity::{ClientId, PeerName};
use sinter::replica::link::{
    CallPool, FRAME_BYTES_MAX, Handlers, LinkReceiver, LinkSender, LinkServer, connect, serve_calls,
};
use sinter::sync::RandomSource as _;

use crate::world::{PATIENCE, World, authority, data, identity, random};

/// Sends frames of many lengths, made from the seed alone.
fn send_stream(sender: &LinkSender, seed: u64, total: usize) {
    let random = random(seed);
    let (mut sent, mut count) = (0, 0u8);
    while sent < total {
        let len = match random.number() % 8 {
            0 => 0,
            1..4 => random.number() % 200,
            4..7 => random.number() % 100_000,
            _ => random.number() % (FRAME_BYTES_MAX as u64 + 1),
        } as usize;
        let mut body = vec![0u8; len];
        random.fill(&mut body);
        // In three pieces, of which some are empty.
        let cuts = [random.number() as usize % (len + 1), random.number() as usize % (len + 1)];
        let (a, b) = (cuts[0].min(cuts[1]), cuts[0].max(cuts[1]));
        sender.send(32 + count % 64, &[&body[..a], &body[a..b], &body[b..]]).unwrap();
        sent += len + 1;
        count = count.wrapping_add(1);
    }
}

fn expect_stream(receiver: &mut LinkReceiver, seed: u64, total: usize) {
    let random = random(seed);
    let (mut got, mut count) = (0, 0u8);
    while got < total {
        let len = match random.number() % 8 {
            0 => 0,
            1..4 => random.number() % 200,
            4..7 => random.number() % 100_000,
            _ => random.number() % (FRAME_BYTES_MAX as u64 + 1),
        } as usize;
        let mut body = vec![0u8; len];
        random.fill(&mut body);
        let _cuts = [random.number(), random.number()];
        let frame = receiver.receive(Some(PATIENCE)).unwrap().unwrap();
        assert_eq!(frame.kind, 32 + count % 64);
        assert!(frame.body == body, "frame {count} of {len} bytes differs");
        got += len + 1;
        count = count.wrapping_add(1);
    }
}

#[test]
fn both_ends_send_and_receive_at_once() {
    const TOTAL: usize = 48 << 20;
    let world = World::new(1);
    let (near, far) = world.pair(data(2));
    let (near_out, mut near_in) = near.split();
    let (far_out, mut far_in) = far.split();
    thread::scope(|scope| {
        scope.spawn(|| send_stream(&near_out, 11, TOTAL));
        scope.spawn(|| send_stream(&far_out, 12, TOTAL));
        scope.spawn(|| expect_stream(&mut near_in, 12, TOTAL));
        scope.spawn(|| expect_stream(&mut far_in, 11, TOTAL));
    });
}

#[test]
fn a_receiver_that_waits_does_not_hold_up_the_sender() {
    let world = World::new(2);
    let (near, far) = world.pair(data(2));
    let (near_out, mut near_in) = near.split();
    let (far_out, mut far_in) = far.split();
    thread::scope(|scope| {
        let waiting = scope.spawn(move || near_in.receive(Some(PATIENCE)).unwrap().unwrap());
        for round in 0..100u8 {
            near_out.send(40, &[&[round]]).unwrap();
            assert_eq!(far_in.receive(Some(PATIENCE)).unwrap().unwrap().body, [round]);
        }
        assert!(!waiting.is_finished());
        far_out.send(41, &[]).unwrap();
        assert_eq!(waiting.join().unwrap().kind, 41);
    });
}

#[test]
fn waiting_ends_in_time() {
    let world = World::new(3);
    let (mut near, far) = world.pair(data(2));
    let begin = Instant::now();
    assert_eq!(near.receive(Some(Duration::from_millis(120))).unwrap(), None);
    assert!(begin.elapsed() >= Duration::from_millis(100));
    assert_eq!(near.receive(Some(Duration::ZERO)).unwrap(), None);
    assert!(begin.elapsed() < PATIENCE / 2);
    far.send(40, &[b"late"]).unwrap();
    assert_eq!(near.receive(Some(PATIENCE)).unwrap().unwrap().body, b"late");
}

#[test]
fn closing_from_another_thread_wakes_both_halves_at_both_ends() {
    let world = World::new(4);
    let (near, far) = world.pair(data(2));
    let closer = near.closer();
    let (near_out, mut near_in) = near.split();
    let (far_out, mut far_in) = far.split();
    thread::scope(|scope| {
        let waiting = scope.spawn(move || near_in.receive(None));
        // Nobody receives at the other end: this one soon waits for room.
        let sending = scope.spawn(move || while near_out.send(40, &[&[0u8; 1 << 20]]).is_ok() {});
        thread::sleep(Duration::from_millis(100));
        let begin = Instant::now();
        closer.close();
        assert_eq!(waiting.join().unwrap().unwrap_err().kind(), ErrorKind::Unreachable);
        sending.join().unwrap();
        assert!(begin.elapsed() < Duration::from_secs(2));
    });
    loop {
        match far_in.receive(Some(PATIENCE)) {
            Ok(Some(frame)) => assert_eq!(frame.body.len(), 1 << 20),
            Ok(None) => panic!("the end does not arrive"),
            Err(e) => break assert_eq!(e.kind(), ErrorKind::Unreachable),
        }
    }
    let mut sent = 0;
    while far_out.send(40, &[b"anybody?"]).is_ok() {
        sent += 1;
        assert!(sent < 100_000, "a closed link goes on taking frames");
    }
}

#[test]
fn dropping_both_halves_ends_the_link() {
    let world = World::new(5);
    let (near, mut far) = world.pair(data(2));
    let closer = near.closer();
    drop(near);
    assert_eq!(far.receive(Some(PATIENCE)).unwrap_err().kind(), ErrorKind::Unreachable);
    closer.close();
}

#[test]
fn too_long_a_frame_is_not_sent_and_harms_nothing() {
    let world = World::new(6);
    let (near, mut far) = world.pair(data(2));
    let body = vec![1u8; FRAME_BYTES_MAX + 1];
    assert_eq!(near.send(40, &[&body]).unwrap_err().kind(), ErrorKind::Invalid);
    near.send(40, &[&body[1..]]).unwrap();
    assert_eq!(far.receive(Some(PATIENCE)).unwrap().unwrap().body.len(), FRAME_BYTES_MAX);
}

#[test]
fn another_node_than_the_expected_one_is_refused() {
    let world = World::new(7);
    let two = identity(&world.authority, data(2));
    let error = connect(&world.address, &two, Some(NodeId(3)), PATIENCE).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains("node 3 was expected"), "{error}");
    assert!(connect(&world.address, &two, Some(NodeId(1)), PATIENCE).is_ok());
    assert!(connect(&world.address, &two, None, PATIENCE).is_ok());
}

#[test]
fn a_removed_node_gets_nothing_and_loses_what_it_had() {
    let world = World::new(8);
    let (mut near, _far) = world.pair(data(2));
    let (mut kept, _kept_far) = world.pair(data(3));
    world.removed.lock().unwrap().push(data(2));
    world.server.recheck();
    assert_eq!(near.receive(Some(PATIENCE)).unwrap_err().kind(), ErrorKind::Unreachable);
    assert_eq!(kept.receive(Some(Duration::from_millis(50))).unwrap(), None);
    let error = connect(&world.address, &identity(&world.authority, data(2)), None, PATIENCE).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains("not a member"), "{error}");
    world.assert_accepted_nothing();
    world.assert_serves();
}

#[test]
fn stopping_closes_what_was_accepted() {
    let mut world = World::new(9);
    let (mut near, _far) = world.pair(PeerName::Client(ClientId([1; 8])));
    world.server.stop();
    assert_eq!(near.receive(Some(PATIENCE)).unwrap_err().kind(), ErrorKind::Unreachable);
    let error = connect(&world.address, &identity(&world.authority, data(2)), None, PATIENCE).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable);
}

#[test]
fn a_renewed_certificate_is_shown_to_the_next() {
    let world = World::new(10);
    world.server.replace_identity(&identity(&world.authority, data(5))).unwrap();
    let two = identity(&world.authority, data(2));
    assert_eq!(connect(&world.address, &two, Some(NodeId(5)), PATIENCE).unwrap().peer().name, data(5));
}

/// A server of node 1 that answers calls: with what it is asked, backwards; "fail" with an error; "slow" late.
fn answering() -> (sinter::replica::identity::Authority, String, LinkServer) {
    let authority = authority(20);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let handlers = Handlers {
        check: Arc::new(|_| true),
        accept: Arc::new(|_, link, first| {
            let _ = serve_calls(link, first, &|peer, request| match request {
                b"who" => Ok(peer.name.to_string().into_bytes()),
                b"fail" => Err(Error::new(ErrorKind::NotPrimary, "node 3\nis primary")),
                b"slow" => {
                    thread::sleep(Duration::from_millis(400));
                    Ok(b"late".to_vec())
                }
                _ => Ok(request.iter().rev().copied().collect()),
            });
        }),
        join: Arc::new(|_| Err(Error::new(ErrorKind::Unsupported, "nobody joins here"))),
    };
    let server = LinkServer::start(listener, &identity(&authority, data(1)), handlers).unwrap();
    (authority, address, server)
}

#[test]
fn calls_are_answered_and_errors_stay_what_they_are() {
    let (authority, address, mut server) = answering();
    let pool = CallPool::new(Arc::new(identity(&authority, data(2))));
    let call = |request: &[u8]| pool.call(NodeId(1), &address, request, PATIENCE);
    assert_eq!(call(b"who").unwrap(), b"data-2");
    let long: Vec<u8> = (0..1_000_000u32).map(|i| i as u8).collect();
    assert!(call(&long).unwrap().iter().eq(long.iter().rev()));
    let error = call(b"fail").unwrap_err();
    assert_eq!((error.kind(), error.to_string().as_str()), (ErrorKind::NotPrimary, "node 3 is primary"));
    // An answer that comes too late is never taken for the next one's.
    let late = pool.call(NodeId(1), &address, b"slow", Duration::from_millis(100)).unwrap_err();
    assert_eq!(late.kind(), ErrorKind::Unreachable);
    assert_eq!(call(b"abc").unwrap(), b"cba");
    assert_eq!(pool.call(NodeId(4), &address, b"abc", PATIENCE).unwrap_err().kind(), ErrorKind::Invalid);
    server.stop();
    assert_eq!(call(b"abc").unwrap_err().kind(), ErrorKind::Unreachable);
}

#[test]
fn calls_go_on_after_the_peer_was_started_again() {
    let (authority, address, mut server) = answering();
    let pool = CallPool::new(Arc::new(identity(&authority, data(2))));
    assert_eq!(pool.call(NodeId(1), &address, b"ab", PATIENCE).unwrap(), b"ba");
    server.stop();
    drop(server);
    let (_, again, _server) = {
        let listener = TcpListener::bind(&address).unwrap();
        let handlers = Handlers {
            check: Arc::new(|_| true),
            accept: Arc::new(|_, link, first| {
                let _ = serve_calls(link, first, &|_, request| Ok(request.to_vec()));
            }),
            join: Arc::new(|_| Err(Error::new(ErrorKind::Unsupported, "nobody joins here"))),
        };
        ((), address, LinkServer::start(listener, &identity(&authority, data(1)), handlers).unwrap())
    };
    assert_eq!(pool.call(NodeId(1), &again, b"ab", PATIENCE).unwrap(), b"ab");
}

#[test]
fn nobody_at_the_address_is_unreachable_in_time() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let two = identity(&authority(21), data(2));
    let begin = Instant::now();
    // The port takes connections, and nobody answers on them.
    let error = connect(&address, &two, None, Duration::from_millis(200)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable);
    assert!(begin.elapsed() < Duration::from_secs(5));
    drop(listener);
    assert_eq!(connect(&address, &two, None, PATIENCE).unwrap_err().kind(), ErrorKind::Unreachable);
    assert!(TcpStream::connect(&address).is_err());
}

/// Prints how long small frames take there and back: `cargo test --test link -- --ignored --nocapture round_trip`.
#[test]
#[ignore = "a measurement, for a quiet machine"]
fn round_trip_of_small_frames() {
    const ROUNDS: u32 = 20_000;
    let world = World::new(30);
    let (mut near, mut far) = world.pair(data(2));
    let body = [7u8; 64];
    thread::scope(|scope| {
        scope.spawn(move || {
            for _ in 0..ROUNDS {
                let frame = far.receive(Some(PATIENCE)).unwrap().unwrap();
                far.send(frame.kind, &[&frame.body]).unwrap();
            }
        });
        let mut times: Vec<Duration> = (0..ROUNDS)
            .map(|_| {
                let begin = Instant::now();
                near.send(40, &[&body]).unwrap();
                assert_eq!(near.receive(Some(PATIENCE)).unwrap().unwrap().body, body);
                begin.elapsed()
            })
            .collect();
        times.sort();
        let at = |share: usize| times[times.len() * share / 100];
        println!("64 bytes there and back: median {:?}, 99 % {:?}", at(50), at(99));
    });
    let (near, mut far) = world.pair(data(3));
    let piece = vec![3u8; 1 << 20];
    let begin = Instant::now();
    thread::scope(|scope| {
        scope.spawn(move || {
            for _ in 0..1024 {
                far.receive(Some(PATIENCE)).unwrap().unwrap();
            }
        });
        for _ in 0..1024 {
            near.send(40, &[&piece]).unwrap();
        }
    });
    println!("one way, frames of 1 MiB: {:.0} MiB/s", 1024.0 / begin.elapsed().as_secs_f64());
}
