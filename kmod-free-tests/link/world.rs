//! A cluster of a test: an authority, nodes, and a server on a port that nobody else uses.

use std::net::TcpListener;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, SystemTime};

use sinter::error::{Error, ErrorKind};
use sinter::replica::decisions::NodeId;
use sinter::replica::identity::{Authority, NodeIdentity, NodeKey, PeerIdentity, PeerName, SigningRequest};
use sinter::replica::link::{Frame, Handlers, JoinGrant, Link, LinkServer, connect};
use sinter::sync::RandomSource;
use sinter::sync::seeded::SeededNumbers;
use sinter::units::Uuid;

pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) fn wall_clock() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap()
}

/// Numbers from a seed, as a source that is handed in.
pub(crate) struct SeededRandom(Mutex<SeededNumbers>);

impl RandomSource for SeededRandom {
    fn fill(&self, bytes: &mut [u8]) {
        self.0.lock().unwrap().fill(bytes);
    }
}

pub(crate) fn random(seed: u64) -> SeededRandom {
    SeededRandom(Mutex::new(SeededNumbers::new(seed)))
}

pub(crate) fn authority(seed: u64) -> Authority {
    let cluster = Uuid::from_random([seed as u8; 16]);
    Authority::create(cluster, wall_clock(), &random(seed)).unwrap()
}

pub(crate) fn identity(authority: &Authority, name: PeerName) -> NodeIdentity {
    let key = NodeKey::generate().unwrap();
    let request = SigningRequest::new(&key, authority.cluster()).unwrap();
    let certificate = authority.sign(name, &request, wall_clock()).unwrap();
    NodeIdentity::new(certificate, authority.certificate().to_vec(), key).unwrap()
}

pub(crate) fn data(node: u32) -> PeerName {
    PeerName::Data(NodeId(node))
}

/// A server of data node 1 that hands out the links it accepts.
pub(crate) struct World {
    pub(crate) authority: Authority,
    pub(crate) address: String,
    pub(crate) server: LinkServer,
    pub(crate) accepted: mpsc::Receiver<(PeerIdentity, Link, Frame)>,
    /// Whom `check` refuses.
    pub(crate) removed: Arc<Mutex<Vec<PeerName>>>,
    /// How often `join` was asked.
    pub(crate) joins: Arc<AtomicUsize>,
}

impl World {
    pub(crate) fn new(seed: u64) -> World {
        World::of(authority(seed))
    }

    pub(crate) fn of(authority: Authority) -> World {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (give, accepted) = mpsc::channel();
        let removed: Arc<Mutex<Vec<PeerName>>> = Arc::default();
        let joins: Arc<AtomicUsize> = Arc::default();
        let (refused, asked, signing) = (removed.clone(), joins.clone(), authority.clone());
        let own = address.clone();
        let handlers = Handlers {
            check: Arc::new(move |peer| !refused.lock().unwrap().contains(&peer.name)),
            accept: Arc::new(move |peer, link, first| {
                let _ = give.send((peer, link, first));
            }),
            join: Arc::new(move |request| {
                let node = asked.fetch_add(1, Ordering::SeqCst) as u32 + 2;
                if request.token.cluster() != signing.cluster() {
                    return Err(Error::new(ErrorKind::Invalid, "another cluster"));
                }
                let name = match request.token.role() {
                    sinter::replica::identity::PeerRole::Data => data(node),
                    sinter::replica::identity::PeerRole::Witness => PeerName::Witness(NodeId(node)),
                    sinter::replica::identity::PeerRole::Client => {
                        PeerName::Client(sinter::replica::identity::ClientId([7; 8]))
                    }
                };
                let told = (vec![own.clone()], b"the rest".to_vec());
                JoinGrant::make(&signing, &request, name, wall_clock(), &random(9), told)
            }),
        };
        let server = LinkServer::start(listener, &identity(&authority, data(1)), handlers).unwrap();
        World { authority, address, server, accepted, removed, joins }
    }

    /// Connects a node, says `first`, and returns both ends.
    pub(crate) fn pair(&self, name: PeerName) -> (Link, Link) {
        let link =
            connect(&self.address, &identity(&self.authority, name), Some(NodeId(1)), PATIENCE).unwrap();
        link.send(20, &[b"first"]).unwrap();
        let (peer, other, first) = self.accepted.recv_timeout(PATIENCE).unwrap();
        assert_eq!(peer.name, name);
        assert_eq!(first, Frame { kind: 20, body: b"first".to_vec() });
        (link, other)
    }

    /// Whether a member is still served, as it should be whatever happened before.
    pub(crate) fn assert_serves(&self) {
        let (near, mut far) = self.pair(data(99));
        near.send(21, &[b"still here"]).unwrap();
        assert_eq!(far.receive(Some(PATIENCE)).unwrap().unwrap().body, b"still here");
    }

    pub(crate) fn assert_accepted_nothing(&self) {
        assert!(self.accepted.try_recv().is_err());
    }
}
