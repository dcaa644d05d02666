//! The daemon: configuration, and the one place where the parts are put together.
//!
//! Start, each step after the one before:
//!
//! 1. what was asked for is checked, as far as that can be without a pool: addresses (nothing but loopback
//!    without `--insecure-open`), volumes' names and sizes;
//! 2. signals are caught;
//! 3. TCP ports are taken, the Unix socket's path and the mount point are looked at, so that a taken one is found
//!    before anything is written;
//! 4. devices are opened, locked and looked at, the pool is opened or made, and its fingerprint index filled, for a
//!    bounded time;
//! 5. the array reads its catalog, and missing `--volume`s are made;
//! 6. the background threads start;
//! 7. the Unix socket is bound (the pool's lock says that it is ours), NBD serves; mounts that a daemon of
//!    this pool has left behind are taken away, and `fuse.mountpoint` is mounted; then REST serves;
//! 8. the service manager is told, and what is served is announced.
//!
//! Stop, on SIGTERM or SIGINT: mounts are taken away, and whoever has a file open in one gets some time to
//! close it; NBD and REST stop accepting, finish the requests they have and close;
//! the background threads stop; a checkpoint makes everything durable; the devices are closed. A
//! second signal ends the process at once, which loses nothing that was acknowledged: the next start
//! replays the log instead.

use std::net::SocketAddr;
use std::net::TcpListener;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use signal_hook::consts::SIGINT;
use signal_hook::consts::SIGTERM;
use signal_hook::iterator::Signals;

use crate::api::Service;
use crate::api::types::Endpoints;
use crate::array::Array;
use crate::array::ArrayOptions;
use crate::array::NewVolume;
use crate::array::rules;
use crate::daemon::again::Again;
use crate::daemon::background::Background;
use crate::daemon::config::Config;
use crate::daemon::config::UnixEndpoint;
use crate::daemon::endings::Endings;
use crate::daemon::failure::ExitStatus;
use crate::daemon::failure::Failure;
use crate::daemon::failure::Outcome;
use crate::daemon::history::Recorder;
use crate::daemon::measure::Measuring;
use crate::daemon::mounts::Mounts;
use crate::daemon::nbd::NbdServer;
use crate::daemon::notify::Notifier;
use crate::daemon::notify::State;
use crate::daemon::pool::OpenPool;
use crate::daemon::pool::OtherContent;
use crate::daemon::quantity::round_size;
use crate::daemon::quantity::show_size;
use crate::daemon::rest::RestServer;
use crate::daemon::system::SystemClock;
use crate::daemon::system::SystemRandom;
use crate::daemon::uri::NbdEndpoint;
use crate::error::Error;
use crate::error::ErrorKind;
use crate::replica::history::begin as begin_history;
use crate::store::Environment;
use crate::store::OpenReport;
use crate::store::Store;
use crate::store::StoreOptions;
use crate::units::ByteCount;

mod again;
pub mod attach;
mod background;
mod cluster;
pub mod config;
mod endings;
pub mod failure;
mod history;
pub mod keys;
mod measure;
mod mounts;
mod nbd;
mod notify;
pub mod pool;
mod process;
pub mod quantity;
mod rest;
pub mod system;
pub mod uri;

/// What `serve` is to do.
#[derive(Debug)]
pub struct ServeOptions {
    /// The configuration in force.
    pub config: Config,
    /// Where the default pool file and the socket are.
    pub data_directory: PathBuf,
    /// Whether devices that hold something else may be taken over.
    pub other_content: OtherContent,
    /// A damaged log may be cut at its last intact operation.
    pub accept_loss: bool,
    /// Whether addresses that are not loopback may be served.
    pub insecure_open: bool,
    /// Volumes that are made if they are missing.
    pub volumes: Vec<(String, ByteCount)>,
    /// A token of the cluster to join, or `@FILE` that holds one.
    pub join: Option<String>,
    /// Joining, what the pool here holds is given up.
    pub discard_local_data: bool,
    /// A pool that belongs to a cluster stands alone from now on.
    pub forget_cluster: bool,
    /// Only to take part in decisions.
    pub witness: bool,
}

