//! What the thread that started everything waits for.

use std::time::Duration;

use crate::daemon::failure::Failure;
use crate::sync::Condition;
use crate::sync::Mutex;

/// Something has happened.
#[derive(Debug)]
pub(super) enum Event {
    /// The array was reached for the first time.
    Attached,
    /// There is no use in going on.
    Ended(Failure),
    /// The process is to stop.
    Told,
}

/// What has happened and was not asked for yet.
#[derive(Default)]
pub(super) struct Events {
    state: Mutex<State>,
    changed: Condition,
}

#[derive(Default)]
struct State {
    attached: bool,
    /// It was told to whoever waits.
    announced: bool,
    ended: Option<Failure>,
    told: bool,
    drained: bool,
}

impl Events {
    pub(super) fn attached(&self) {
        self.change(|state| state.attached = true);
    }

    pub(super) fn ended(&self, failure: Failure) {
        self.change(|state| state.ended = Some(failure));
    }

    pub(super) fn told(&self) {
        self.change(|state| state.told = true);
    }

    pub(super) fn drained(&self) {
        self.change(|state| state.drained = true);
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock());
        self.changed.notify_all();
    }

    /// Waits for the next event.
    pub(super) fn next(&self) -> Event {
        let mut state = self.state.lock();
        loop {
            if state.told {
                return Event::Told;
            }
            if let Some(failure) = state.ended.take() {
                return Event::Ended(failure);
            }
            if state.attached && !state.announced {
                state.announced = true;
                return Event::Attached;
            }
            state = self.changed.wait(state);
        }
    }

    /// Waits until clients have their answers, for `limit` at most; whether they have.
    pub(super) fn wait_drained(&self, limit: Duration) -> bool {
        let mut left = limit;
        let step = Duration::from_millis(100);
        let mut state = self.state.lock();
        while !state.drained && !left.is_zero() {
            state = self.changed.wait_for(state, step.min(left));
            left = left.saturating_sub(step);
        }
        state.drained
    }
}
