//! Tokens, certificates, files, and joining from end to end.

use std::os::unix::fs::PermissionsExt as _;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use sinter::error::ErrorKind;
use sinter::replica::decisions::NodeId;
use sinter::replica::identity::{
    CERTIFICATE_LIFE, ClientId, IdentityFiles, NodeIdentity, NodeKey, PeerName, PeerRole, SigningRequest,
    TOKEN_LIFE, Token,
};
use sinter::replica::link::{connect, join};
use sinter::sync::RandomSource as _;

use crate::world::{PATIENCE, World, authority, data, identity, random, wall_clock};

/// A directory of this test's own, removed at the end.
struct Directory(std::path::PathBuf);

impl Directory {
    fn new() -> Directory {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("sinter-link-{}-{number}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Directory(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn addresses(address: &str) -> Vec<String> {
    vec![address.to_owned()]
}

#[test]
fn joining_makes_a_member_of_each_role() {
    let world = World::new(50);
    let names = [
        (PeerRole::Data, data(2)),
        (PeerRole::Witness, PeerName::Witness(NodeId(3))),
        (PeerRole::Client, PeerName::Client(ClientId([7; 8]))),
    ];
    for (role, name) in names {
        // The first address is dead: the next one is tried.
        let at = ["127.0.0.1:1".to_owned(), world.address.clone()];
        let made = world.authority.token(role, &at, wall_clock(), &random(51)).unwrap();
        let token = Token::parse(&format!("  {made}\n")).unwrap();
        assert_eq!(token, made);
        let key = NodeKey::generate().unwrap();
        let joined = join(&token, &key, b"who", PATIENCE).unwrap();
        assert_eq!(joined.identity.peer().name, name);
        assert_eq!(joined.identity.peer().cluster, world.authority.cluster());
        assert_eq!(joined.addresses, addresses(&world.address));
        assert_eq!(joined.extra, b"the rest");
        // Data nodes alone can let others in.
        assert_eq!(joined.authority.is_some(), role == PeerRole::Data);
        if let Some(authority) = joined.authority {
            let another = authority.token(role, &at, wall_clock(), &random(52)).unwrap();
            another.check(world.authority.cluster(), wall_clock(), world.authority.secret()).unwrap();
            let by_the_joined = identity(&authority, data(8));
            assert!(connect(&world.address, &by_the_joined, Some(NodeId(1)), PATIENCE).is_ok());
        }
        let link = connect(&world.address, &joined.identity, Some(NodeId(1)), PATIENCE).unwrap();
        link.send(40, &[b"hello"]).unwrap();
        assert_eq!(world.accepted.recv_timeout(PATIENCE).unwrap().0.name, name);
    }
}

#[test]
fn expired_altered_and_foreign_tokens_are_refused() {
    let world = World::new(53);
    let key = NodeKey::generate().unwrap();
    let at = addresses(&world.address);
    let refused = |token: &Token, why: &str| {
        let error = join(token, &key, b"who", PATIENCE).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        assert!(error.to_string().contains(why), "{error}");
    };
    let past = wall_clock() - TOKEN_LIFE - Duration::from_secs(1);
    refused(&world.authority.token(PeerRole::Data, &at, past, &random(1)).unwrap(), "expired");
    // Of another cluster that says it is at this address: this node does not show that cluster's certificate.
    let asked = world.joins.load(Ordering::SeqCst);
    let foreign = authority(54).token(PeerRole::Data, &at, wall_clock(), &random(2)).unwrap();
    refused(&foreign, "does not belong to the cluster");
    assert_eq!(world.joins.load(Ordering::SeqCst), asked, "a foreign token was shown to this cluster");
    // A witness that would like to be a data node, and one that would like to stay longer: every byte is covered.
    let good = world.authority.token(PeerRole::Witness, &at, wall_clock(), &random(3)).unwrap();
    let check = |token: &Token| {
        token.check(world.authority.cluster(), wall_clock(), world.authority.secret()).map_err(|e| e.kind())
    };
    assert_eq!(check(&good), Ok(()));
    let text = good.to_string();
    let mut altered = 0;
    for position in 8..text.len() {
        let mut bytes = text.clone().into_bytes();
        bytes[position] = if bytes[position] == b'A' { b'B' } else { b'A' };
        if let Ok(token) = Token::parse(std::str::from_utf8(&bytes).unwrap()) {
            assert_eq!(check(&token), Err(ErrorKind::Invalid), "character {position}");
            altered += 1;
            if token.cluster() == good.cluster()
                && token.authority() == good.authority()
                && token.addresses() == good.addresses()
                && altered % 16 == 0
            {
                refused(&token, "altered");
            }
        }
    }
    assert!(altered > 100, "{altered}");
}

#[test]
fn reading_tokens_is_total() {
    let good = authority(55)
        .token(PeerRole::Data, &["[::1]:9000".to_owned(), "host:1".to_owned()], wall_clock(), &random(4))
        .unwrap()
        .to_string();
    for len in 0..good.len() {
        assert!(Token::parse(&good[..len]).is_err());
    }
    let random = random(5);
    for _ in 0..20_000 {
        let mut bytes = good.clone().into_bytes();
        for _ in 0..1 + random.number() % 4 {
            let at = random.number() as usize % bytes.len();
            bytes[at] = random.number() as u8 & 0x7f;
        }
        let text = String::from_utf8(bytes).unwrap();
        // What is read is shown again as it was.
        if let Ok(token) = Token::parse(&text) {
            assert_eq!(token.to_string(), text.trim());
        }
    }
    assert!(Token::parse(&format!("sinter1.{}", "A".repeat(100_000))).is_err());
    assert!(!format!("{:?}", Token::parse(&good).unwrap()).contains("code"));
    for wrong in [
        vec![],
        vec!["host".to_owned()],
        vec![":1".to_owned()],
        vec!["h:70000".to_owned()],
        vec!["h:1".to_owned(); 17],
    ] {
        assert!(authority(55).token(PeerRole::Data, &wrong, wall_clock(), &random).is_err(), "{wrong:?}");
    }
}

#[test]
fn names_read_back_and_nothing_else_does() {
    for name in [data(0), data(u32::MAX), PeerName::Witness(NodeId(7)), PeerName::Client(ClientId([0xab; 8]))]
    {
        assert_eq!(PeerName::parse(&name.to_string()), Some(name));
    }
    for wrong in [
        "data-",
        "data-+7",
        "data-07",
        "data-4294967296",
        "node-7",
        "client-7",
        "client-ABABABABABABABAB",
        "",
    ] {
        assert_eq!(PeerName::parse(wrong), None, "{wrong}");
    }
}

#[test]
fn files_bring_back_what_was_saved() {
    let directory = Directory::new();
    let files = IdentityFiles::in_directory(directory.0.join("cluster"));
    assert!(files.load().unwrap().is_none());
    let authority = authority(56);
    let one = identity(&authority, data(1));
    files.save(&one, Some(&authority), &random(6)).unwrap();
    let stored = files.load().unwrap().unwrap();
    assert_eq!(stored.identity.peer(), one.peer());
    assert_eq!(stored.authority.unwrap().fingerprint(), authority.fingerprint());
    let mut names = Vec::new();
    for entry in std::fs::read_dir(directory.0.join("cluster")).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{entry:?}");
        let bytes = std::fs::read(entry.path()).unwrap();
        let key = authority.sealed_key(&random(7)).unwrap();
        assert!(!bytes.windows(32).any(|window| window == &key[12..44]) || bytes == key);
        names.push(entry.file_name().into_string().unwrap());
    }
    names.sort();
    assert_eq!(names, ["authority.crt", "authority.key", "cluster.secret", "node.crt", "node.key"]);
    // What does not belong together is said to be damaged, each file in turn.
    for name in &names {
        let path = directory.0.join("cluster").join(name);
        let good = std::fs::read(&path).unwrap();
        let mut wrong = good.clone();
        *wrong.last_mut().unwrap() ^= 1;
        std::fs::write(&path, &wrong).unwrap();
        let loaded = files.load();
        assert_eq!(loaded.map(|_| ()).unwrap_err().kind(), ErrorKind::Corrupt, "{name}");
        std::fs::write(&path, &good).unwrap();
    }
    files.remove().unwrap();
    assert!(files.load().unwrap().is_none());
    files.remove().unwrap();
}

#[test]
fn certificates_are_renewed_at_half_their_life_for_the_same_name_only() {
    let authority = authority(57);
    let one = identity(&authority, data(1));
    let begin = one.peer().valid_from;
    assert!(!one.renewal_due(begin + CERTIFICATE_LIFE / 2 - Duration::from_secs(1)));
    assert!(one.renewal_due(begin + CERTIFICATE_LIFE / 2));
    let request = SigningRequest::from_bytes(&one.signing_request().unwrap().to_bytes()).unwrap();
    let later = begin + CERTIFICATE_LIFE / 2;
    let renewed = one.renewed(authority.sign(data(1), &request, later).unwrap()).unwrap();
    assert_eq!(renewed.peer().valid_from, later);
    assert!(!renewed.renewal_due(later));
    assert!(one.renewed(authority.sign(data(2), &request, later).unwrap()).is_err());
    let another = identity(&authority, data(1));
    assert!(one.renewed(another.certificate().to_vec()).is_err());
    // A request for somebody else's key, or for another cluster.
    let mut stolen = request.to_bytes();
    stolen[..32].copy_from_slice(&another.signing_request().unwrap().to_bytes()[..32]);
    assert!(authority.sign(data(1), &SigningRequest::from_bytes(&stolen).unwrap(), later).is_err());
    let elsewhere = SigningRequest::new(one.key(), crate::world::authority(58).cluster()).unwrap();
    assert!(authority.sign(data(1), &elsewhere, later).is_err());
}

#[test]
fn an_expired_certificate_is_refused_by_the_peer() {
    let world = World::new(59);
    let key = NodeKey::generate().unwrap();
    let request = SigningRequest::new(&key, world.authority.cluster()).unwrap();
    let past = wall_clock() - CERTIFICATE_LIFE - Duration::from_secs(60);
    let old = world.authority.sign(data(2), &request, past).unwrap();
    let old = NodeIdentity::new(old, world.authority.certificate().to_vec(), key).unwrap();
    assert!(connect(&world.address, &old, None, PATIENCE).is_err());
    world.assert_accepted_nothing();
    world.assert_serves();
}
