//! The verbs on whole objects: each is one operation, and none touches a block.
//!
//! Snapshots and clones are objects like any other: what they are stands in their opaque bytes, which belong to
//! the layer above. Making one takes one more reference on a root, whatever its size, and waits for no page.

use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::format::operation::{CloneRecord, LoggedOperation};
use crate::units::{BlockCount, Lsn, ObjectNumber};

use super::Store;
use super::core::{Core, Stall};
use super::operation::Claim;
use super::run::Caller;

/// An object that is to be cloned, and what the layer above keeps with the new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CloneRequest<'a> {
    /// Whose content and size the new object gets.
    pub source: ObjectNumber,
    /// What the layer above keeps with the new object.
    pub opaque: &'a [u8],
}

impl Store {
    /// Adds an object of `size` blocks, all holes; its number, and the operation.
    ///
    /// # Errors
    /// `Invalid`, `NoSpace`, `Stopped`.
    pub fn create_object(&self, size: BlockCount, opaque: &[u8]) -> Result<(ObjectNumber, Lsn)> {
        self.run(Caller::Request, |core| {
            core.leads()?;
            let object = ObjectNumber(core.objects.next);
            let operation = LoggedOperation::CreateObject { object, size, opaque: opaque.to_vec() };
            Ok((object, self.enter_management(core, &operation)?))
        })
    }

    /// Gives an object a new size, never a smaller one, and new opaque bytes.
    ///
    /// # Errors
    /// `NotFound`, `Invalid`, `NoSpace`, `Stopped`.
    pub fn update_object(&self, object: ObjectNumber, size: BlockCount, opaque: &[u8]) -> Result<Lsn> {
        let operation = LoggedOperation::UpdateObject { object, size, opaque: opaque.to_vec() };
        self.run(Caller::Request, |core| {
            core.leads()?;
            self.enter_management(core, &operation)
        })
    }

    /// Takes an object away; its space comes back in the background. What others share with it stays.
    ///
    /// # Errors
    /// `NotFound`, `Stopped`.
    pub fn delete_object(&self, object: ObjectNumber) -> Result<Lsn> {
        self.release_before_adding()?;
        let operation = LoggedOperation::DeleteObject { object };
        self.run(Caller::Request, |core| {
            core.leads()?;
            self.enter_management(core, &operation)
        })
    }

    /// Makes a new object for each request, with the size and the content that its source has at one moment, the
    /// same for all; their numbers, in the order of the requests, and the operation. From then on source and
    /// clone are changed and deleted independently. A source may be named more than once.
    ///
    /// This takes the same time whatever the sizes, and holds nobody up.
    ///
    /// # Errors
    /// `NotFound` where a source does not exist; `Invalid` for no request, for more than `CLONES_MAX`, and for opaque
    /// bytes that are too long, each or all together; `NoSpace`, `Stopped`. After an error nothing has changed.
    pub fn clone_objects(&self, requests: &[CloneRequest<'_>]) -> Result<(Vec<ObjectNumber>, Lsn)> {
        self.run(Caller::Request, |core| {
            core.leads()?;
            let numbers = (core.objects.next..).map(ObjectNumber);
            let clones = numbers.zip(requests).map(|(object, request)| CloneRecord {
                object,
                source: request.source,
                opaque: request.opaque.to_vec(),
            });
            let operation = LoggedOperation::CloneObjects { clones: clones.collect() };
            let lsn = self.enter_management(core, &operation)?;
            let LoggedOperation::CloneObjects { clones } = operation else { return Ok((Vec::new(), lsn)) };
            Ok((clones.iter().map(|clone| clone.object).collect(), lsn))
        })
    }

    /// Gives `target` the content that `source` has at this moment, `size` blocks, and new opaque bytes. What lies
    /// beyond the source's size reads as zeros. What the target held before comes back as space unless others share
    /// it; requests on it that are under way see the one or the other.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` for a size below that of the source or of the target, and where both are the same
    /// object; `NoSpace`, `Stopped`. After an error nothing has changed.
    pub fn restore_object(
        &self,
        target: ObjectNumber,
        source: ObjectNumber,
        size: BlockCount,
        opaque: &[u8],
    ) -> Result<Lsn> {
        self.release_before_adding()?;
        let operation =
            LoggedOperation::RestoreObject { object: target, source, size, opaque: opaque.to_vec() };
        self.run(Caller::Request, |core| {
            core.leads()?;
            self.enter_management(core, &operation)
        })
    }

    /// Enters an operation that carries no payload and touches no leaf.
    pub(crate) fn enter_management(
        &self,
        core: &mut Core,
        operation: &LoggedOperation,
    ) -> Result<Lsn, Stall> {
        core.writable()?;
        let (prepared, needs) = core.prepare_operation(operation, 0)?;
        let frame_len = operation.encode(0).len();
        if frame_len > self.geometry.frame_bytes_max() {
            let what =
                format!("{frame_len} bytes of descriptions are too many for one operation of this pool");
            return Err(Error::new(ErrorKind::Invalid, what).into());
        }
        let claim = match operation {
            LoggedOperation::DeleteObject { .. } => Claim::Nothing,
            _ => Claim::Management,
        };
        core.check_room(&needs, frame_len as u64, claim)?;
        core.prepare_log(frame_len, claim.segments_kept(&self.geometry))?;
        Ok(self.enter(core, operation, &prepared, &Arc::default(), None, Vec::new))
    }
}
