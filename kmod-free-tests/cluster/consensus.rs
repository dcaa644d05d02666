//! A consensus group as the nodes see it: an order of decisions, of which nobody need be told in time.

use sinter::replica::decisions::{Change, Command, Member, Record};
use sinter::units::Epoch;

pub(crate) struct Consensus {
    /// The newest record, and all that was decided.
    pub(crate) record: Record,
    pub(crate) decided: Vec<Record>,
    from_nobody: Vec<Epoch>,
}

impl Consensus {
    pub(crate) fn new(record: Record) -> Consensus {
        Consensus { record, decided: Vec::new(), from_nobody: Vec::new() }
    }

    /// Applies a command; whether it changed anything.
    pub(crate) fn decide(&mut self, command: &Command, no_precondition: bool) -> bool {
        let changed =
            if no_precondition { self.record.change(&command.change) } else { self.record.decide(command) };
        if changed {
            if matches!(command.change, Change::Start { .. }) {
                self.from_nobody.push(self.record.epoch);
            }
            self.decided.push(self.record.clone());
        }
        changed
    }

    /// An operator makes a node the primary, whatever it holds, unless another epoch has begun; whether it is.
    pub(crate) fn force(&mut self, member: Member, from: Epoch) -> bool {
        let forced = self.record.epoch == from && self.record.force(member);
        if forced {
            self.decided.push(self.record.clone());
        }
        forced
    }

    /// Whether an epoch was begun when no member had lived on.
    pub(crate) fn began_from_nobody(&self, epoch: Epoch) -> bool {
        self.from_nobody.contains(&epoch)
    }
}