/// What is served, once it is.
#[derive(Debug)]
pub struct Serving {
    /// `array.name`.
    pub name: String,
    /// The pool's devices.
    pub pool_paths: Vec<PathBuf>,
    /// Whether the pool was made just now.
    pub pool_is_new: bool,
    /// The pool's size.
    pub capacity: ByteCount,
    /// Where REST is.
    pub rest: SocketAddr,
    /// Where NBD is.
    pub nbd: Vec<NbdEndpoint>,
    /// Where the volumes are mounted as files.
    pub fuse: Option<PathBuf>,
    /// The volumes' names.
    pub volumes: Vec<String>,
    /// A volume that holds nothing yet.
    pub empty_volume: Option<String>,
    /// Whether the array takes writes; not where damage was found.
    pub takes_writes: bool,
}

/// Serves an array until the process is told to stop.
///
/// # Errors
/// `NotFound`, `Busy`, `Corrupt` or `Invalid` for a start that is refused, in the sense of the exit
/// statuses; `Device` or `Stopped` where the array could not be closed.
pub fn serve(options: ServeOptions, announce: impl FnOnce(&Serving)) -> Outcome {
    abort_on_panic();
    let environment = environment();
    let process_started = environment.clock.since_unix_epoch();
    let manager = Notifier::new(std::env::var_os(notify::VARIABLE).as_deref());
    let ServeOptions {
        config,
        data_directory,
        other_content,
        accept_loss,
        insecure_open,
        volumes,
        join,
        discard_local_data,
        forget_cluster,
        witness,
    } = options;
    check_configuration(&config, insecure_open)?;
    check_volumes(&volumes)?;
    let mut signals = Signals::new([SIGTERM, SIGINT])
        .map_err(|error| Error::caused(ErrorKind::Device, "catching signals", error))?;
    if witness {
        let cluster = cluster::options(&config, &data_directory);
        return cluster::serve_witness(&cluster, join.as_deref(), &environment, &manager, &mut signals);
    }
    if config.nbd_unix == UnixEndpoint::InDataDirectory {
        // Whoever listens there has the pool as well: that is said before anything of ports.
        nbd::check_data_directory(&data_directory)?;
    }
    let rest_listener = listen_for_rest(config.api_listen)?;
    let nbd_listener = config.nbd_listen.map(nbd::listen).transpose()?;
    let rest_address = local_address(&rest_listener)?;

    config.fuse_mountpoint.as_deref().map_or(Ok(()), mounts::check)?;
    pool::make_data_directory(&data_directory)?;
    let specs = pool::device_specs(&config, &data_directory);
    let socket = socket_path(&config, &data_directory);
    socket.as_deref().map_or(Ok(()), nbd::check_socket)?;
    let store_options = store_options(&config, accept_loss);
    let cluster_options = cluster::options(&config, &data_directory);
    let wish =
        cluster::join(join.as_deref(), &cluster_options, Some(&specs), discard_local_data, &environment)?;
    let prepared = cluster::Prepared::new(&config, wish.pool.is_some());
    let segment_bytes = wish.pool.as_ref().map_or(store_options.segment_bytes, |pool| pool.segment_bytes);
    let store_options = StoreOptions { sink: Some(prepared.ring.clone()), segment_bytes, ..store_options };
    manager.tell(State::Starting("opening the pool"));
    let other_content = if wish.anew { OtherContent::Overwrite } else { other_content };
    let OpenPool { store, report, paths } = pool::open_as(
        &specs,
        other_content,
        store_options,
        environment.clone(),
        wish.pool.as_ref().map(|pool| &pool.identity),
        wish.anew,
    )?;
    if wish.pool.is_none() {
        cluster::check_stands_alone(&store, &cluster_options, forget_cluster, &environment)?;
        // A node of a cluster does not wait: the others wait for it.
        manager.tell(State::Starting("filling the fingerprint index"));
        background::fill_index(&store, &*environment.clock);
    } else if forget_cluster {
        return Err(Failure::new(ErrorKind::Busy, "this node is in a cluster")
            .hint("started without --forget-cluster, it can be asked by `sinter cluster forget`"));
    }
    let endings = Arc::new(Endings::begin(&data_directory, &store, report.as_ref()));
    let takes_writes = accept_loss || report.as_ref().is_none_or(|report| report.damage.is_empty());
    if wish.pool.is_none() && takes_writes {
        name_history(&store, &environment)?;
        endings.opened(&store);
    }
    let array_options =
        ArrayOptions { gate: Some(prepared.gate.clone()), ..ArrayOptions::new(config.array_name.clone()) };
    let array = Array::new(store.clone(), array_options, environment.clone())?;
    if let Some(report) = &report {
        tell(report, &array);
    }
    match wish.pool {
        None => make_volumes(&array, &volumes)?,
        Some(_) if volumes.is_empty() => {}
        Some(_) => tracing::warn!(
            "--volume is left out: the volumes of a cluster are made by `sinter volume create`"
        ),
    }

    let failed = |what: &'static str| move |error| Error::caused(ErrorKind::Device, what, error);
    let ending = endings.clone();
    let background = Background::start(&store, config.scrub_rate, move || ending.failed())
        .map_err(failed("starting the background threads"))?;
    let recorder =
        Recorder::start(array.clone(), &data_directory).map_err(failed("starting the recorder"))?;
    let measuring = Measuring::start(array.clone()).map_err(failed("starting the measuring thread"))?;
    let later = cluster::Later::default();
    let passing = later.clone();
    let nbd = NbdServer::start(&config, nbd_listener, socket, &array, move || passing.pass_on())?;
    let mounts = Mounts::start(&array, environment.clock.clone(), config.fuse_mountpoint.as_deref())?;
    let addresses = cluster::Addresses { rest: rest_address, nbd: nbd.endpoints() };
    let pool = cluster::Pool { store: &store, array: &array, environment: &environment };
    let again = Again::default();
    let calls = cluster::Calls { disconnect: Arc::new(nbd.cutter()), begin_anew: Arc::new(again.teller()) };
    let cluster = cluster::start(cluster_options, &prepared, &pool, &addresses, calls)?;
    later.set(&cluster);
    let endpoints = endpoints(nbd.endpoints());
    let service = Service::new(array.clone(), endpoints, environment.clock.clone(), nbd.disconnector())
        .with_mounts(mounts.clone())
        .with_cluster(cluster.clone());
    let rest = RestServer::start(
        rest_listener,
        service,
        array.clone(),
        nbd.statistics(),
        mounts.statistics(),
        process_started,
    )
    .map_err(failed("starting REST"))?;

    manager.tell(State::Ready(&ready_status(&array)));
    let served = array.volumes();
    let empty = served.iter().find(|volume| volume.used_bytes.0 == 0);
    announce(&Serving {
        name: config.array_name,
        pool_paths: paths,
        pool_is_new: report.is_none(),
        capacity: ByteCount(store.statistics().capacity_bytes),
        rest: rest_address,
        nbd: nbd.endpoints().to_vec(),
        fuse: config.fuse_mountpoint,
        empty_volume: empty.map(|volume| volume.name.clone()),
        takes_writes: array.status().store.stopped.is_none(),
        volumes: served.into_iter().map(|volume| volume.name).collect(),
    });
    wait_for_signal(&mut signals);
    exit_at_next_signal(signals);
    cluster.stop();
    let at = (rest_address, nbd.endpoints().to_vec());
    drain(&manager, &mounts, nbd, rest);
    measuring.stop();
    recorder.stop();
    background.stop();
    if report.is_some_and(|report| !report.damage.is_empty() && !accept_loss) {
        // It took no writes, so there is nothing to close; the next start shall see what this one saw.
        return Err(Failure::new(
            ErrorKind::Corrupt,
            "served read-only, because the log of the pool is damaged",
        )
        .hint(
            "`sinter check` shows all that is damaged; `sinter serve --accept-loss` opens what is intact",
        ));
    }
    manager.tell(State::Stopping("making everything durable"));
    close(&store).inspect_err(|_| endings.failed())?;
    endings.closed(&store);
    tracing::info!("stopped: everything is durable");
    again.start_if_told(at.0, &at.1)
}

