//! Conditional changes (RFC 9110, section 13): a volume's version as an entity tag, and `If-Match`.
//!
//! The tag stands for what management requests can change. It stays the same while clients write data, so
//! that `If-Match` protects an administrator's change from another administrator's, and from nothing else.

use axum::http::HeaderMap;
use axum::http::header::IF_MATCH;

use crate::api::problem::Problem;
use crate::array::Version;

/// The entity tag of a version.
pub(super) fn tag(version: Version) -> String {
    format!("\"{:016x}\"", version.0)
}

/// The versions that `If-Match` asks for; `None` where it is absent or `*`. A weak tag is well formed and
/// matches nothing, as the standard says, and so does a tag that was never given out.
pub(super) fn if_match(headers: &HeaderMap) -> Result<Option<Vec<Version>>, Problem> {
    let mut versions = Vec::new();
    let mut any = false;
    for value in headers.get_all(IF_MATCH) {
        let malformed = || {
            let detail = "If-Match holds entity tags in double quotes, parted by commas, or *";
            Problem::field("If-Match", detail)
        };
        for part in value.to_str().map_err(|_| malformed())?.split(',').map(str::trim) {
            if part == "*" {
                any = true;
                continue;
            }
            let (weak, quoted) = match part.strip_prefix("W/") {
                Some(rest) => (true, rest),
                None => (false, part),
            };
            let inner = quoted.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
            let inner = inner.filter(|inner| !inner.contains('"')).ok_or_else(malformed)?;
            let version = u64::from_str_radix(inner, 16).ok().map(Version);
            versions.extend(version.filter(|version| !weak && tag(*version) == part));
        }
    }
    let asked = headers.contains_key(IF_MATCH) && !any;
    Ok(asked.then_some(versions))
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    fn read(text: &str) -> Result<Option<Vec<Version>>, Problem> {
        let mut headers = HeaderMap::new();
        headers.insert(IF_MATCH, HeaderValue::from_str(text).unwrap());
        if_match(&headers)
    }

    #[test]
    fn tags_read_back() {
        let (one, two) = (Version(1), Version(u64::MAX));
        assert_eq!(read(&format!("{}, {}", tag(one), tag(two))).unwrap(), Some(vec![one, two]));
        assert_eq!(if_match(&HeaderMap::new()).unwrap(), None);
        assert_eq!(read("*").unwrap(), None);
    }

    #[test]
    fn weak_and_foreign_tags_match_nothing() {
        for text in ["W/\"0000000000000001\"", "\"x\"", "\"\"", "\"1\""] {
            assert_eq!(read(text).unwrap(), Some(Vec::new()), "{text}");
        }
    }

    #[test]
    fn what_is_no_tag_is_refused() {
        for text in ["", "1", "\"1", "W/1", "\"1\" \"2\"", "\"1\","] {
            assert!(read(text).is_err(), "{text}");
        }
    }
}
