//! What a role is told, what it says and what it has done.

use std::time::Duration;

use crate::replica::decisions::{Command, Member, NodeId, Position, Record, SetVersion};
use crate::units::{Epoch, Lsn};

/// Faults that the simulator plants, to show that it finds them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PlantedFaults {
    /// A node that the set names is a member in whichever life.
    pub any_incarnation: bool,
    /// A node is asked into the set before it is waited for.
    pub asked_before_waited_for: bool,
    /// A node is asked into the set before it holds what was acknowledged without it.
    pub asked_before_it_holds_all: bool,
    /// A member is not waited for as soon as it is to be put out.
    pub out_before_decided: bool,
    /// A node answers for epochs that are over.
    pub old_epochs_answered: bool,
    /// A primary goes on until it hears that it has handed over.
    pub served_after_hand_over: bool,
}

/// What nodes tell each other about roles. Operations go another way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// The primary lives.
    Heartbeat {
        /// Its epoch.
        epoch: Epoch,
        /// When it sent this, by its own clock: the answer brings it back.
        sent_at: Duration,
    },
    /// A heartbeat has been heard, and the promise is given.
    Heard {
        /// Of the heartbeat.
        epoch: Epoch,
        /// Of the heartbeat.
        sent_at: Duration,
        /// Who promises.
        by: Member,
    },
    /// The set names this node in an earlier life, and no primary is heard of.
    Stands {
        /// The version of the set.
        version: SetVersion,
        /// Who says so.
        by: Member,
        /// How far it has come.
        position: Position,
    },
}

/// What has happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// Some time has passed. At least every heartbeat.
    Tick,
    /// A decision has been applied on this node.
    Decided(Record),
    /// Another node has said something.
    Heard(NodeId, Message),
    /// This node has committed or applied operations.
    Moved(Position),
    /// Another node has applied everything up to a number, in an epoch, and made it durable up to another.
    Applied {
        /// Which, in which life.
        by: Member,
        /// In which epoch it was told to.
        epoch: Epoch,
        /// The newest operation that it has applied.
        applied: Lsn,
        /// The newest that it has made durable.
        durable: Lsn,
    },
    /// The primary is to hand over to this node, if it is in the set.
    HandOver(NodeId),
    /// Another node, which is not in the set, holds all that this primary has, but for what is under way.
    CaughtUp(Member),
    /// A member has said that it cannot apply what it was sent: it is put out.
    Failed(Member),
    /// The first operation of this epoch was written: this node serves.
    Begun(Epoch),
    /// It cannot be written. Where there are other members, one of them is to take over.
    CannotBegin(Epoch),
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Tell another node.
    Send(NodeId, Message),
    /// Ask for a decision. It may be lost, late, or decided without anybody being told.
    Propose(Command),
    /// Write the first operation of this epoch, and serve.
    Begin(Epoch),
    /// Acknowledge nothing any more, and serve nothing.
    Stop(Epoch),
}
