//! The group's file: vote, log and state machine in redb, each change synced before anybody is told of it.
//!
//! The state is small, so it is written whole with each application, and a snapshot is made from it when it is asked
//! for. Nothing else is kept, and nothing is ever believed that does not read back.

#![expect(clippy::result_large_err, reason = "openraft's storage traits return its own error")]

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io::Cursor;
use std::ops::{Bound, RangeBounds};
use std::path::Path;
use std::sync::Arc;

use openraft::storage::{LogFlushed, RaftLogStorage, RaftStateMachine};
use openraft::{
    AnyError, BasicNode, Entry, EntryPayload, ErrorSubject, ErrorVerb, LogId, LogState, RaftLogReader,
    RaftSnapshotBuilder, Snapshot, SnapshotMeta, StorageError, StorageIOError, StoredMembership, Vote,
};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use serde::{Deserialize, Serialize};

use super::codec;
use super::machine::{Machine, Types};
use super::published::Published;
use super::state::Outcome;
use crate::error::{Error, ErrorKind, Result};
use crate::replica::decisions::NodeId;
use crate::sync::Mutex;
use crate::units::Uuid;

const LOG: TableDefinition<u64, &[u8]> = TableDefinition::new("log");
const KEPT: TableDefinition<&str, &[u8]> = TableDefinition::new("kept");

/// Keys of the table of single values.
const IDENTITY: &str = "identity";
const VOTE: &str = "vote";
const PURGED: &str = "purged";
const APPLIED: &str = "applied";

/// Pages of redb that are kept in memory: a few dozen are ever used.
const CACHE_BYTES: usize = 1 << 20;

type Failed = StorageError<u64>;

/// Whose file it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    /// The cluster.
    pub(super) cluster: Uuid,
    /// The node.
    pub(super) own: NodeId,
    /// The group: drawn at random when one begins, also when one begins again from a single node by force. None where
    /// the group has not made contact yet.
    pub(super) group: Option<Uuid>,
}

/// The state machine, and up to where it was driven.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Applied {
    last: Option<LogId<u64>>,
    membership: StoredMembership<u64, BasicNode>,
    machine: Machine,
}

/// The open file. Clones share it.
#[derive(Clone)]
pub(super) struct Store {
    database: Arc<Database>,
    applied: Arc<Mutex<Applied>>,
    published: Arc<Published>,
}

impl Store {
    /// Makes the file, or opens one that holds no state yet and is this node's: another one is refused.
    pub(super) fn create(path: &Path, identity: Identity) -> Result<(Store, Identity)> {
        let database = Database::builder()
            .set_cache_size(CACHE_BYTES)
            .create(path)
            .map_err(|error| device(&format!("making {}", path.display()), error))?;
        let doing = format!("making {}", path.display());
        let known = change(&database, |transaction| {
            transaction.open_table(LOG)?;
            let mut kept = transaction.open_table(KEPT)?;
            let known = kept.get(IDENTITY)?.map(|value| value.value().to_vec());
            let begun = kept.get(APPLIED)?.is_some();
            if known.is_none() {
                let bytes = codec::encode(&identity).map_err(broken)?;
                kept.insert(IDENTITY, &bytes[..])?;
            }
            Ok(known.map(|known| (known, begun)))
        });
        if let Some((known, begun)) = known.map_err(|error| device(&doing, error))? {
            let known: Identity = codec::decode("the group's file", &known)?;
            let same = (known.cluster, known.own) == (identity.cluster, identity.own);
            if begun || !same {
                return Err(Error::new(ErrorKind::Exists, format!("{doing}: it is in use by a cluster")));
            }
        }
        Store::load(path, Arc::new(database))
    }

    /// Opens a file that was made before.
    pub(super) fn open(path: &Path) -> Result<(Store, Identity)> {
        let database = Database::builder()
            .set_cache_size(CACHE_BYTES)
            .open(path)
            .map_err(|error| device(&format!("opening {}", path.display()), error))?;
        Store::load(path, Arc::new(database))
    }