/// Sees to it that the history of an array that stands alone has a name, and another one after a loss. In a cluster
/// that is for the primary to do.
fn name_history(store: &Store, environment: &Environment) -> Outcome {
    let named = begin_history(store, store.position().0, None, &*environment.random)?;
    Ok(named.map_or(Ok(()), |lsn| store.make_durable(lsn))?)
}

/// Takes mounts away, stops accepting, and lets the requests under way be answered.
fn drain(manager: &Notifier, mounts: &Mounts, nbd: NbdServer, rest: RestServer) {
    tracing::info!("stopping: answering the requests under way");
    manager.tell(State::Stopping("answering the requests under way"));
    mounts.stop();
    nbd.stop();
    rest.stop();
}

/// What the service manager shows of a daemon that serves: what is wrong, if anything is.
fn ready_status(array: &Array) -> String {
    let status = array.status();
    match status.problems.first() {
        None => format!("serving array {}, {} volumes", status.name, status.volumes),
        Some(problem) => format!("serving array {}, but {}", status.name, problem.what),
    }
}

/// What the store is told of the configuration.
#[must_use]
pub fn store_options(config: &Config, accept_loss: bool) -> StoreOptions {
    StoreOptions {
        metadata_budget: config.memory_metadata,
        index_budget: config.memory_index,
        checkpoint_log_bytes: config.checkpoint_log_bytes,
        sync_after: config.log_sync_after,
        rated_cycles: config.rated_cycles,
        segment_bytes: config.segment_size.unwrap_or_default(),
        accept_loss,
        ..StoreOptions::default()
    }
}

