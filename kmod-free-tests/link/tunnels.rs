//! Tunnels carry a client's bytes both ways, half ends included.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use sinter::error::ErrorKind;
use sinter::replica::link::{WRITE_PATIENCE, tunnel, tunnel_within};

use crate::world::{PATIENCE, World, data};

/// A connected pair of TCP sockets.
fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (near, listener.accept().unwrap().0)
}

#[test]
fn an_echo_comes_back_through_and_half_ends_pass() {
    const TOTAL: usize = 8 << 20;
    let world = World::new(40);
    let (near, far) = world.pair(data(2));
    let (mut client, client_end) = UnixStream::pair().unwrap();
    let (mut service, service_end) = sockets();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    service.set_read_timeout(Some(PATIENCE)).unwrap();
    thread::scope(|scope| {
        let one = scope.spawn(move || tunnel(near, client_end));
        let two = scope.spawn(move || tunnel(far, service_end));
        scope.spawn(move || {
            let mut buffer = vec![0u8; 10_000];
            loop {
                let read = service.read(&mut buffer).unwrap();
                if read == 0 {
                    break;
                }
                service.write_all(&buffer[..read]).unwrap();
            }
            // The client has ended its direction; this one is still open.
            service.write_all(b"the end").unwrap();
        });
        let mut writing = client.try_clone().unwrap();
        scope.spawn(move || {
            let bytes: Vec<u8> = (0..TOTAL).map(|i| (i / 7) as u8).collect();
            writing.write_all(&bytes).unwrap();
            writing.shutdown(Shutdown::Write).unwrap();
        });
        let mut echoed = Vec::new();
        client.read_to_end(&mut echoed).unwrap();
        assert_eq!(echoed.len(), TOTAL + 7);
        assert!(echoed[..TOTAL].iter().enumerate().all(|(i, byte)| *byte == (i / 7) as u8));
        assert_eq!(&echoed[TOTAL..], b"the end");
        one.join().unwrap().unwrap();
        two.join().unwrap().unwrap();
    });
}

#[test]
fn a_tunnel_that_is_cut_ends_both_connections() {
    for half_open in [false, true] {
        let world = World::new(41);
        let (near, far) = world.pair(data(2));
        let closer = near.closer();
        let (mut client, client_end) = UnixStream::pair().unwrap();
        let (mut service, service_end) = sockets();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        service.set_read_timeout(Some(PATIENCE)).unwrap();
        thread::scope(|scope| {
            let one = scope.spawn(move || tunnel(near, client_end));
            let two = scope.spawn(move || tunnel(far, service_end));
            client.write_all(b"x").unwrap();
            assert_eq!(service.read(&mut [0u8; 8]).unwrap(), 1);
            if half_open {
                service.shutdown(Shutdown::Write).unwrap();
                assert_eq!(client.read(&mut [0u8; 8]).unwrap(), 0);
            }
            thread::sleep(Duration::from_millis(50));
            closer.close();
            assert!(one.join().unwrap().is_err());
            assert!(two.join().unwrap().is_err());
            assert!(matches!(client.read(&mut [0u8; 8]), Ok(0) | Err(_)));
            assert!(matches!(service.read(&mut [0u8; 8]), Ok(0) | Err(_)));
        });
    }
}

#[test]
fn a_client_that_goes_away_ends_its_tunnel_at_the_other_end() {
    let world = World::new(42);
    let (near, far) = world.pair(data(2));
    let (client, client_end) = UnixStream::pair().unwrap();
    let (mut service, service_end) = sockets();
    service.set_read_timeout(Some(PATIENCE)).unwrap();
    thread::scope(|scope| {
        let one = scope.spawn(move || tunnel(near, client_end));
        let two = scope.spawn(move || tunnel(far, service_end));
        drop(client);
        assert_eq!(service.read(&mut [0u8; 8]).unwrap(), 0);
        drop(service);
        one.join().unwrap().unwrap();
        two.join().unwrap().unwrap();
    });
}

#[test]
fn a_peer_that_takes_nothing_any_more_does_not_hold_a_tunnel_for_ever() {
    let limit = Duration::from_secs(2);
    let world = World::new(43);
    let (near, far) = world.pair(data(2));
    let closer = near.closer();
    let (client, client_end) = UnixStream::pair().unwrap();
    thread::scope(|scope| {
        let (tell, ended) = mpsc::channel();
        scope.spawn(move || tell.send(tunnel_within(near, client_end, limit)));
        // Nobody reads at the other end: the client is held up, and then cut off.
        let mut writing = &client;
        let cut_off = scope.spawn(move || (0..10_000).find_map(|_| writing.write_all(&[7; 65_536]).err()));
        let held_up = ended.recv_timeout(limit / 2);
        assert!(held_up.is_err(), "a slow reader has its time: {held_up:?}");
        let outcome = ended.recv_timeout(PATIENCE * 3);
        closer.close();
        let error = outcome.expect("it is held for ever").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
        assert!(cut_off.join().unwrap().is_some());
    });
    drop(far);
}

#[test]
fn a_client_that_is_paused_for_less_gets_everything() {
    const TOTAL: usize = 32 << 20;
    let world = World::new(44);
    let (near, far) = world.pair(data(2));
    let (mut client, client_end) = UnixStream::pair().unwrap();
    let (mut service, service_end) = sockets();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    thread::scope(|scope| {
        let limit = Duration::from_secs(20);
        scope.spawn(move || tunnel_within(near, client_end, limit));
        scope.spawn(move || tunnel_within(far, service_end, limit));
        scope.spawn(move || {
            let bytes = vec![7; TOTAL];
            service.write_all(&bytes).unwrap();
            service.shutdown(Shutdown::Write).unwrap();
        });
        // Longer than any other link waits for a write.
        thread::sleep(WRITE_PATIENCE + Duration::from_secs(2));
        let mut got = Vec::new();
        client.read_to_end(&mut got).unwrap();
        assert_eq!(got.len(), TOTAL);
        client.shutdown(Shutdown::Write).unwrap();
    });
}
