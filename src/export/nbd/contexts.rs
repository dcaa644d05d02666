//! Metadata contexts: what a client may ask of a range beside its bytes.
//!
//! Protocol: "Metadata querying". Offered are `base:allocation` and, for each snapshot of the export's
//! volume, `sinter:changed-since:SNAPSHOT`: what the export holds otherwise than the snapshot. Backup tools
//! copy only that. A snapshot of another volume is named `sinter:changed-since:VOLUME@SNAPSHOT`, as one
//! would for a clone.
//!
//! `sinter:session:ID` is no context: a client that goes on with its requests on a new connection says by it who it is,
//! and its former connection is ended first (see `server`). It is told `sinter:history:ID:MEMORY`, which is no context
//! either: by these it sees whether what it was promised is there, and whether what it has sent is remembered.

use std::sync::Arc;

use super::ExportSource;
use super::wire::options::{BASE_ALLOCATION, BASE_WILDCARD, MetaRequest, SessionId, encode_terms};
use crate::array::service::ChangeSource;

/// Number that stands for a session; nothing can be asked by it.
const SESSION: u32 = 0;
/// Number that stands for `base:allocation` in requests and replies.
const ALLOCATION: u32 = 1;
/// Number of the first `sinter:changed-since`; the others follow.
const FIRST_CHANGE: u32 = 2;
/// Most of them that one connection may choose; more are passed over.
const CHANGES_MAX: usize = 8;

const CHANGED_SINCE: &str = "sinter:changed-since:";
/// Queries that match all of our own contexts in a listing.
const OWN_WILDCARDS: [&str; 2] = ["sinter:", CHANGED_SINCE];

/// What one client has chosen.
#[derive(Clone, Default)]
pub struct Contexts {
    allocation: bool,
    changes: Vec<Arc<dyn ChangeSource>>,
    session: Option<SessionId>,
}

/// One context of a client.
pub(super) enum Context<'a> {
    /// `base:allocation`.
    Allocation,
    /// `sinter:changed-since`.
    Changes(&'a dyn ChangeSource),
}

/// Some of a client's contexts, by number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Choice(u16);

impl Choice {
    fn has(self, number: u32) -> bool {
        self.0 & (1 << number) != 0
    }
}

impl Contexts {
    /// Chooses what the queries name and the export has, and says each one's number and name. A query for
    /// something else matches nothing.
    pub(super) fn choose(
        request: &MetaRequest<'_>,
        export: &str,
        exports: &dyn ExportSource,
        mut chosen: impl FnMut(u32, &str),
    ) -> Contexts {
        let mut contexts = Contexts::default();
        let mut seen: Vec<&str> = Vec::new();
        for query in &request.queries {
            if seen.contains(query) || contexts.changes.len() == CHANGES_MAX {
                continue;
            }
            if *query == BASE_ALLOCATION {
                contexts.allocation = true;
                chosen(ALLOCATION, query);
            } else if let Some(session) = SessionId::parse(query) {
                contexts.session = Some(session);
                chosen(SESSION, query);
                chosen(SESSION, &encode_terms(&exports.session_terms(session)));
            } else if let Some(since) = query.strip_prefix(CHANGED_SINCE).filter(|since| !since.is_empty()) {
                let Ok(source) = exports.changes(export, since) else { continue };
                let number = FIRST_CHANGE + u32::try_from(contexts.changes.len()).unwrap_or_default();
                contexts.changes.push(source);
                chosen(number, query);
            } else {
                continue;
            }
            seen.push(query);
        }
        contexts
    }

    /// Says the names of what the queries match, or of all there is where there are none.
    pub(super) fn list(
        request: &MetaRequest<'_>,
        export: &str,
        exports: &dyn ExportSource,
        mut listed: impl FnMut(&str),
    ) {
        let all = request.queries.is_empty();
        let asks = |names: &[&str]| all || request.queries.iter().any(|query| names.contains(query));
        if asks(&[BASE_ALLOCATION, BASE_WILDCARD]) {
            listed(BASE_ALLOCATION);
        }
        let own = asks(&OWN_WILDCARDS);
        for snapshot in exports.snapshots(export) {
            let name = format!("{CHANGED_SINCE}{snapshot}");
            if own || request.queries.contains(&name.as_str()) {
                listed(&name);
            }
        }
    }

    /// The session that the client goes on with.
    pub(super) fn session(&self) -> Option<SessionId> {
        self.session
    }

    /// Whether there is nothing to ask.
    pub(super) fn is_empty(&self) -> bool {
        !self.allocation && self.changes.is_empty()
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        usize::from(self.allocation) + self.changes.len()
    }

    /// All of them.
    pub(super) fn all(&self) -> Choice {
        let changes = (FIRST_CHANGE..).take(self.changes.len()).map(|number| 1u16 << number).sum::<u16>();
        Choice(changes | if self.allocation { 1 << ALLOCATION } else { 0 })
    }

