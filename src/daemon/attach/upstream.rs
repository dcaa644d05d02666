//! The connection to the array: made again and again, at whichever address answers.

use std::fmt;
use std::net::ToSocketAddrs as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::events::Events;
use super::hub::Export;
use super::hub::Hub;
use super::secure;
use super::secure::Machine;
use crate::daemon::failure::Failure;
use crate::error::Error;
use crate::error::ErrorKind;
use crate::error::Result;
use crate::export::nbd::client::Client;
use crate::export::nbd::dial::Address;
use crate::export::nbd::dial::Patience;
use crate::export::nbd::line::LineReceiver;
use crate::export::nbd::wire::options::SessionId;
use crate::sync::Clock;

/// Between two rounds through all addresses: at first, and at most.
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// A connection that has lasted so long counts as a good one, even if nothing was asked on it.
const LASTED: Duration = Duration::from_secs(1);

/// How long one address may take to answer, and each step of its handshake.
const HANDSHAKE: Patience = Patience {
    connect: Some(Duration::from_secs(1)),
    progress: Some(Duration::from_secs(2)),
    silence: Some(Duration::from_secs(3)),
};

/// An answer that has begun must go on within this time.
const ANSWER_PROGRESS: Duration = Duration::from_secs(10);

/// How often it is looked whether anything comes.
const LOOK: Duration = Duration::from_millis(250);

/// A connection on which requests wait and nothing comes for so long is given up; twice as long the next time, up to
/// the greatest, because an array may be that slow. Any answer makes it the least again.
const SILENT_MIN: Duration = Duration::from_secs(10);
/// The least where there are other addresses: a primary that is paused or cut off has a successor soon.
const SILENT_MIN_OF_SEVERAL: Duration = Duration::from_secs(2);
const SILENT_MAX: Duration = Duration::from_secs(120);

/// Where an array may be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ArrayAddress {
    /// A host by name or number, and a port. A name is looked up at each attempt.
    Tcp(String),
    /// A Unix socket.
    Unix(PathBuf),
    /// The cluster's port of a node.
    Cluster(String),
}

impl fmt::Display for ArrayAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ArrayAddress::Tcp(address) => f.write_str(address),
            ArrayAddress::Cluster(address) => write!(f, "cluster:{address}"),
            ArrayAddress::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl ArrayAddress {
    /// Where a node answers clients with certificates, if this is that.
    pub(super) fn cluster_port(&self) -> Option<String> {
        match self {
            ArrayAddress::Cluster(address) => Some(address.clone()),
            ArrayAddress::Tcp(_) | ArrayAddress::Unix(_) => None,
        }
    }

    fn resolve(&self) -> Result<Vec<Address>> {
        let address = match self {
            ArrayAddress::Unix(path) => return Ok(vec![Address::Unix(path.clone())]),
            ArrayAddress::Tcp(address) | ArrayAddress::Cluster(address) => address,
        };
        let found = address.to_socket_addrs().map_err(|error| {
            Error::caused(ErrorKind::Unreachable, format!("cannot find {address}"), error)
        })?;
        Ok(found.map(Address::Tcp).collect())
    }
}

/// What the connection is made to, and by whom.
pub(super) struct Upstream {
    pub(super) addresses: Vec<ArrayAddress>,
    /// Who this machine is at the cluster's port, where one of them is that.
    pub(super) machine: Option<Arc<Machine>>,
    pub(super) volume: String,
    pub(super) session: SessionId,
    pub(super) give_up_after: Option<Duration>,
    pub(super) hub: Arc<Hub>,
    pub(super) events: Arc<Events>,
    pub(super) clock: Arc<dyn Clock>,
}

impl Upstream {
    /// Keeps a connection until the hub is closed, or there is no use in going on.
    pub(super) fn run(&self) {
        let failure = self.keep();
        self.hub.close(&failure.error.to_string());
        self.events.ended(failure);
    }

