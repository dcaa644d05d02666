//! The project's own client against the server, and against others' servers.

use std::process::{Command, Stdio};

use sinter::error::ErrorKind;
use sinter::export::nbd::client::{Address, Client};
use sinter::export::nbd::dial::Patience;
use sinter::export::nbd::wire::options::SessionId;
use sinter::units::ByteCount;

use crate::{Fixture, MIB, eventually, noise};

fn round_trip(address: &Address, export: &str) {
    let mut client = Client::connect(address, export, 8).unwrap();
    let data = noise(6 << 20, 11);
    for (number, piece) in data.chunks(300_000).enumerate() {
        client.write(number as u64 * 300_000 + 512, piece).unwrap();
    }
    client.flush().unwrap();
    let mut back = Vec::new();
    client
        .read_each(512, ByteCount(data.len() as u64), 256 << 10, |offset, piece| {
            assert_eq!(offset, 512 + back.len() as u64, "in order");
            back.extend_from_slice(piece);
            Ok(())
        })
        .unwrap();
    assert!(back == data);
    client.write_zeroes(0, ByteCount(MIB)).unwrap();
    client.trim(8 * MIB, ByteCount(MIB)).unwrap();
    client.flush().unwrap();
    let mut head = vec![1; 1 << 20];
    client.read(0, &mut head).unwrap();
    assert!(head.iter().all(|byte| *byte == 0));
    let stretches = client.block_status(0, client.size()).unwrap();
    assert_eq!(stretches.iter().map(|it| it.len.0).sum::<u64>(), client.size().0);
    assert!(stretches.last().unwrap().zero);
    client.disconnect().unwrap();
}

#[test]
fn round_trips_over_unix_and_tcp() {
    let fixture = Fixture::new(16 * MIB);
    round_trip(&Address::Unix(fixture.socket()), "v");
    round_trip(&Address::Tcp(([127, 0, 0, 1], fixture.tcp_port).into()), "");
}

#[test]
fn a_session_goes_on_when_nothing_of_its_former_connection_can_be_executed_any_more() {
    let fixture = Fixture::new(MIB);
    let socket = fixture.socket();
    let connect = move |session: u128| {
        let (address, session) = (Address::Unix(socket.clone()), Some(SessionId(session)));
        Client::connect_within(&address, "v", 8, &Patience::default(), session)
    };
    for len in [4096, 100_000] {
        let mut other = connect(2).unwrap();
        let mut former = connect(1).unwrap();
        fixture.memory.write_gate.close();
        former.write(0, &vec![1; len]).unwrap();
        eventually("the write is under way", || {
            fixture.memory.write_gate.waiting.load(std::sync::atomic::Ordering::SeqCst) == 1
        });
        let again = connect.clone();
        let next = std::thread::Builder::new().spawn(move || again(1)).unwrap();
        std::thread::park_timeout(std::time::Duration::from_millis(300));
        assert!(!next.is_finished(), "it begins beside its former connection");
        fixture.memory.write_gate.open();
        let mut next = next.join().unwrap().unwrap();
        next.write(0, &vec![2; len]).unwrap();
        next.flush().unwrap();
        assert!(former.flush().is_err());
        assert_eq!(fixture.memory.bytes(0, len), vec![2; len]);
        // Another session does not care.
        other.write(0, &[3; 512]).unwrap();
        other.flush().unwrap();
    }
}

#[test]
fn round_trips_with_a_server_of_others() {
    let fixture = Fixture::new(MIB);
    let socket = fixture.file("nbdkit");
    let mut nbdkit = Command::new("nbdkit")
        .args(["-f", "-U"])
        .arg(&socket)
        .args(["memory", "16M"])
        .stderr(Stdio::null())
        .spawn()
        .expect("nbdkit is installed");
    eventually("nbdkit listens", || std::os::unix::net::UnixStream::connect(&socket).is_ok());
    round_trip(&Address::Unix(socket), "");
    nbdkit.kill().unwrap();
    nbdkit.wait().unwrap();
}

#[test]
fn errors_come_back_as_what_they_are() {
    let fixture = Fixture::new(MIB);
    let address = Address::Unix(fixture.socket());
    let Err(error) = Client::connect(&address, "nobody", 4) else { panic!("there is no such export") };
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let Err(error) = Client::connect(&Address::Unix(fixture.file("none")), "v", 4) else {
        panic!("nobody is there")
    };
    assert_eq!(error.kind(), ErrorKind::Unreachable);
    let mut client = Client::connect(&address, "v", 4).unwrap();
    *fixture.memory.fault.lock().unwrap() = Some(ErrorKind::NoSpace);
    let failed = (0..10).find_map(|number| client.write(number * 4096, &[1; 4096]).err());
    let error = failed.or_else(|| client.flush().err()).expect("a write has failed");
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    assert!(error.to_string().contains("a fault that the test asked for"), "{error}");
}
