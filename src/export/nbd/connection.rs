//! One client's connection after its handshake: the thread that owns it, and what workers need.

use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::budget::RequestBudget;
use super::execute::{DurableQueue, Work};
use super::handshake::Negotiated;
use super::outgoing::{Outgoing, Pace};
use super::receiver::{Receiver, Role, Round};
use super::server::ServerOptions;
use super::socket::Socket;
use super::statistics::NbdStatistics;
use super::watch::Watch;
use super::workers::WorkQueue;
use crate::sync::{Condition, Mutex};

/// Requests of one connection that may be under way at once; more are left in the socket.
pub(super) const IN_FLIGHT_MAX: usize = 512;

/// What all connections of a server share.
pub(super) struct Shared {
    pub(super) options: ServerOptions,
    pub(super) budget: Arc<RequestBudget>,
    pub(super) queue: Arc<WorkQueue>,
    pub(super) watch: Arc<Watch>,
    pub(super) statistics: Arc<NbdStatistics>,
}

/// A connection in its transmission phase.
pub(super) struct Connection {
    pub(super) id: u64,
    pub(super) socket: Arc<Socket>,
    pub(super) export: Negotiated,
    pub(super) shared: Arc<Shared>,
    pub(super) outgoing: Outgoing,
    pub(super) flight: Arc<Flight>,
    pub(super) durable: Mutex<DurableQueue>,
    receiver: ReceiverSlot,
    /// The owner is executing something slow, and wants a deputy for what arrives.
    owner_away: AtomicBool,
    stopping: Arc<AtomicBool>,
}

impl Connection {
    pub(super) fn new(
        id: u64,
        socket: Arc<Socket>,
        export: Negotiated,
        shared: Arc<Shared>,
        stopping: Arc<AtomicBool>,
        received: &[u8],
    ) -> Arc<Connection> {
        let receiver = Receiver::new(received);
        Arc::new(Connection {
            id,
            socket,
            export,
            shared,
            outgoing: Outgoing::default(),
            flight: Arc::default(),
            durable: Mutex::default(),
            receiver: ReceiverSlot { slot: Mutex::new(Some(receiver)), returned: Condition::new() },
            owner_away: AtomicBool::new(false),
            stopping,
        })
    }

    /// Serves the client until it leaves, breaks the protocol, or the server stops; then waits for
    /// the requests in flight. Runs on the connection's own thread.
    pub(super) fn serve(self: &Arc<Self>) {
        let mut receiver = self.receiver.take();
        loop {
            match self.round(&mut receiver, Role::Owner) {
                Round::Served | Round::Dry | Round::Full => {}
                Round::Alone(work) => {
                    self.receiver.give_back(receiver);
                    self.execute_as_owner(work);
                    receiver = self.receiver.take();
                }
                Round::Closed => break,
            }
        }
        // The receiver is not given back: a deputy that comes late finds nothing to do.
        self.flight.wait_for_none();
        self.socket.shutdown(Shutdown::Both);
    }

    /// Executes the only request there is, while the watch looks out for more.
    fn execute_as_owner(self: &Arc<Self>, work: Work) {
        self.owner_away.store(true, Ordering::SeqCst);
        self.shared.watch.arm(self);
        let reply = self.execute(work);
        self.owner_away.store(false, Ordering::SeqCst);
        self.shared.watch.disarm(self);
        if let Some(reply) = reply {
            self.send(reply, Pace::Owner);
        }
    }

    /// Executes work on one of the workers.
    pub(super) fn work(self: &Arc<Self>, work: Work) {
        if matches!(work, Work::Deputy) {
            self.deputise();
        } else if let Some(reply) = self.execute(work) {
            self.send(reply, Pace::Worker);
        }
    }

    /// Receives what has arrived while the owner is away, without ever waiting.
    fn deputise(self: &Arc<Self>) {
        let Some(mut receiver) = self.receiver.try_take() else { return };
        let mut round = Round::Served;
        while matches!(round, Round::Served) && self.owner_away.load(Ordering::SeqCst) {
            round = self.round(&mut receiver, Role::Deputy);
        }
        self.receiver.give_back(receiver);
        // In this order: a deputy sent before the receiver is back would find nothing to do. Where
        // the round ended because something is full, the owner will wait for it when it is back.
        if matches!(round, Round::Dry) && self.owner_away.load(Ordering::SeqCst) {
            self.shared.watch.arm(self);
        }
    }

    /// Whether the server wants the connection to end after the requests that it has received.
    pub(super) fn stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }
}

/// Holds the receiver while nobody receives. Receiving is a role, too: whoever has the receiver
/// has it.
struct ReceiverSlot {
    slot: Mutex<Option<Receiver>>,
    returned: Condition,
}

impl ReceiverSlot {
    fn take(&self) -> Receiver {
        let mut slot = self.slot.lock();
        loop {
            if let Some(receiver) = slot.take() {
                return receiver;
            }
            slot = self.returned.wait(slot);
        }
    }

    fn try_take(&self) -> Option<Receiver> {
        self.slot.lock().take()
    }

    fn give_back(&self, receiver: Receiver) {
        *self.slot.lock() = Some(receiver);
        self.returned.notify_one();
    }
}

/// Counts the requests of a connection that others than the receiver are busy with.
#[derive(Default)]
pub(super) struct Flight {
    state: Mutex<FlightState>,
    landed: Condition,
}

#[derive(Default)]
struct FlightState {
    requests: usize,
    /// Threads that wait for requests to be answered.
    waiting: usize,
}

impl Flight {
    /// Counts one more request.
    pub(super) fn start(self: &Arc<Self>) -> InFlight {
        self.state.lock().requests += 1;
        InFlight { flight: Arc::clone(self), requests: 1 }
    }

    pub(super) fn requests(&self) -> usize {
        self.state.lock().requests
    }

    /// Waits until fewer than `IN_FLIGHT_MAX` are under way.
    pub(super) fn wait_for_room(&self) {
        self.wait_below(IN_FLIGHT_MAX);
    }

    fn wait_for_none(&self) {
        self.wait_below(1);
    }

    fn wait_below(&self, limit: usize) {
        let mut state = self.state.lock();
        while state.requests >= limit {
            state.waiting += 1;
            state = self.landed.wait(state);
            state.waiting -= 1;
        }
    }
}

/// Requests in flight; no longer so when dropped.
pub(super) struct InFlight {
    flight: Arc<Flight>,
    requests: usize,
}

impl InFlight {
    /// Makes one of two.
    pub(super) fn and(mut self, mut other: InFlight) -> InFlight {
        self.requests += std::mem::take(&mut other.requests);
        self
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if self.requests == 0 {
            return;
        }
        let mut state = self.flight.state.lock();
        state.requests -= self.requests;
        if state.waiting > 0 {
            self.flight.landed.notify_all();
        }
    }
}