    /// Those with the given numbers; `None` where one of them was not chosen, or is named twice.
    pub(super) fn some(&self, numbers: &[u32]) -> Option<Choice> {
        let mut choice = Choice::default();
        for number in numbers {
            if *number >= u16::BITS || !self.all().has(*number) || choice.has(*number) {
                return None;
            }
            choice.0 |= 1 << number;
        }
        (!numbers.is_empty()).then_some(choice)
    }

    /// The contexts of a choice, each with its number.
    pub(super) fn of(&self, choice: Choice) -> impl Iterator<Item = (u32, Context<'_>)> {
        let allocation =
            (self.allocation && choice.has(ALLOCATION)).then_some((ALLOCATION, Context::Allocation));
        let changes = (FIRST_CHANGE..).zip(&self.changes);
        let changes = changes
            .filter(move |(number, _)| choice.has(*number))
            .map(|(number, source)| (number, Context::Changes(&**source)));
        allocation.into_iter().chain(changes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::array::BlockService;
    use crate::array::ChangedExtent;
    use crate::error::{Error, ErrorKind, Result};
    use crate::export::nbd::ExportEntry;
    use crate::units::ByteCount;

    struct Snapshots;

    struct NoChange;

    impl ChangeSource for NoChange {
        fn changes(&self, _: u64, len: ByteCount, _: usize) -> Result<Vec<ChangedExtent>> {
            Ok(vec![ChangedExtent { len, changed: None }])
        }
    }

    impl ExportSource for Snapshots {
        fn list(&self) -> Vec<ExportEntry> {
            Vec::new()
        }

        fn open(&self, name: &str) -> Result<Arc<dyn BlockService>> {
            Err(Error::new(ErrorKind::NotFound, name))
        }

        fn snapshots(&self, _: &str) -> Vec<String> {
            vec!["one".to_owned(), "two".to_owned()]
        }

        fn changes(&self, _: &str, since: &str) -> Result<Arc<dyn ChangeSource>> {
            if since == "none" { Err(Error::new(ErrorKind::NotFound, since)) } else { Ok(Arc::new(NoChange)) }
        }
    }

    fn request<'a>(queries: &[&'a str]) -> MetaRequest<'a> {
        MetaRequest { name: "v", queries: queries.to_vec() }
    }

    fn chosen(queries: &[&str]) -> (Contexts, Vec<(u32, String)>) {
        let mut names = Vec::new();
        let contexts = Contexts::choose(&request(queries), "v", &Snapshots, |number, name| {
            names.push((number, name.to_owned()));
        });
        (contexts, names)
    }

    #[test]
    fn what_is_named_and_there_is_chosen_once() {
        let one = "sinter:changed-since:one";
        let (contexts, names) = chosen(&[
            one,
            "sinter:changed-since:none",
            "sinter:changed-since:",
            "sinter:",
            "base:",
            "base:allocation",
            one,
        ]);
        assert_eq!(names, [(2, one.to_owned()), (1, "base:allocation".to_owned())]);
        assert_eq!((contexts.len(), contexts.is_empty()), (2, false));
        let many: Vec<String> = (0..20).map(|number| format!("{CHANGED_SINCE}{number}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let (contexts, names) = chosen(&many);
        assert_eq!((contexts.len(), names.len()), (CHANGES_MAX, CHANGES_MAX));
        assert_eq!(contexts.of(contexts.all()).count(), CHANGES_MAX);
        assert!(chosen(&[]).0.is_empty());
    }

    #[test]
    fn listings_match_names_and_wildcards() {
        let listed = |queries: &[&str]| {
            let mut names = Vec::new();
            Contexts::list(&request(queries), "v", &Snapshots, |name| names.push(name.to_owned()));
            names
        };
        assert_eq!(listed(&[]).len(), 3);
        assert_eq!(listed(&["base:"]), ["base:allocation"]);
        assert_eq!(listed(&["sinter:"]).len(), 2);
        assert_eq!(listed(&["sinter:changed-since:two"]), ["sinter:changed-since:two"]);
        assert!(listed(&["other:"]).is_empty());
    }

    #[test]
    fn a_choice_is_of_what_was_chosen() {
        let (contexts, _) = chosen(&["base:allocation", "sinter:changed-since:one"]);
        assert_eq!(contexts.some(&[1, 2]), Some(contexts.all()));
        let numbers = |choice| contexts.of(choice).map(|(number, _)| number).collect::<Vec<_>>();
        assert_eq!(numbers(contexts.some(&[2]).unwrap()), [2]);
        for wrong in [&[][..], &[0], &[3], &[1, 1], &[16], &[u32::MAX]] {
            assert_eq!(contexts.some(wrong), None, "{wrong:?}");
        }
    }
}
