//! What the world is made of: nodes, what they tell each other, and what happens.

use std::collections::BTreeMap;

use sinter::replica::decisions::{Command, Member, Position, Record};
use sinter::replica::role::{Message, Role};
use sinter::units::{Epoch, Lsn};

use crate::oracle::{Log, Operation};

/// Microseconds.
pub(crate) type Time = u64;

#[derive(Clone, Debug)]
pub(crate) enum Net {
    Role(Message),
    Ship {
        epoch: Epoch,
        after: Position,
        operations: Vec<Operation>,
    },
    Whole {
        epoch: Epoch,
        log: Log,
    },
    Applied {
        by: Member,
        epoch: Epoch,
        applied: Lsn,
        durable: Lsn,
    },
    /// What was shipped does not go on from where this node is.
    Elsewhere {
        epoch: Epoch,
        at: Position,
    },
}

#[derive(Debug)]
pub(crate) enum Event {
    Tick {
        node: usize,
        life: u64,
    },
    Deliver {
        from: usize,
        to: usize,
        net: Net,
    },
    Commit {
        from: usize,
        command: Command,
    },
    Learn {
        node: usize,
    },
    /// A node dies right after a decision.
    Fall {
        node: usize,
    },
    Client,
    Fault,
    Start {
        node: usize,
    },
    Answer {
        node: usize,
        life: u64,
        read: Read,
    },
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Read {
    pub(crate) epoch: Epoch,
    pub(crate) key: usize,
    pub(crate) lsn: usize,
    pub(crate) floor: usize,
}

/// What a node has while it lives.
pub(crate) struct Life {
    pub(crate) number: u64,
    pub(crate) role: Role,
    pub(crate) writes: Vec<(Epoch, usize)>,
    pub(crate) flushes: Vec<(Epoch, usize)>,
    pub(crate) reads: Vec<Read>,
    /// How far each other node is known to have come.
    pub(crate) cursors: BTreeMap<usize, usize>,
    /// Up to where this log is the log of the primary of an epoch.
    pub(crate) matched: Option<(usize, Epoch, usize)>,
}

pub(crate) struct Node {
    pub(crate) life: Option<Life>,
    pub(crate) log: Log,
    pub(crate) durable: usize,
    /// The newest decision that was applied here.
    pub(crate) record: Record,
    pub(crate) decisions: usize,
    pub(crate) paused_until: Time,
    /// What its clock gains, in parts of ten thousand.
    pub(crate) gains: i64,
}

impl Node {
    pub(crate) fn position(&self) -> Position {
        position(&self.log, self.log.len())
    }
}

pub(crate) fn position(log: &Log, lsn: usize) -> Position {
    let epoch = lsn.checked_sub(1).and_then(|index| log.get(index)).map_or(Epoch::default(), |it| it.epoch);
    Position { epoch, lsn: Lsn(lsn as u64) }
}

pub(crate) fn len(lsn: Lsn) -> usize {
    usize::try_from(lsn.0).unwrap()
}
