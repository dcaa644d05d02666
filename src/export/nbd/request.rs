//! Which requests are admitted, and what the others are answered. Pure.
//!
//! Protocol: "Request types", "Command flags", "Size constraints", "Error values".

use std::time::Instant;

use super::contexts::{Choice, Contexts};
use super::errors::Errno;
use super::handshake::Negotiated;
use super::statistics::Operation;
use super::wire::transmission::{PAYLOAD_BYTES_MAX, ReplyTo, RequestHead, Style, command, command_flag};

/// Whether the payload of a BLOCK_STATUS may be of this length: a length, and the numbers of one to all of the
/// contexts that were chosen.
fn is_status_payload(bytes: u64, contexts: &Contexts) -> bool {
    (8 + 4..=8 + 4 * contexts.len() as u64).contains(&bytes) && bytes.is_multiple_of(4)
}

/// A request that was admitted: its range lies within the export.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    pub(super) operation: Operation,
    pub(super) flags: u16,
    pub(super) cookie: u64,
    /// In bytes.
    pub(super) offset: u64,
    /// In bytes.
    pub(super) length: u64,
    /// Of a BLOCK_STATUS, the contexts that it is about.
    pub(super) contexts: Choice,
    pub(super) received: Instant,
}

impl Request {
    pub(super) fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    pub(super) fn reply_to(&self, style: Style) -> ReplyTo {
        ReplyTo { style, cookie: self.cookie, offset: self.offset }
    }

    /// The length of a request that has a payload, or asks for one.
    pub(super) fn payload_len(&self) -> usize {
        usize::try_from(self.length).expect("admitted payloads are no longer than 32 MiB")
    }
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) errno: Errno,
    pub(super) message: &'static str,
}

/// What is answered to a client that goes on asking while the server stops.
pub(super) const SHUTTING_DOWN: Refusal =
    Refusal { errno: Errno::ShuttingDown, message: "the server is stopping" };

/// Which operation a command is; DISC is none.
pub(super) fn operation_of(command: u16) -> Option<Operation> {
    Some(match command {
        command::READ => Operation::Read,
        command::WRITE => Operation::Write,
        command::FLUSH => Operation::Flush,
        command::TRIM => Operation::Trim,
        command::CACHE => Operation::Cache,
        command::WRITE_ZEROES => Operation::WriteZeroes,
        command::BLOCK_STATUS => Operation::BlockStatus,
        _ => return None,
    })
}

/// Admits the request or says why not. The range of a BLOCK_STATUS with a payload is in the
/// payload, and is checked by `admit_range` once that is there.
pub(super) fn admit(head: &RequestHead, export: &Negotiated) -> Result<Operation, Refusal> {
    let refuse = |errno, message| Err(Refusal { errno, message });
    let Some(operation) = operation_of(head.command) else {
        return refuse(Errno::Invalid, "unknown command");
    };
    if head.flags & !flags_of(operation, export) != 0 {
        return refuse(Errno::Invalid, "a flag that is not valid for this command");
    }
    let writes = matches!(operation, Operation::Write | Operation::Trim | Operation::WriteZeroes);
    if writes && export.read_only {
        return refuse(Errno::NotPermitted, "the export is read-only");
    }
    let payload = head.flags & command_flag::PAYLOAD_LEN != 0;
    match operation {
        Operation::Flush if head.offset != 0 || head.length != 0 => {
            return refuse(Errno::Invalid, "a flush has neither offset nor length");
        }
        Operation::Flush => return Ok(operation),
        Operation::BlockStatus if export.contexts.is_empty() => {
            return refuse(Errno::Invalid, "no metadata context was chosen");
        }
        Operation::BlockStatus if payload && !is_status_payload(head.length, &export.contexts) => {
            return refuse(Errno::Invalid, "not a choice of the contexts there are");
        }
        Operation::BlockStatus if payload => return Ok(operation),
        Operation::Read if head.length > u64::from(PAYLOAD_BYTES_MAX) => {
            let errno = if export.style == Style::Simple { Errno::Invalid } else { Errno::Overflow };
            return refuse(errno, "longer than 32 MiB");
        }
        Operation::Write if head.length > u64::from(PAYLOAD_BYTES_MAX) => {
            return refuse(Errno::Invalid, "longer than 32 MiB");
        }
        _ => {}
    }
    admit_range(operation, head.offset, head.length, export)?;
    Ok(operation)
}

/// Refuses ranges that are empty or reach past the end.
pub(super) fn admit_range(
    operation: Operation,
    offset: u64,
    length: u64,
    export: &Negotiated,
) -> Result<(), Refusal> {
    if length == 0 {
        return Err(Refusal { errno: Errno::Invalid, message: "a length of 0" });
    }
    if offset.checked_add(length).is_some_and(|end| end <= export.size.0) {
        return Ok(());
    }
    let errno = match operation {
        Operation::Write | Operation::WriteZeroes => Errno::NoSpace,
        _ => Errno::Invalid,
    };
    Err(Refusal { errno, message: "past the end of the export" })
}

/// FUA is valid for all commands, the other flags where the protocol says so.
fn flags_of(operation: Operation, export: &Negotiated) -> u16 {
    let extended = if export.style == Style::Extended { command_flag::PAYLOAD_LEN } else { 0 };
    let more = match operation {
        Operation::Read if export.style != Style::Simple => command_flag::DF,
        Operation::Write => extended,
        Operation::WriteZeroes => command_flag::NO_HOLE | command_flag::FAST_ZERO,
        Operation::BlockStatus => command_flag::REQ_ONE | extended,
        _ => 0,
    };
    command_flag::FUA | more
}
