//! `sinter attach`: a volume of an array as a local NBD server that outlives connections, daemons and primaries.
//!
//! The requests of local clients are kept in a *session* (`replica::session`) until the array has answered them, and
//! changes until they are durable; one connection to the array serves all local ones. Three kinds of threads: those of
//! the local NBD server, which hand requests in and wait; one that sends; one that keeps the connection and takes the
//! answers. The *hub* is the lock between them.

mod events;
mod hub;
mod secure;
mod service;
mod upstream;

use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::Builder;
use std::thread::JoinHandle;
use std::time::Duration;

use signal_hook::consts::SIGINT;
use signal_hook::consts::SIGTERM;
use signal_hook::iterator::Signals;

use self::events::Event;
use self::events::Events;
use self::hub::Hub;
use self::secure::Machine;
use self::service::Attached;
use self::upstream::Upstream;
use crate::daemon::abort_on_panic;
use crate::daemon::environment;
use crate::daemon::failure::ExitStatus;
use crate::daemon::failure::Failure;
use crate::daemon::failure::Outcome;
use crate::daemon::notify;
use crate::daemon::notify::Notifier;
use crate::daemon::notify::State;
use crate::daemon::uri::NbdEndpoint;
use crate::error::Error;
use crate::error::ErrorKind;
use crate::export::nbd::Listener;
use crate::export::nbd::Server;
use crate::export::nbd::ServerOptions;
use crate::export::nbd::check_socket_path;
use crate::export::nbd::wire::options::SessionId;
use crate::sync::Clock;
use crate::units::ByteCount;

pub use self::upstream::ArrayAddress;

/// Threads that may wait for the array at once: as many reads are under way.
const WORKERS: usize = 64;

/// How long requests under way may take when attach is told to stop; then they fail.
const DRAIN_MAX: Duration = Duration::from_secs(10);

/// Beyond that, what it takes to tell the clients.
const LEAVE_MAX: Duration = Duration::from_secs(8);

/// How often it is looked whether the certificate is to be renewed.
const RENEWAL_LOOK: Duration = Duration::from_secs(60 * 60);
/// After an attempt that failed.
const RENEWAL_PAUSE: Duration = Duration::from_secs(60);

/// What `attach` is to do.
#[derive(Debug)]
pub struct AttachOptions {
    /// Where the array may be reached (at least one).
    pub addresses: Vec<ArrayAddress>,
    /// The volume, or `VOLUME@SNAPSHOT`.
    pub volume: String,
    /// The socket that is served.
    pub socket: PathBuf,
    /// Others write to the volume, too.
    pub shared: bool,
    /// Where the certificate of this machine is, if not at the default place.
    pub identity: Option<PathBuf>,
    /// A token, or `@FILE` that holds one: for a certificate, where there is none yet.
    pub token: Option<String>,
    /// How long the array may be away; for ever, where there is no limit.
    pub give_up_after: Option<Duration>,
}

/// What is served, once it is.
#[derive(Debug)]
pub struct AttachedTo {
    /// Its name.
    pub volume: String,
    /// Its size.
    pub size: ByteCount,
    /// Where it is.
    pub endpoint: NbdEndpoint,
}