    fn load(path: &Path, database: Arc<Database>) -> Result<(Store, Identity)> {
        let doing = format!("reading {}", path.display());
        let read = |key| value(&database, key).map_err(|error| device(&doing, error));
        let identity: Identity = match read(IDENTITY)? {
            Some(bytes) => codec::decode("the group's file", &bytes)?,
            None => return Err(Error::new(ErrorKind::Corrupt, format!("{doing}: it belongs to nobody"))),
        };
        let applied = match read(APPLIED)? {
            Some(bytes) => codec::decode("the group's state", &bytes)?,
            None => Applied {
                last: None,
                membership: StoredMembership::default(),
                machine: Machine::empty(identity.cluster),
            },
        };
        let published = Arc::new(Published::of(applied.machine.state.clone()));
        Ok((Store { database, applied: Arc::new(Mutex::new(applied)), published }, identity))
    }

    /// Where the state is shown.
    pub(super) fn published(&self) -> Arc<Published> {
        Arc::clone(&self.published)
    }

    /// Notes whose file it is.
    pub(super) fn save_identity(&self, identity: &Identity) -> Result<()> {
        let bytes = codec::encode(identity)?;
        self.keep(IDENTITY, &bytes)
    }

    /// Cuts the group down to one voter, this node, with what it has applied; what it has not applied is dropped.
    /// The caller makes it another group, so that nobody of the former one is heard again.
    pub(super) fn cut_down_to(&self, own: NodeId, group: Identity) -> Result<()> {
        let mut applied = self.applied.lock().clone();
        let Some(last) = applied.last else {
            return Err(Error::new(ErrorKind::NotFound, "this node knows nothing of the cluster yet"));
        };
        let address = match applied.machine.state.nodes.get(&own) {
            Some(entry) => entry.cluster_address.clone(),
            None => return Err(Error::new(ErrorKind::NotFound, format!("node {} is no member", own.0))),
        };
        let node = BTreeMap::from([(u64::from(own.0), BasicNode::new(address))]);
        applied.membership = StoredMembership::new(Some(last), node.into());
        applied.machine.state.keep_only(own);
        let applied_bytes = codec::encode(&applied)?;
        let (purged, identity) = (codec::encode(&last)?, codec::encode(&group)?);
        let done = change(&self.database, |transaction| {
            transaction.open_table(LOG)?.retain(|_, _| false)?;
            let mut kept = transaction.open_table(KEPT)?;
            kept.insert(APPLIED, &applied_bytes[..])?;
            kept.insert(PURGED, &purged[..])?;
            kept.insert(IDENTITY, &identity[..])?;
            Ok(())
        });
        done.map_err(|error| device("beginning another group", error))?;
        self.published.show(applied.machine.state.clone());
        *self.applied.lock() = applied;
        Ok(())
    }

    fn keep(&self, key: &'static str, bytes: &[u8]) -> Result<()> {
        let done = change(&self.database, |transaction| {
            transaction.open_table(KEPT)?.insert(key, bytes)?;
            Ok(())
        });
        done.map_err(|error| device("writing the group's file", error))
    }

    /// Syncing waits for a device: on a thread that may wait.
    async fn changed(
        &self,
        subject: ErrorSubject<u64>,
        made: impl FnOnce(&WriteTransaction) -> Result<(), redb::Error> + Send + 'static,
    ) -> Result<(), Failed> {
        let database = Arc::clone(&self.database);
        let done = tokio::task::spawn_blocking(move || change(&database, made)).await;
        match done {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(failed(subject, ErrorVerb::Write, &error)),
            Err(error) => Err(failed(subject, ErrorVerb::Write, &error)),
        }
    }

    fn read<T: serde::de::DeserializeOwned>(
        &self,
        subject: ErrorSubject<u64>,
        key: &'static str,
    ) -> Result<Option<T>, Failed> {
        let bytes = value(&self.database, key);
        let bytes = bytes.map_err(|error| failed(subject.clone(), ErrorVerb::Read, &error))?;
        let decoded = bytes.map(|bytes| codec::decode(key, &bytes)).transpose();
        decoded.map_err(|error| failed(subject, ErrorVerb::Read, &error))
    }

