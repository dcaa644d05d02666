//! Lists in pages: `limit` and `cursor`. Without either a list is whole.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde::Serialize;

use crate::api::problem::Problem;
use crate::api::request::Query;
use crate::api::types::Mount;
use crate::array::SnapshotInfo;
use crate::array::VolumeInfo;

/// Most entries of one page.
pub(super) const PAGE_MAX: u64 = 10_000;

/// What a list is made of.
pub(super) trait Listed {
    /// Its place in the order of the list.
    fn cursor(&self) -> Cursor;
}

impl Listed for VolumeInfo {
    fn cursor(&self) -> Cursor {
        Cursor { created_ms: self.created_at.as_millis(), names: vec![self.name.clone()] }
    }
}

impl Listed for SnapshotInfo {
    fn cursor(&self) -> Cursor {
        let names = vec![self.volume_name.clone(), self.name.clone(), self.id.to_string()];
        Cursor { created_ms: self.created_at.as_millis(), names }
    }
}

impl Listed for Mount {
    fn cursor(&self) -> Cursor {
        Cursor { created_ms: 0, names: vec![self.mountpoint.clone()] }
    }
}

/// Where a page ended: the last entry's place in the order of the list. It stays right when entries come
/// and go between two pages.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Cursor {
    created_ms: u128,
    names: Vec<String>,
}

impl Cursor {
    fn show(&self) -> String {
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(&(self.created_ms, &self.names)).unwrap_or_default())
    }

    fn parse(text: &str) -> Result<Cursor, Problem> {
        let read = || {
            let plain = URL_SAFE_NO_PAD.decode(text).ok()?;
            let (created_ms, names) = serde_json::from_slice(&plain).ok()?;
            Some(Cursor { created_ms, names })
        };
        read().ok_or_else(|| Problem::field("cursor", "cursor is not one that a list has given"))
    }
}

/// The page that is asked for.
#[derive(Debug)]
pub(super) struct Page {
    limit: usize,
    after: Option<Cursor>,
}

impl Page {
    /// Takes `limit` and `cursor` from the query.
    pub(super) fn asked(query: &mut Query) -> Result<Page, Problem> {
        let limit = query.number("limit", 1, PAGE_MAX)?;
        let limit = limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX);
        let after = query.text("cursor").map(|cursor| Cursor::parse(&cursor)).transpose()?;
        Ok(Page { limit, after })
    }

    /// The page of a list in its order, and the cursor of the next one.
    pub(super) fn of<T: Listed>(&self, list: Vec<T>) -> (Vec<T>, Option<String>) {
        let after = |entry: &T| self.after.as_ref().is_none_or(|after| *after < entry.cursor());
        let mut rest = list.into_iter().filter(after);
        let page: Vec<T> = rest.by_ref().take(self.limit).collect();
        let next = match (rest.next(), page.last()) {
            (Some(_), Some(last)) => Some(last.cursor().show()),
            _ => None,
        };
        (page, next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_read_back() {
        let names = vec!["a:\u{f6}".to_owned(), "\"".to_owned()];
        let cursor = Cursor { created_ms: 1_705_314_600_250, names };
        assert_eq!(Cursor::parse(&cursor.show()).unwrap(), cursor);
        for text in ["", "!", "MTIz", "eDp5"] {
            assert!(Cursor::parse(text).is_err(), "{text}");
        }
    }
}
