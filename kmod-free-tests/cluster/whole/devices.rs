//! Devices that fail: a write or a sync does, and the store takes no writes any more until its process is started anew.

use sinter::device::faulty::Fault;
use sinter::replica::role::Input;

use super::world::{Event, MILLISECOND, World};

impl World {
    /// One of the next writes or syncs of a node fails.
    pub(super) fn fail_device(&mut self, node: usize) {
        if self.nodes[node].life.is_none() {
            return;
        }
        let (fault, within) =
            if self.numbers.chance(2, 3) { (Fault::FailSync, 4) } else { (Fault::FailWrite, 40) };
        let after = self.numbers.below(within);
        self.nodes[node].plan.inject(fault, after);
    }

    pub(super) fn has_stopped(&self, node: usize) -> bool {
        self.nodes[node].life.as_ref().is_some_and(|life| life.store.has_stopped())
    }

    /// What a node does at each tick once its store has stopped; whether it has.
    pub(super) fn go_on_without_device(&mut self, node: usize) -> bool {
        if !self.has_stopped(node) {
            return false;
        }
        let life = self.nodes[node].life.as_mut().unwrap();
        let number = life.number;
        if !std::mem::replace(&mut life.device_failed, true) {
            self.oracle.seen.devices_failed += 1;
            // Somebody notices, and starts its process anew.
            let longest = if self.calm { 200 } else { 3000 };
            let delay = self.numbers.below(longest * MILLISECOND);
            self.after(delay, Event::Restart { node, life: number });
        }
        let life = self.nodes[node].life.as_ref().unwrap();
        let takes = life.role.serves().is_some() && life.role.takes_requests();
        let mut others = life.role.record().set.keys().filter(|other| super::world::index(**other) != node);
        let target = others.next().copied().filter(|_| takes);
        let follows = life.following.as_ref().map(|following| following.link);
        if let Some(target) = target {
            self.tell(node, Input::HandOver(target));
        }
        if let Some(link) = follows {
            self.refuse(node, link);
        }
        true
    }

    pub(super) fn restart(&mut self, node: usize) {
        let power = !self.calm && self.numbers.chance(1, 5);
        self.die(node, power);
    }
}
