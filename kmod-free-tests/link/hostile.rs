//! What strangers send: nothing of it is taken, and members are served as before.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned};
use sinter::error::ErrorKind;
use sinter::replica::identity::{ClientId, NodeIdentity, PeerName, PeerRole, SigningRequest};
use sinter::replica::link::{FRAME_BYTES_MAX, Handlers, LinkServer, connect, join, kind};
use sinter::sync::RandomSource as _;

use crate::world::{PATIENCE, World, authority, data, identity, random, wall_clock};

/// Believes every server: what a stranger would do.
#[derive(Debug)]
struct BelievesAll;

impl ServerCertVerifier for BelievesAll {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

type Raw = StreamOwned<ClientConnection, TcpStream>;

/// TLS without our own client's manners, with or without a certificate.
fn raw(address: &str, identity: Option<&NodeIdentity>) -> Raw {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(BelievesAll));
    let config = match identity {
        None => config.with_no_client_auth(),
        Some(identity) => {
            let key = PrivateKeyDer::Pkcs8(identity.key().to_bytes().into());
            config.with_client_auth_cert(vec![identity.certificate().to_vec().into()], key).unwrap()
        }
    };
    let tls = ClientConnection::new(Arc::new(config), ServerName::try_from("any.name").unwrap()).unwrap();
    let socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    StreamOwned::new(tls, socket)
}

/// All that the server says until it closes; it must, in time.
fn until_closed(raw: &mut Raw) -> Vec<u8> {
    let mut said = Vec::new();
    let mut buffer = [0u8; 4096];
    loop {
        match raw.read(&mut buffer) {
            Ok(0) => return said,
            Ok(read) => said.extend_from_slice(&buffer[..read]),
            Err(e) => {
                let waiting =
                    matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut);
                assert!(!waiting, "the server goes on listening to a stranger");
                return said;
            }
        }
    }
}

fn frame(kind: u8, body: &[u8]) -> Vec<u8> {
    [&(body.len() as u32).to_le_bytes()[..], &[kind], body].concat()
}

#[test]
fn another_authoritys_node_gets_nothing() {
    let world = World::new(60);
    // Even of a cluster of the same number.
    for foreign in [authority(61), authority(60)] {
        let stranger = identity(&foreign, data(2));
        let error = connect(&world.address, &stranger, None, PATIENCE).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        // One that believes every server is refused by that server.
        let mut raw = raw(&world.address, Some(&stranger));
        let _ = raw.write_all(&frame(20, b"let me in"));
        assert_eq!(until_closed(&mut raw), b"");
    }
    world.assert_accepted_nothing();
    world.assert_serves();
}

#[test]
fn without_a_certificate_there_is_nothing_but_joining() {
    let world = World::new(62);
    for kind in (0..=255).filter(|kind| *kind != kind::JOIN) {
        let mut raw = raw(&world.address, None);
        let _ = raw.write_all(&frame(kind, b"let me in"));
        assert_eq!(until_closed(&mut raw), b"", "kind {kind}");
    }
    assert_eq!(world.joins.load(Ordering::SeqCst), 0);
    world.assert_accepted_nothing();
    world.assert_serves();
}

#[test]
fn a_client_cannot_pass_for_a_node() {
    let world = World::new(63);
    let client = identity(&world.authority, PeerName::Client(ClientId([5; 8])));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let handlers = Handlers {
        check: Arc::new(|_| true),
        accept: Arc::new(|_, _, _| {}),
        join: Arc::new(|_| panic!("a token was shown to a client")),
    };
    let _server = LinkServer::start(listener, &client, handlers).unwrap();
    let two = identity(&world.authority, data(2));
    assert_eq!(connect(&address, &two, None, PATIENCE).unwrap_err().kind(), ErrorKind::Invalid);
    let token = world.authority.token(PeerRole::Data, &[address], wall_clock(), &random(1)).unwrap();
    assert_eq!(join(&token, two.key(), b"", PATIENCE).unwrap_err().kind(), ErrorKind::Invalid);
}

#[test]
fn garbage_on_the_port_does_no_harm() {
    let world = World::new(64);
    let random = random(65);
    for round in 0..200 {
        let mut socket = TcpStream::connect(&world.address).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut bytes = vec![0u8; random.number() as usize % 5000];
        random.fill(&mut bytes);
        if round % 2 == 0 && bytes.len() > 5 {
            // It looks like a record of a handshake.
            bytes[..3].copy_from_slice(&[22, 3, 1]);
        }
        let _ = socket.write_all(&bytes);
        let _ = socket.shutdown(Shutdown::Write);
        let mut said = Vec::new();
        let _ = socket.read_to_end(&mut said);
        // At most an alert.
        assert!(said.len() <= 7, "{said:?}");
    }
    world.assert_accepted_nothing();
    world.assert_serves();
}

