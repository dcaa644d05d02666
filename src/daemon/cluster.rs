//! The daemon's side of clusters: joining before the pool is opened, forming and serving after that.

use std::net::SocketAddr;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::OnceLock;

use signal_hook::iterator::Signals;

use crate::array::Array;
use crate::daemon::config::Config;
use crate::daemon::config::DeviceSpec;
use crate::daemon::failure::Failure;
use crate::daemon::failure::Outcome;
use crate::daemon::notify::Notifier;
use crate::daemon::notify::State;
use crate::daemon::pool;
use crate::daemon::uri::NbdEndpoint;
use crate::error::Error;
use crate::error::ErrorKind;
use crate::export::nbd::PassOn;
use crate::replica::cluster::ArrayPool;
use crate::replica::cluster::Cluster;
use crate::replica::cluster::ClusterOptions;
use crate::replica::cluster::DataParts;
use crate::replica::cluster::JoinPlan;
use crate::replica::cluster::LocalServer;
use crate::replica::cluster::LocalServers;
use crate::replica::cluster::Passage;
use crate::replica::epochs;
use crate::replica::identity::PeerRole;
use crate::replica::identity::Token;
use crate::replica::link;
use crate::replica::node::Gate;
use crate::replica::node::Upkeep;
use crate::replica::ring::Ring;
use crate::store::Environment;
use crate::store::Store;

/// What is there before the array, so that it can be asked and told: the gate and the ring.
pub(super) struct Prepared {
    pub(super) gate: Arc<Gate>,
    pub(super) ring: Arc<Ring>,
}

impl Prepared {
    /// In a cluster nothing is taken before that is there.
    pub(super) fn new(config: &Config, clustered: bool) -> Prepared {
        let gate = Gate::default();
        if clustered {
            gate.hold();
        }
        Prepared { gate: Arc::new(gate), ring: Arc::new(Ring::new(config.memory_ring)) }
    }
}

/// How the pool is to be opened.
pub(super) struct PoolWish {
    /// What it must be made with, in a cluster.
    pub(super) pool: Option<ArrayPool>,
    /// It is made anew, whatever the devices hold.
    pub(super) anew: bool,
}

/// Where everything about the cluster is kept.
pub(super) fn directory(data_directory: &Path) -> PathBuf {
    data_directory.join("cluster")
}

/// What this node is called and where it is, as far as that is known before anything is served.
pub(super) fn options(config: &Config, data_directory: &Path) -> ClusterOptions {
    ClusterOptions {
        directory: directory(data_directory),
        name: config.cluster_name.clone().unwrap_or_else(machine_name),
        listen: config.cluster_listen,
        api_address: None,
        nbd_address: None,
        asynchronous: config.cluster_asynchronous,
        upkeep: Upkeep { bookmark_keep: config.bookmark_keep, resync_rate: config.resync_rate },
    }
}

/// Joins a cluster, where this node was told to and has not yet.
///
/// # Errors
/// `Invalid` for a bad token; `Exists` for devices that hold a pool, without `discard`; and what joining says.
pub(super) fn join(
    join: Option<&str>,
    options: &ClusterOptions,
    specs: Option<&[DeviceSpec]>,
    discard: bool,
    environment: &Environment,
) -> Outcome<PoolWish> {
    let formed = Cluster::pool_identity(&options.directory)?;
    if let Some(pool) = formed {
        if join.is_some() {
            tracing::info!("this node has joined its cluster already: the token is not used");
        }
        let anew = pool.is_some() && Cluster::pool_is_to_be_made(&options.directory)?;
        return Ok(PoolWish { pool, anew });
    }
    let Some(text) = join else { return Ok(PoolWish { pool: None, anew: false }) };
    let token = read_token(text)?;
    let wanted = if specs.is_some() { PeerRole::Data } else { PeerRole::Witness };
    if token.role() != wanted {
        let what = format!("this token is for a {}, and this node is to be a {wanted}", token.role());
        return Err(Failure::new(ErrorKind::Invalid, what)
            .hint("`sinter cluster token --role data|witness` on a node of the cluster makes another one"));
    }
    if let Some(specs) = specs
        && !discard
    {
        pool::check_blank(specs, "--discard-local-data gives up what they hold")?;
    }
    let plan = JoinPlan { token, options: options.clone() };
    let joined = plan.carry_out(&*environment.random).map_err(|error| {
        let unreachable = error.kind() == ErrorKind::Unreachable;
        let failure = Failure::from(error.context("joining the cluster"));
        match unreachable {
            true => failure.hint("is the node that made the token running, and does its address lead there?"),
            false => failure
                .hint("a token is good for one node and one hour; `sinter cluster token` makes another"),
        }
    })?;
    tracing::info!("joined as node {}", joined.node.0);
    Ok(PoolWish { pool: joined.pool, anew: true })
}

