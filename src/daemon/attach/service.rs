//! The volume as the local NBD server sees it: each verb is a request to the array.

use std::collections::HashMap;
use std::sync::Arc;
use std::thread::ThreadId;

use super::hub::Hub;
use super::hub::Ticket;
use crate::array::BlockService;
use crate::array::service::Commit;
use crate::array::service::Extent;
use crate::array::service::ExtentKind;
use crate::error::Error;
use crate::error::ErrorKind;
use crate::error::Result;
use crate::export::nbd::ExportEntry;
use crate::export::nbd::ExportSource;
use crate::export::nbd::wire::transmission::STATE_ZERO;
use crate::replica::session::Losses;
use crate::replica::session::Request;
use crate::sync::Mutex;
use crate::units::ByteCount;
use crate::units::Lsn;

/// Longest range of one trim, zeroing or status request, in bytes.
const RANGE_BYTES_MAX: u64 = 1 << 30;

/// The one export of an attached volume, by the volume's name.
pub(super) struct Attached {
    pub(super) name: String,
    pub(super) hub: Arc<Hub>,
}

impl ExportSource for Attached {
    fn list(&self) -> Vec<ExportEntry> {
        vec![ExportEntry { name: self.name.clone(), description: String::new() }]
    }

    fn open(&self, name: &str) -> Result<Arc<dyn BlockService>> {
        if name != self.name {
            return Err(Error::new(ErrorKind::NotFound, format!("only {} is attached here", self.name)));
        }
        let hub = Arc::clone(&self.hub);
        Ok(Arc::new(Client { since: hub.losses(), hub, batches: Mutex::default() }))
    }
}

/// One local connection.
///
/// A thread of the server executes the writes of a group one after the other and then acknowledges them together: they
/// are under way at once, and waited for once, on a ticket of that thread.
struct Client {
    hub: Arc<Hub>,
    since: Losses,
    batches: Mutex<HashMap<ThreadId, Arc<Ticket>>>,
}

impl Client {
    fn ask(&self, request: Request) -> Result<super::hub::Found> {
        let ticket = Arc::new(Ticket::default());
        self.hub.submit(request, self.since, &ticket)?;
        ticket.wait()
    }

    /// Hands in changes, which `acknowledge` waits for.
    fn change(&self, requests: impl Iterator<Item = Request>) -> Result<Commit> {
        let ticket = Arc::clone(self.batches.lock().entry(std::thread::current().id()).or_default());
        let mut commit = Commit::default();
        for request in requests {
            commit = Commit(Lsn(self.hub.submit(request, self.since, &ticket)?.0));
        }
        Ok(commit)
    }
}

/// A range in pieces of at most `piece_max` bytes.
fn pieces(offset: u64, len: ByteCount, piece_max: u64) -> impl Iterator<Item = (u64, ByteCount)> {
    let piece_max = piece_max.max(1);
    let count = len.0.div_ceil(piece_max);
    (0..count).map(move |piece| {
        let start = piece * piece_max;
        (offset + start, ByteCount(piece_max.min(len.0 - start)))
    })
}

impl BlockService for Client {
    fn size(&self) -> ByteCount {
        self.hub.export().size
    }

    fn read_only(&self) -> bool {
        self.hub.export().read_only
    }

    fn try_read(&self, _: u64, _: &mut [u8]) -> Result<bool> {
        Ok(false)
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let payload_max = u64::from(self.hub.export().payload_max);
        let mut rest = buffer;
        for (offset, len) in pieces(offset, ByteCount(rest.len() as u64), payload_max) {
            let data = self.ask(Request::Read { offset, len })?.data;
            let (piece, others) = rest.split_at_mut(data.len());
            piece.copy_from_slice(&data);
            rest = others;
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<Commit> {
        let payload_max = self.hub.export().payload_max.max(1) as usize;
        let pieces = data.chunks(payload_max).enumerate();
        self.change(pieces.map(|(number, piece)| Request::Write {
            offset: offset + (number * payload_max) as u64,
            data: Arc::from(piece),
        }))
    }

    fn write_zeroes(&self, offset: u64, len: ByteCount) -> Result<Commit> {
        self.change(pieces(offset, len, RANGE_BYTES_MAX).map(|(offset, len)| Request::Zeroes { offset, len }))
    }

    fn trim(&self, offset: u64, len: ByteCount) -> Result<Commit> {
        self.change(pieces(offset, len, RANGE_BYTES_MAX).map(|(offset, len)| Request::Trim { offset, len }))
    }

    fn acknowledge(&self, _: Commit) -> Result<()> {
        let ticket = self.batches.lock().remove(&std::thread::current().id());
        // Another thread's changes were acknowledged before they were handed on.
        ticket.map_or(Ok(()), |ticket| ticket.wait().map(drop))
    }

    fn make_durable(&self, commit: Commit) -> Result<()> {
        self.acknowledge(commit)?;
        self.flush()
    }

    fn flush(&self) -> Result<()> {
        self.ask(Request::Flush).map(drop)
    }

    fn block_status(&self, offset: u64, len: ByteCount, extents_max: usize) -> Result<Vec<Extent>> {
        let len = ByteCount(len.0.min(RANGE_BYTES_MAX));
        if !self.hub.export().has_status {
            return Ok(vec![Extent { len, kind: ExtentKind::Data }]);
        }
        let found = self.ask(Request::Status { offset, len })?.extents;
        if found.is_empty() {
            return Err(Error::new(ErrorKind::Device, "the array told nothing of where data is"));
        }
        let kind = |state| if state & STATE_ZERO != 0 { ExtentKind::Hole } else { ExtentKind::Data };
        let extents = found.into_iter().take(extents_max);
        Ok(extents.map(|(len, state)| Extent { len: ByteCount(u64::from(len)), kind: kind(state) }).collect())
    }
}