    fn keep(&self) -> Failure {
        let mut turn = 0;
        let mut pause = PAUSE_MIN;
        let mut silent_max = self.silent_min();
        let mut attached = false;
        let mut away_since = self.clock.monotonic();
        let mut told = None;
        while !self.hub.is_closed() {
            let address = &self.addresses[turn % self.addresses.len()];
            turn += 1;
            let error = match self.connect(address) {
                Ok(receiver) => {
                    let began = self.clock.monotonic();
                    if attached {
                        let away = began.saturating_sub(away_since);
                        tracing::info!("attached again at {address} after {:.3} s", away.as_secs_f64());
                    }
                    attached = true;
                    self.events.attached();
                    let served = self.receive(receiver, &mut silent_max);
                    self.hub.disconnected();
                    let now = self.clock.monotonic();
                    if served.answers > 0 || now.saturating_sub(began) > LASTED {
                        (pause, away_since, told) = (PAUSE_MIN, now, None);
                    }
                    served.end
                }
                Err(error) => {
                    let final_kinds = [ErrorKind::NotFound, ErrorKind::Unsupported, ErrorKind::Invalid];
                    if error.kind() == ErrorKind::NotFound || !attached && final_kinds.contains(&error.kind())
                    {
                        return Failure::from(error.context(format!("attaching to {address}")));
                    }
                    error
                }
            };
            if self.hub.is_closed() {
                break;
            }
            let text = error.to_string();
            let away = self.clock.monotonic().saturating_sub(away_since);
            if self.give_up_after.is_some_and(|limit| away >= limit) {
                let what = format!("the array was not reached for {} s: {text}", away.as_secs());
                return Failure::new(ErrorKind::Unreachable, what);
            }
            if told.as_ref() != Some(&text) && !text.is_empty() {
                tracing::warn!("{address}: {text}; trying on");
                told = Some(text);
            }
            if turn.is_multiple_of(self.addresses.len()) {
                self.hub.pause(pause);
                pause = PAUSE_MAX.min(pause * 2);
            }
        }
        Failure::new(ErrorKind::Unreachable, "attach has ended")
    }

    fn silent_min(&self) -> Duration {
        if self.addresses.len() > 1 { SILENT_MIN_OF_SEVERAL } else { SILENT_MIN }
    }

    fn connect(&self, address: &ArrayAddress) -> Result<LineReceiver> {
        let mut last = Error::new(ErrorKind::Unreachable, format!("{address} has no address"));
        if let (ArrayAddress::Cluster(address), Some(machine)) = (address, &self.machine) {
            let stream = secure::connect(address, &machine.now())?;
            HANDSHAKE.limit(&stream)?;
            return self.take(Client::over(stream, &self.volume, 1, Some(self.session))?);
        }
        for candidate in address.resolve()? {
            match Client::connect_within(&candidate, &self.volume, 1, &HANDSHAKE, Some(self.session)) {
                Ok(client) => return self.take(client),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn take(&self, client: Client) -> Result<LineReceiver> {
        let (size, read_only, payload_max) = (client.size(), client.read_only(), client.payload_max());
        let terms = client.terms();
        let line = client.into_line(ANSWER_PROGRESS)?;
        let has_status = line.has_status();
        self.hub.connected(line, Export { size, read_only, payload_max, has_status, terms })
    }

    /// Passes answers on until the connection is lost.
    fn receive(&self, mut receiver: LineReceiver, silent_max: &mut Duration) -> Served {
        let mut answers = 0;
        let mut heard = self.clock.monotonic();
        loop {
            let received = match receiver.wait(LOOK) {
                Ok(true) => receiver.receive(),
                Ok(false) => Ok(None),
                Err(error) => Err(error),
            };
            match received {
                Err(error) => return Served { answers, end: error },
                Ok(Some(answer)) => {
                    if !self.hub.answer(answer) {
                        let end = Error::new(ErrorKind::Unreachable, "the volume is not served there now");
                        return Served { answers, end };
                    }
                    answers += 1;
                    heard = self.clock.monotonic();
                    *silent_max = self.silent_min();
                }
                Ok(None) if self.hub.under_way() == 0 => heard = self.clock.monotonic(),
                Ok(None) => {
                    let silent = self.clock.monotonic().saturating_sub(heard);
                    if silent > *silent_max {
                        *silent_max = SILENT_MAX.min(*silent_max * 2);
                        let what = format!("no answer for {} s", silent.as_secs());
                        return Served { answers, end: Error::new(ErrorKind::Unreachable, what) };
                    }
                }
            }
        }
    }
}

/// How a connection went.
struct Served {
    answers: u64,
    end: Error,
}
