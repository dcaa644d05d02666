//! The state of the group as the rest of the node sees it, and whom to tell of changes.

use std::sync::Arc;

use super::state::ClusterState;
use crate::sync::Mutex;

type Subscriber = Arc<dyn Fn() + Send + Sync>;

pub(super) struct Published {
    state: Mutex<Arc<ClusterState>>,
    subscribers: Mutex<Vec<Subscriber>>,
}

impl Published {
    pub(super) fn of(state: ClusterState) -> Published {
        Published { state: Mutex::new(Arc::new(state)), subscribers: Mutex::new(Vec::new()) }
    }

    pub(super) fn state(&self) -> Arc<ClusterState> {
        Arc::clone(&self.state.lock())
    }

    pub(super) fn subscribe(&self, changed: Box<dyn Fn() + Send + Sync>) {
        self.subscribers.lock().push(Arc::from(changed));
    }

    /// Tells the subscribers, if it is another state.
    pub(super) fn show(&self, state: ClusterState) {
        {
            let mut shown = self.state.lock();
            if **shown == state {
                return;
            }
            *shown = Arc::new(state);
        }
        // Not under the lock: a subscriber looks at the state.
        let subscribers = self.subscribers.lock().clone();
        for changed in subscribers {
            changed();
        }
    }
}