/// Serves a volume of an array at a local socket until the process is told to stop.
///
/// # Errors
/// `Busy` or `Exists` where the socket's path is taken, `Invalid` where it cannot be had; `NotFound` where the array does
/// not have the volume (any more); `Unreachable` where it was away for too long; `Unsupported` where something else
/// answers.
pub fn attach(options: AttachOptions, announce: impl FnOnce(&AttachedTo)) -> Outcome {
    abort_on_panic();
    let environment = environment();
    let manager = Notifier::new(std::env::var_os(notify::VARIABLE).as_deref());
    let signals = Signals::new([SIGTERM, SIGINT])
        .map_err(|error| Error::caused(ErrorKind::Device, "catching signals", error))?;
    check_socket(&options.socket)?;
    let ports: Vec<String> = options.addresses.iter().filter_map(ArrayAddress::cluster_port).collect();
    let machine = match ports.is_empty() {
        true => None,
        false => Some(Arc::new(Machine::load(options.identity, options.token.as_deref(), &environment)?)),
    };
    let mut session = [0; 16];
    environment.random.fill(&mut session);
    let hub = Arc::new(Hub::new(options.shared));
    let events = Arc::new(Events::default());
    hear(signals, &events)?;
    let upstream = Upstream {
        addresses: options.addresses,
        machine: machine.clone(),
        volume: options.volume.clone(),
        session: SessionId::from_random(session),
        give_up_after: options.give_up_after,
        hub: Arc::clone(&hub),
        events: Arc::clone(&events),
        clock: Arc::clone(&environment.clock),
    };
    manager.tell(State::Starting("waiting for the array"));
    let sending = Arc::clone(&hub);
    let mut threads = vec![
        start("attach-send", move || sending.send_all())?,
        start("attach-line", move || upstream.run())?,
    ];
    if let Some(machine) = machine {
        let (hub, clock) = (Arc::clone(&hub), environment.clock);
        let keep = move || keep_certificate(&machine, &ports, &hub, &*clock);
        threads.push(start("attach-certificate", keep)?);
    }
    let outcome = match events.next() {
        Event::Attached => {
            let attached = Attached { name: options.volume.clone(), hub: Arc::clone(&hub) };
            listen(&options.socket, attached).and_then(|server| {
                let path = std::path::absolute(&options.socket).unwrap_or(options.socket);
                let size = hub.export().size;
                manager.tell(State::Ready("attached"));
                announce(&AttachedTo { volume: options.volume, size, endpoint: NbdEndpoint::Unix(path) });
                let event = events.next();
                manager.tell(State::Stopping("answering what is under way"));
                stop(server, &hub, &events)?;
                match event {
                    Event::Ended(failure) => Err(failure),
                    Event::Told | Event::Attached => Ok(()),
                }
            })
        }
        Event::Ended(failure) => Err(failure),
        Event::Told => Ok(()),
    };
    hub.close("attach has ended");
    for thread in threads {
        // A panic has already ended the process.
        let _ = thread.join();
    }
    outcome
}

/// Has the certificate renewed when it is time, until the hub is closed.
fn keep_certificate(machine: &Machine, ports: &[String], hub: &Hub, clock: &dyn Clock) {
    while !hub.is_closed() {
        let renewed = machine.renew_if_due(ports, clock.since_unix_epoch());
        if let Err(error) = &renewed {
            tracing::warn!("the certificate of this machine was not renewed, and is to be: {error}");
        }
        hub.pause(if renewed.is_ok() { RENEWAL_LOOK } else { RENEWAL_PAUSE });
    }
}

fn listen(socket: &Path, attached: Attached) -> Outcome<Server> {
    let listener = Listener::unix(socket)?;
    let options = ServerOptions { workers: WORKERS, ..ServerOptions::default() };
    Ok(Server::start(Arc::new(attached), vec![listener], options)?)
}

/// Answers what is under way; what the array does not answer in time, fails.
fn stop(server: Server, hub: &Arc<Hub>, events: &Arc<Events>) -> Outcome {
    let (closing, waiting) = (Arc::clone(hub), Arc::clone(events));
    let limit = start("attach-limit", move || {
        if !waiting.wait_drained(DRAIN_MAX) {
            let left = closing.unanswered();
            closing.close("attach is stopping, and the array has not answered");
            tracing::warn!("{left} requests were not answered in time, and have failed");
        }
    })?;
    let drained = server.stop(DRAIN_MAX + LEAVE_MAX);
    events.drained();
    let _ = limit.join();
    if drained {
        Ok(())
    } else {
        Err(Failure::new(ErrorKind::Busy, "some requests did not finish in time and were cut off"))
    }
}

fn check_socket(path: &Path) -> Outcome {
    check_socket_path(path).map(drop).map_err(|error| match error.kind() {
        ErrorKind::Busy => Failure::from(error).hint("--unix PATH puts the socket elsewhere"),
        _ => error.into(),
    })
}

/// The first signal is an event, the second one ends the process at once.
fn hear(mut signals: Signals, events: &Arc<Events>) -> Outcome {
    let events = Arc::clone(events);
    start("signals", move || {
        let mut signals = signals.forever();
        let _ = signals.next();
        events.told();
        let _ = signals.next();
        std::process::exit(i32::from(ExitStatus::Interrupted as u8));
    })
    .map(drop)
}

fn start(name: &str, run: impl FnOnce() + Send + 'static) -> Outcome<JoinHandle<()>> {
    let thread = Builder::new().name(name.to_owned()).spawn(run);
    Ok(thread
        .map_err(|error| Error::caused(ErrorKind::Busy, format!("starting the thread {name}"), error))?)
}