    fn snapshot(&self) -> Result<Snapshot<Types>, Failed> {
        let applied = self.applied.lock().clone();
        let bytes = codec::encode(&applied.machine);
        let bytes = bytes.map_err(|error| failed(ErrorSubject::Snapshot(None), ErrorVerb::Read, &error))?;
        let meta = SnapshotMeta {
            last_log_id: applied.last,
            last_membership: applied.membership,
            snapshot_id: applied.last.map_or_else(String::new, |last| last.to_string()),
        };
        Ok(Snapshot { meta, snapshot: Box::new(Cursor::new(bytes)) })
    }

    async fn replace(&self, applied: Applied) -> Result<(), Failed> {
        let encoded = codec::encode(&applied);
        let bytes = encoded.map_err(|error| failed(ErrorSubject::StateMachine, ErrorVerb::Write, &error))?;
        self.changed(ErrorSubject::StateMachine, move |transaction| {
            transaction.open_table(KEPT)?.insert(APPLIED, &bytes[..])?;
            Ok(())
        })
        .await?;
        let state = applied.machine.state.clone();
        *self.applied.lock() = applied;
        self.published.show(state);
        Ok(())
    }
}

impl RaftLogReader<Types> for Store {
    async fn try_get_log_entries<R: RangeBounds<u64> + Clone + Debug + Send>(
        &mut self,
        range: R,
    ) -> Result<Vec<Entry<Types>>, Failed> {
        let bounds: (Bound<u64>, Bound<u64>) = (range.start_bound().cloned(), range.end_bound().cloned());
        let read = || -> Result<Vec<Vec<u8>>, redb::Error> {
            let log = self.database.begin_read()?.open_table(LOG)?;
            let found = log.range(bounds)?;
            found.map(|entry| Ok(entry?.1.value().to_vec())).collect()
        };
        let found = read().map_err(|error| failed(ErrorSubject::Logs, ErrorVerb::Read, &error))?;
        let decoded = found.iter().map(|bytes| codec::decode("an entry of the group's log", bytes));
        decoded.collect::<Result<_>>().map_err(|error| failed(ErrorSubject::Logs, ErrorVerb::Read, &error))
    }
}

impl RaftLogStorage<Types> for Store {
    type LogReader = Store;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, Failed> {
        let purged: Option<LogId<u64>> = self.read(ErrorSubject::Logs, PURGED)?;
        let read = || -> Result<Option<Vec<u8>>, redb::Error> {
            let log = self.database.begin_read()?.open_table(LOG)?;
            Ok(log.last()?.map(|(_, entry)| entry.value().to_vec()))
        };
        let last = read().map_err(|error| failed(ErrorSubject::Logs, ErrorVerb::Read, &error))?;
        let last = last
            .map(|bytes| codec::decode::<Entry<Types>>("an entry of the group's log", &bytes))
            .transpose()
            .map_err(|error| failed(ErrorSubject::Logs, ErrorVerb::Read, &error))?;
        let last = last.map(|entry| entry.log_id).or(purged);
        Ok(LogState { last_purged_log_id: purged, last_log_id: last })
    }

    async fn get_log_reader(&mut self) -> Store {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote<u64>) -> Result<(), Failed> {
        let bytes = codec::encode(vote);
        let bytes = bytes.map_err(|error| failed(ErrorSubject::Vote, ErrorVerb::Write, &error))?;
        self.changed(ErrorSubject::Vote, move |transaction| {
            transaction.open_table(KEPT)?.insert(VOTE, &bytes[..])?;
            Ok(())
        })
        .await
    }

    async fn read_vote(&mut self) -> Result<Option<Vote<u64>>, Failed> {
        self.read(ErrorSubject::Vote, VOTE)
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<Types>) -> Result<(), Failed>
    where
        I: IntoIterator<Item = Entry<Types>> + Send,
        I::IntoIter: Send,
    {
        let encoded = entries.into_iter().map(|entry| Ok((entry.log_id.index, codec::encode(&entry)?)));
        let encoded = encoded
            .collect::<Result<Vec<(u64, Vec<u8>)>>>()
            .map_err(|error| failed(ErrorSubject::Logs, ErrorVerb::Write, &error))?;
        self.changed(ErrorSubject::Logs, move |transaction| {
            let mut log = transaction.open_table(LOG)?;
            for (index, bytes) in &encoded {
                log.insert(*index, &bytes[..])?;
            }
            Ok(())
        })
        .await?;
        callback.log_io_completed(Ok(()));
        Ok(())
    }