/// The real world, for what may not look at it itself.
#[must_use]
pub fn environment() -> Environment {
    Environment { clock: Arc::new(SystemClock::new()), random: Arc::new(SystemRandom) }
}

/// A panic in one thread would leave locks and promises half kept: the process dies instead, and the
/// next start recovers.
fn abort_on_panic() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        print(info);
        std::process::abort();
    }));
}

/// Refuses what no start could work with, as far as that can be known without a pool.
///
/// # Errors
/// `Invalid` for addresses that others reach, unless that is wanted, and for more memory than the machine has.
pub fn check_configuration(config: &Config, insecure_open: bool) -> Outcome {
    if !insecure_open {
        refuse_open_addresses(config)?;
    }
    let budgets = [
        ("memory.metadata", config.memory_metadata),
        ("memory.index", config.memory_index),
        ("memory.requests", config.memory_requests),
        ("memory.ring", config.memory_ring),
    ];
    let has = system::memory();
    match budgets.into_iter().find(|(_, budget)| *budget > has) {
        None => Ok(()),
        Some((key, budget)) => {
            let what =
                format!("{key} is {}, and this machine has {} of memory", show_size(budget), round_size(has));
            Err(Failure::new(ErrorKind::Invalid, what).hint(format!("give {key} a part of that")))
        }
    }
}

/// The configuration with the places named that it leaves to the data directory.
#[must_use]
pub fn resolved(config: Config, data_directory: &Path) -> Config {
    let data_directory = std::path::absolute(data_directory).unwrap_or_else(|_| data_directory.to_owned());
    let nbd_unix = socket_path(&config, &data_directory).map_or(UnixEndpoint::Off, UnixEndpoint::At);
    Config { devices: pool::device_specs(&config, &data_directory), nbd_unix, ..config }
}

/// The Unix socket of NBD, if there is to be one.
fn socket_path(config: &Config, data_directory: &Path) -> Option<PathBuf> {
    match &config.nbd_unix {
        UnixEndpoint::InDataDirectory => Some(nbd::socket_in(data_directory)),
        UnixEndpoint::Off => None,
        UnixEndpoint::At(path) => Some(path.clone()),
    }
}

fn refuse_open_addresses(config: &Config) -> Outcome {
    let addresses = [("api.listen", Some(config.api_listen)), ("nbd.listen", config.nbd_listen)];
    for (key, address) in addresses {
        if let Some(address) = address.filter(|address| !address.ip().is_loopback()) {
            let what =
                format!("{key} is {address}: whoever reaches that address could read and delete everything");
            return Err(Failure::new(ErrorKind::Invalid, what)
                .hint("serve 127.0.0.1, or say --insecure-open if the network is yours alone"));
        }
    }
    Ok(())
}