#[test]
fn hostile_requests_to_join_do_no_harm() {
    let world = World::new(66);
    let random = random(67);
    let own = identity(&world.authority, data(2));
    let signing = SigningRequest::new(own.key(), world.authority.cluster()).unwrap().to_bytes();
    let at = [world.address.clone()];
    let token = world.authority.token(PeerRole::Data, &at, wall_clock(), &random).unwrap().to_string();
    let good = [signing, token.into_bytes()].concat();
    for round in 0..200 {
        let mut bytes = frame(kind::JOIN, &good);
        match round % 4 {
            0 => bytes.truncate(random.number() as usize % bytes.len()),
            1 => {
                let at = 5 + random.number() as usize % (bytes.len() - 5);
                bytes[at] ^= 1 << (random.number() % 7);
            }
            2 => bytes[..4].copy_from_slice(&(random.number() as u32 | 1 << 20).to_le_bytes()),
            _ => {
                random.fill(&mut bytes[5..]);
            }
        }
        let mut raw = raw(&world.address, None);
        let _ = raw.write_all(&bytes);
        raw.conn.send_close_notify();
        let _ = raw.flush();
        let said = until_closed(&mut raw);
        assert!(said.is_empty() || said[4] == kind::REFUSED, "round {round}: {said:?}");
    }
    world.assert_accepted_nothing();
    world.assert_serves();
}

#[test]
fn hostile_frames_of_a_member_end_its_link_only() {
    let world = World::new(68);
    let random = random(69);
    let two = identity(&world.authority, data(2));
    for round in 0..100 {
        let mut bytes = frame(20, b"first");
        match round % 3 {
            // A length beyond the bound.
            0 => bytes.extend_from_slice(
                &(FRAME_BYTES_MAX as u32 + 1 + random.number() as u32 % 1000).to_le_bytes(),
            ),
            1 => bytes.extend_from_slice(&[0xff; 64]),
            // A frame cut short.
            _ => bytes.extend_from_slice(&frame(21, &[1; 1000])[..random.number() as usize % 1005]),
        }
        bytes.push(0);
        let mut raw = raw(&world.address, Some(&two));
        raw.write_all(&bytes).unwrap();
        raw.conn.send_close_notify();
        raw.flush().unwrap();
        let (_, mut link, first) = world.accepted.recv_timeout(PATIENCE).unwrap();
        assert_eq!(first.body, b"first");
        let error = link.receive(Some(PATIENCE)).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Invalid | ErrorKind::Unreachable), "{error}");
        assert_eq!(round % 3 == 2, error.kind() == ErrorKind::Unreachable, "{error}");
    }
    world.assert_serves();
}

#[test]
fn an_altered_record_is_never_taken_for_a_frame() {
    let world = World::new(70);
    let random = random(71);
    for _ in 0..20 {
        // A relay between the two flips one bit of what a member says after its handshake.
        let relay = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = relay.local_addr().unwrap().to_string();
        let server = world.address.clone();
        let bit = random.number();
        let handle = std::thread::spawn(move || {
            let (mut client, _) = relay.accept().unwrap();
            let mut server = TcpStream::connect(server).unwrap();
            let (mut back_in, mut back_out) = (server.try_clone().unwrap(), client.try_clone().unwrap());
            let back = std::thread::spawn(move || {
                let _ = std::io::copy(&mut back_in, &mut back_out);
                let _ = back_out.shutdown(Shutdown::Both);
            });
            let mut buffer = vec![0u8; 1 << 16];
            loop {
                let read = client.read(&mut buffer).unwrap_or(0);
                if read == 0 {
                    break;
                }
                // The one message of this length.
                if read > 8000 {
                    let at = 5 + bit as usize % (read - 5);
                    buffer[at] ^= 1 << (bit >> 60 & 7);
                }
                if server.write_all(&buffer[..read]).is_err() {
                    break;
                }
            }
            let _ = server.shutdown(Shutdown::Both);
            back.join().unwrap();
        });
        let link = connect(&address, &identity(&world.authority, data(2)), None, PATIENCE).unwrap();
        link.send(20, &[&[9u8; 9000]]).unwrap();
        // The server never sees a first frame.
        assert!(world.accepted.recv_timeout(Duration::from_millis(50)).is_err());
        drop(link);
        handle.join().unwrap();
    }
    world.assert_serves();
}

#[test]
fn strangers_that_stay_silent_do_not_keep_members_out_for_long() {
    let world = World::new(72);
    let silent: Vec<TcpStream> = (0..300).map(|_| TcpStream::connect(&world.address).unwrap()).collect();
    // Those beyond the bound are turned away at once, and their places are free when the others have gone.
    let mut turned_away = 0;
    for socket in &silent {
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        turned_away += usize::from(matches!((&*socket).read(&mut [0u8; 1]), Ok(0)));
    }
    assert!(turned_away >= 200, "{turned_away}");
    drop(silent);
    let begin = std::time::Instant::now();
    let two = identity(&world.authority, data(2));
    while connect(&world.address, &two, None, PATIENCE).is_err() {
        assert!(begin.elapsed() < PATIENCE, "a member is kept out");
        std::thread::sleep(Duration::from_millis(10));
    }
    world.assert_serves();
}