/// Refuses to serve a pool alone that belongs to a cluster, unless that is to be forgotten: its writes would be taken
/// for the cluster's own when it comes back there.
///
/// # Errors
/// `Busy`; as `epochs::stand_alone`.
pub(super) fn check_stands_alone(
    store: &Store,
    options: &ClusterOptions,
    forget: bool,
    environment: &Environment,
) -> Outcome {
    if !epochs::belongs_to_cluster(store) {
        return Ok(());
    }
    let place = options.directory.display();
    if store.syncing() {
        let what = format!(
            "the pool belongs to a cluster and its copy is not whole, and {place}, which says how to reach it, is missing"
        );
        return Err(Failure::new(ErrorKind::Busy, what).hint(
            "give the --data-dir of this node; where that is lost, --join TOKEN --discard-local-data makes a new node",
        ));
    }
    if !forget {
        let what =
            format!("the pool belongs to a cluster, and {place}, which says how to reach it, is missing");
        return Err(Failure::new(ErrorKind::Busy, what).hint(
            "give the --data-dir of this node; where that is lost, --forget-cluster does what `sinter cluster forget` \
             does: the array stands alone, with what this node holds",
        ));
    }
    epochs::stand_alone(store, &*environment.random).map_err(|error| error.context("leaving the cluster"))?;
    tracing::warn!("this array has left its cluster, and stands alone");
    Ok(())
}

/// A token, or the one in the file behind `@`.
///
/// # Errors
/// `Invalid`.
pub(super) fn read_token(text: &str) -> Outcome<Token> {
    let read = match text.strip_prefix('@') {
        Some(path) => std::fs::read_to_string(path).map_err(|error| {
            Failure::from(Error::caused(ErrorKind::Invalid, format!("reading the token in {path}"), error))
        })?,
        None => text.to_owned(),
    };
    Ok(Token::parse(read.trim())?)
}

/// Where clients are served on this node.
pub(super) struct Addresses<'a> {
    pub(super) rest: SocketAddr,
    pub(super) nbd: &'a [NbdEndpoint],
}

/// What the cluster has the daemon do.
pub(super) struct Calls {
    /// Lets all clients go.
    pub(super) disconnect: Arc<dyn Fn() + Send + Sync>,
    /// Stops in order, and starts again.
    pub(super) begin_anew: Arc<dyn Fn() + Send + Sync>,
}

/// What is opened.
pub(super) struct Pool<'a> {
    pub(super) store: &'a Arc<Store>,
    pub(super) array: &'a Arc<Array>,
    pub(super) environment: &'a Environment,
}

/// Goes on with the cluster that this node is in, if it is in one.
///
/// # Errors
/// As `Cluster::open`.
pub(super) fn start(
    mut options: ClusterOptions,
    prepared: &Prepared,
    pool: &Pool<'_>,
    addresses: &Addresses<'_>,
    calls: Calls,
) -> Outcome<Arc<Cluster>> {
    let mut tcp = None;
    let mut unix = None;
    for endpoint in addresses.nbd {
        match endpoint {
            NbdEndpoint::Tcp(address) => tcp = tcp.or(Some(*address)),
            NbdEndpoint::Unix(path) => unix = unix.or_else(|| Some(LocalServer::Unix(path.clone()))),
        }
    }
    options.api_address = Some(addresses.rest.to_string());
    options.nbd_address = tcp.map(|address| address.to_string());
    let local = LocalServers { nbd: unix.or(tcp.map(LocalServer::Tcp)), rest: addresses.rest };
    let data = DataParts {
        store: Arc::clone(pool.store),
        array: Arc::clone(pool.array),
        ring: Arc::clone(&prepared.ring),
        gate: Arc::clone(&prepared.gate),
        disconnect: calls.disconnect,
        begin_anew: calls.begin_anew,
        local,
    };
    let cluster = Cluster::new(options, pool.environment.clone(), Some(data));
    cluster.open().map_err(|error| Failure::from(error.context("going on with the cluster")))?;
    Ok(cluster)
}

/// Takes part in decisions until the process is told to stop.
///
/// # Errors
/// As `join`, and `Invalid` for a node that is in no cluster.
pub(super) fn serve_witness(
    options: &ClusterOptions,
    token: Option<&str>,
    environment: &Environment,
    manager: &Notifier,
    signals: &mut Signals,
) -> Outcome {
    let data_directory = options.directory.parent().unwrap_or(&options.directory);
    pool::make_data_directory(data_directory)?;
    join(token, options, None, false, environment)?;
    let cluster = Cluster::new(options.clone(), environment.clone(), None);
    let running =
        cluster.open().map_err(|error| Failure::from(error.context("going on with the cluster")))?;
    let Some(running) = running else {
        return Err(Failure::new(ErrorKind::Invalid, "this witness is in no cluster yet")
            .hint("`sinter cluster token --role witness` on a node makes a token for --join"));
    };
    manager.tell(State::Ready("a witness, without data"));
    tracing::info!("witness: node {} at {}", running.own.0, running.listen);
    drop(running);
    let _ = signals.forever().next();
    cluster.stop();
    Ok(())
}

/// The cluster, for those that are there before it.
#[derive(Clone, Default)]
pub(super) struct Later(Arc<OnceLock<Arc<Cluster>>>);

impl Later {
    pub(super) fn set(&self, cluster: &Arc<Cluster>) {
        // It is set once, by the one place that makes it.
        let _ = self.0.set(Arc::clone(cluster));
    }

    /// What becomes of a new NBD connection, where another node is the primary.
    pub(super) fn pass_on(&self) -> Option<PassOn> {
        let cluster = self.0.get().filter(|cluster| cluster.passes_on())?;
        let cluster = Arc::clone(cluster);
        Some(Box::new(move |stream| {
            let passed = cluster.pass_on(Passage::Nbd).and_then(|link| link::tunnel(link, stream));
            if let Err(error) = passed {
                tracing::debug!("an NBD connection that was passed on ended: {error}");
            }
        }))
    }
}

/// The name of the machine, or something that is one.
fn machine_name() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    if name.is_empty() { "node".to_owned() } else { name }
}