    async fn truncate(&mut self, log_id: LogId<u64>) -> Result<(), Failed> {
        self.changed(ErrorSubject::Logs, move |transaction| {
            transaction.open_table(LOG)?.retain_in(log_id.index.., |_, _| false)?;
            Ok(())
        })
        .await
    }

    async fn purge(&mut self, log_id: LogId<u64>) -> Result<(), Failed> {
        let bytes = codec::encode(&log_id);
        let bytes = bytes.map_err(|error| failed(ErrorSubject::Logs, ErrorVerb::Write, &error))?;
        self.changed(ErrorSubject::Logs, move |transaction| {
            transaction.open_table(LOG)?.retain_in(..=log_id.index, |_, _| false)?;
            transaction.open_table(KEPT)?.insert(PURGED, &bytes[..])?;
            Ok(())
        })
        .await
    }
}

impl RaftStateMachine<Types> for Store {
    type SnapshotBuilder = Store;

    async fn applied_state(
        &mut self,
    ) -> Result<(Option<LogId<u64>>, StoredMembership<u64, BasicNode>), Failed> {
        let applied = self.applied.lock();
        Ok((applied.last, applied.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Outcome>, Failed>
    where
        I: IntoIterator<Item = Entry<Types>> + Send,
        I::IntoIter: Send,
    {
        let mut applied = self.applied.lock().clone();
        let mut outcomes = Vec::new();
        for entry in entries {
            applied.last = Some(entry.log_id);
            outcomes.push(match entry.payload {
                EntryPayload::Blank => Outcome::Changed,
                EntryPayload::Normal(proposal) => applied.machine.apply(&proposal),
                EntryPayload::Membership(membership) => {
                    applied.membership = StoredMembership::new(Some(entry.log_id), membership);
                    Outcome::Changed
                }
            });
        }
        self.replace(applied).await?;
        Ok(outcomes)
    }

    async fn get_snapshot_builder(&mut self) -> Store {
        self.clone()
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Cursor<Vec<u8>>>, Failed> {
        Ok(Box::new(Cursor::new(Vec::new())))
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta<u64, BasicNode>,
        snapshot: Box<Cursor<Vec<u8>>>,
    ) -> Result<(), Failed> {
        let machine = codec::decode("a snapshot of the group's state", &snapshot.into_inner());
        let machine = machine.map_err(|error| {
            failed(ErrorSubject::Snapshot(Some(meta.signature())), ErrorVerb::Read, &error)
        })?;
        let membership = meta.last_membership.clone();
        self.replace(Applied { last: meta.last_log_id, membership, machine }).await
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<Types>>, Failed> {
        let begun = self.applied.lock().last.is_some();
        begun.then(|| self.snapshot()).transpose()
    }
}

impl RaftSnapshotBuilder<Types> for Store {
    async fn build_snapshot(&mut self) -> Result<Snapshot<Types>, Failed> {
        self.snapshot()
    }
}

fn change<T>(
    database: &Database,
    made: impl FnOnce(&WriteTransaction) -> Result<T, redb::Error>,
) -> Result<T, redb::Error> {
    let transaction = database.begin_write()?;
    let result = made(&transaction)?;
    transaction.commit()?;
    Ok(result)
}

fn value(database: &Database, key: &str) -> Result<Option<Vec<u8>>, redb::Error> {
    let kept = database.begin_read()?.open_table(KEPT)?;
    Ok(kept.get(key)?.map(|value| value.value().to_vec()))
}

fn broken(error: Error) -> redb::Error {
    redb::Error::Io(std::io::Error::other(error))
}

fn device(doing: &str, error: impl Into<redb::Error>) -> Error {
    let error: redb::Error = error.into();
    let kind = match error {
        redb::Error::DatabaseAlreadyOpen => ErrorKind::Busy,
        redb::Error::Corrupted(_) => ErrorKind::Corrupt,
        _ => ErrorKind::Device,
    };
    Error::caused(kind, doing, error)
}

fn failed<E: std::error::Error + 'static>(subject: ErrorSubject<u64>, verb: ErrorVerb, error: &E) -> Failed {
    StorageError::IO { source: StorageIOError::new(subject, verb, AnyError::new(error)) }
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