fn listen_for_rest(address: SocketAddr) -> Outcome<TcpListener> {
    TcpListener::bind(address).map_err(|error| {
        let kind = match error.kind() {
            std::io::ErrorKind::AddrInUse => ErrorKind::Busy,
            _ => ErrorKind::Invalid,
        };
        Failure::from(Error::caused(kind, format!("listening on {address} for REST"), error))
            .hint("--api ADDR:PORT takes another one; port 0 takes any that is free")
    })
}

fn local_address(listener: &TcpListener) -> Outcome<SocketAddr> {
    listener
        .local_addr()
        .map_err(|error| Error::caused(ErrorKind::Device, "asking for a port's number", error).into())
}

fn endpoints(nbd: &[NbdEndpoint]) -> Endpoints {
    let find =
        |wanted: fn(&NbdEndpoint) -> bool| nbd.iter().find(|endpoint| wanted(endpoint)).map(|e| e.uri(""));
    Endpoints {
        nbd: find(|endpoint| matches!(endpoint, NbdEndpoint::Tcp(_))),
        nbd_unix: find(|endpoint| matches!(endpoint, NbdEndpoint::Unix(_))),
    }
}

/// Tells the user and the array what opening found.
fn tell(report: &OpenReport, array: &Array) {
    match report.replayed_operations {
        0 => tracing::info!("the last checkpoint holds everything: there was nothing to replay"),
        operations => {
            let bytes = round_size(ByteCount(report.log_bytes));
            tracing::info!("{operations} operations replayed from {bytes} of log since the last checkpoint");
        }
    }
    for line in &report.damage {
        tracing::error!("damage: {line}");
    }
    array.note_damage(report.damage.clone());
}

/// Refuses volumes that could not be made, while no device has been touched.
fn check_volumes(volumes: &[(String, ByteCount)]) -> Outcome {
    for (name, size) in volumes {
        rules::check_name(name)
            .and_then(|()| rules::volume_size(*size).map(drop))
            .map_err(|error| error.context(format!("--volume {name}:{}", show_size(*size))))?;
    }
    Ok(())
}

/// Makes the volumes that are missing; those that exist stay as they are.
fn make_volumes(array: &Array, volumes: &[(String, ByteCount)]) -> Outcome {
    for (name, size) in volumes {
        match array.volume(name) {
            Ok(info) if info.size_bytes.blocks() == size.blocks() => {}
            Ok(info) => {
                let (has, asked) = (show_size(info.size_bytes), show_size(*size));
                tracing::warn!("volume {name} has {has}, not {asked}; it is left as it is");
            }
            Err(error) if error.kind() == ErrorKind::NotFound => make_volume(array, name, *size)?,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// A pool that takes no writes is served all the same: what can be read of it is worth the more.
fn make_volume(array: &Array, name: &str, size: ByteCount) -> Outcome {
    let new = NewVolume { name: name.to_owned(), size, ..NewVolume::default() };
    match array.create_volume(new) {
        Ok(_) => Ok(()),
        Err(error) if matches!(error.kind(), ErrorKind::ReadOnly | ErrorKind::Stopped) => {
            tracing::warn!("volume {name} was not made: {error}");
            Ok(())
        }
        Err(error) => Err(error.context(format!("making volume {name}")).into()),
    }
}

fn wait_for_signal(signals: &mut Signals) {
    let _ = signals.forever().next();
}

fn exit_at_next_signal(mut signals: Signals) {
    let exit = move || {
        wait_for_signal(&mut signals);
        std::process::exit(i32::from(ExitStatus::Interrupted as u8));
    };
    if let Err(error) = std::thread::Builder::new().name("signals".to_owned()).spawn(exit) {
        tracing::warn!("a second signal will not be heard: {error}");
    }
}

fn close(store: &Store) -> Outcome {
    store.checkpoint().map_err(|error| {
        Failure::from(error.context("closing the pool"))
            .hint("nothing that was acknowledged is lost; the next start recovers the pool")
    })
}
