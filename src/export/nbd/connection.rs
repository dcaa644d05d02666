//! One client's connection after its handshake: the thread that owns it, and what workers need.

use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::budget::RequestBudget;
use super::clock::now;
use super::execute::{DurableQueue, Work};
use super::handshake::Negotiated;
use super::outgoing::{Outgoing, Pace};
use super::receiver::{Receiver, Role, Round};
use super::server::ServerOptions;
use super::socket::{Bell, Received, Socket};
use super::statistics::NbdStatistics;
use super::watch::Watch;
use super::workers::WorkQueue;
use crate::sync::{Condition, Mutex};

/// Requests of one connection that may be under way at once; more are left in the socket.
pub(super) const IN_FLIGHT_MAX: usize = 512;

/// A thread that has received nothing for so long waits for the server's end as well.
pub(super) const RECEIVE_PATIENCE: Duration = Duration::from_millis(200);
/// How long it waits then, so that time limits are looked at.
const IDLE_MAX: Duration = Duration::from_secs(30);

/// A client that has sent nothing for so long, and has all its answers, is let go by a server that stops.
const ENDING_QUIET: Duration = Duration::from_millis(50);
/// How long such a server executes what a client goes on sending. What comes later is refused, until nothing is
/// waiting for a moment.
const ENDING_EXECUTES: Duration = Duration::from_secs(2);
/// How long it receives anything at all.
const ENDING_MAX: Duration = Duration::from_secs(5);
/// Waits in a row, of `ENDING_QUIET` each, for the rest of a request that has come in part.
const ENDING_STALLS_MAX: u32 = 20;
/// Once all is answered: how long a client may be silent, or speak, before its connection is closed. Closed at once,
/// a connection on which more arrives would take back answers that the client has not read yet.
const LEAVE_QUIET: Duration = Duration::from_millis(100);
const LEAVE_MAX: Duration = Duration::from_secs(1);

/// What all connections of a server share.
pub(super) struct Shared {
    pub(super) options: ServerOptions,
    pub(super) budget: Arc<RequestBudget>,
    pub(super) queue: Arc<WorkQueue>,
    pub(super) watch: Arc<Watch>,
    /// Rung when the server stops.
    pub(super) end: Bell,
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
    /// Requests that come now are too late.
    refuses: AtomicBool,
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
            refuses: AtomicBool::new(false),
        })
    }

    /// Serves the client until it leaves, breaks the protocol, or the server stops; then sees to it that
    /// everything that has been received is answered. Runs on the connection's own thread.
    pub(super) fn serve(self: &Arc<Self>) {
        let mut receiver = self.receiver.take();
        let mut ending = None;
        loop {
            let stopping = self.stopping();
            if stopping && self.is_over(ending.get_or_insert_with(|| self.begin_ending())) {
                break;
            }
            match self.round(&mut receiver, Role::Owner) {
                Round::Dry => match &mut ending {
                    Some(ending) => self.found_nothing(ending, receiver.is_empty()),
                    None => self.socket.wait_readable(&self.shared.end, IDLE_MAX),
                },
                Round::Closed => break,
                round => {
                    if let Some(ending) = &mut ending {
                        ending.found_something();
                    }
                    if let Round::Alone(work) = round {
                        self.receiver.give_back(receiver);
                        self.execute_as_owner(work);
                        receiver = self.receiver.take();
                    }
                }
            }
        }
        // The receiver is not given back: a deputy that comes late finds nothing to do.
        self.answer_all();
        if self.stopping() {
            self.take_leave();
        }
        self.socket.shutdown(Shutdown::Both);
    }

    fn begin_ending(&self) -> Ending {
        // Where it cannot be set, the end takes a little longer.
        let _ = self.socket.set_receive_limit(ENDING_QUIET);
        Ending { begun: now(), stalls: 0, is_quiet: false, is_answered: false }
    }

    /// Whether nothing more is to be received of a client whom the server lets go.
    fn is_over(&self, ending: &Ending) -> bool {
        let elapsed = now() - ending.begun;
        if elapsed > ENDING_EXECUTES {
            self.refuses.store(true, Ordering::Relaxed);
        }
        ending.is_answered || ending.stalls > ENDING_STALLS_MAX || elapsed > ENDING_MAX
    }

    /// Nothing more has come, or (`is_whole` is false) the rest of a request has not.
    fn found_nothing(&self, ending: &mut Ending, is_whole: bool) {
        if !is_whole {
            ending.stalls += 1;
        } else if ending.is_quiet {
            ending.is_answered = true;
        } else {
            // What the client sends once it has the answers is looked for once more.
            self.answer_all();
            ending.is_quiet = true;
        }
    }

    /// Waits until everything that was received is answered.
    fn answer_all(&self) {
        self.flight.wait_for_none();
        self.outgoing.wait_until_sent();
    }

    /// Tells the client that nothing more will come, and lets it read its answers.
    fn take_leave(&self) {
        self.socket.shutdown(Shutdown::Write);
        if self.socket.set_receive_limit(LEAVE_QUIET).is_err() {
            return;
        }
        let deadline = now() + LEAVE_MAX;
        let mut unheard = vec![0; 64 << 10];
        while matches!(self.socket.receive(&mut unheard, true), Received::Bytes(_)) && now() < deadline {}
    }

    /// Whether requests that come now are refused, because the server stops.
    pub(super) fn refuses(&self) -> bool {
        self.refuses.load(Ordering::Relaxed)
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

/// How far the end of a connection has come that the server wants to end.
struct Ending {
    begun: Instant,
    /// Waits in a row in which no byte of a request came that has come in part.
    stalls: u32,
    /// All that had come was answered when it was last looked.
    is_quiet: bool,
    /// Nothing has come since.
    is_answered: bool,
}

impl Ending {
    fn found_something(&mut self) {
        (self.stalls, self.is_quiet) = (0, false);
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
