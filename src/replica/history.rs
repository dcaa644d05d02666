//! The name of the array's history: another one whenever acknowledged operations may have been lost.
//!
//! It stands in the pool, as a system object that operations change, so every node that holds the operations behind a
//! loss also holds the new name. A client that finds the name that it knows finds all that it was promised. It stays
//! through failovers, hand-overs and clean stops, and the death of processes. It is drawn anew where a pool that may lack
//! something becomes the array's (all power was lost, or nobody can tell), and where an operator has said that a loss
//! is to be put up with: force, and a start without some of the nodes.

use crate::error::Result;
use crate::format::system::HistoryId;
use crate::store::Store;
use crate::sync::RandomSource;
use crate::units::{BlockCount, Epoch, Lsn, Uuid};

/// An object has a size; all of this one is in its opaque bytes.
const HISTORY_BLOCKS: BlockCount = BlockCount(1);

/// Draws a new name where it has to be another one; the operation that says so, which must be in place before
/// anything is answered. `risked` is the newest term that began without nodes that might have held more.
///
/// # Errors
/// As `Store::update_object`.
pub fn begin(
    store: &Store,
    epoch: Epoch,
    risked: Option<Epoch>,
    random: &dyn RandomSource,
) -> Result<Option<Lsn>> {
    let known = store.find_object(HistoryId::of);
    let goes_on = known.is_some_and(|(_, history)| {
        history.since.generation == epoch.generation && risked.is_none_or(|risked| risked <= history.since)
    });
    if goes_on && !store.may_lack() {
        return Ok(None);
    }
    let mut bytes = [0; 16];
    random.fill(&mut bytes);
    let opaque = HistoryId { id: Uuid::from_random(bytes), since: epoch }.record().encode()?;
    let lsn = match known {
        Some((object, _)) => store.update_object(object, HISTORY_BLOCKS, &opaque)?,
        None => store.create_object(HISTORY_BLOCKS, &opaque)?.1,
    };
    store.set_may_lack(false);
    Ok(Some(lsn))
}
