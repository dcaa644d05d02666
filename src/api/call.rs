//! One request as the handlers take it: name or id, query, body; each with our own way to refuse.

use std::time::Duration;

use axum::body::Body;
use axum::body::Bytes;
use axum::extract::FromRequest;
use axum::extract::FromRequestParts;
use axum::extract::Path;
use axum::extract::Query as AxumQuery;
use axum::extract::Request;
use axum::http::HeaderMap;
use axum::http::StatusCode;
use axum::http::header::CONTENT_LENGTH;
use axum::http::header::CONTENT_TYPE;

use crate::api::condition;
use crate::api::pass_on::PASSED_ON;
use crate::api::problem::Problem;
use crate::api::request::Query;
use crate::array::Version;

/// Largest body of a management request; names, descriptions and tags are far smaller.
pub(super) const MANAGEMENT_BODY_MAX: usize = 256 << 10;

/// Longest time that the body of a request may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);

/// One request.
pub(super) struct Call {
    /// The name or id in the path; empty on routes without one.
    pub(super) which: String,
    /// The second one in the path; empty on routes without one.
    pub(super) second: String,
    /// What stands behind the question mark.
    pub(super) query: Query,
    headers: HeaderMap,
    body: Body,
}

impl<S: Send + Sync> FromRequest<S> for Call {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Call, Problem> {
        let (mut parts, body) = request.into_parts();
        let path = Path::<Vec<String>>::from_request_parts(&mut parts, state).await;
        let path = path
            .map_err(|error| Problem::invalid(format!("the path cannot be read: {}", error.body_text())))?;
        let pairs = AxumQuery::<Vec<(String, String)>>::from_request_parts(&mut parts, state).await;
        let pairs = pairs
            .map_err(|error| Problem::invalid(format!("the query cannot be read: {}", error.body_text())))?;
        let mut path = path.0.into_iter();
        Ok(Call {
            which: path.next().unwrap_or_default(),
            second: path.next().unwrap_or_default(),
            query: Query::new(pairs.0)?,
            headers: parts.headers,
            body,
        })
    }
}

impl Call {
    /// The versions that the volume may be in, where the client says so.
    pub(super) fn if_match(&self) -> Result<Option<Vec<Version>>, Problem> {
        condition::if_match(&self.headers)
    }

    /// Whether another node has passed the request on.
    pub(super) fn is_passed_on(&self) -> bool {
        self.headers.contains_key(PASSED_ON)
    }

    /// Reads a JSON body of at most `limit` bytes. Only `application/json` is taken: a page in a
    /// browser cannot send that to another site without being asked first.
    pub(super) async fn json(self, limit: usize) -> Result<Bytes, Problem> {
        self.query.finish()?;
        let kind = self.headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        let essence = kind.split(';').next().unwrap_or_default().trim();
        if !essence.eq_ignore_ascii_case("application/json") {
            let detail = "the body must be JSON: send Content-Type: application/json";
            return Err(Problem::http(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", detail));
        }
        let announced =
            self.headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
        if announced.is_some_and(|length| length > limit) {
            return Err(too_large(limit));
        }
        body_within(self.body, limit).await
    }
}

/// Takes a body of at most `limit` bytes.
pub(super) async fn body_within(body: Body, limit: usize) -> Result<Bytes, Problem> {
    match tokio::time::timeout(BODY_TIMEOUT, axum::body::to_bytes(body, limit)).await {
        Ok(Ok(body)) => Ok(body),
        Ok(Err(error)) if is_limit(&error) => Err(too_large(limit)),
        Ok(Err(error)) => Err(Problem::invalid(format!("the body broke off: {error}"))),
        Err(_) => {
            let detail = "the body took too long to arrive";
            Err(Problem::http(StatusCode::REQUEST_TIMEOUT, "request_timeout", detail))
        }
    }
}

fn too_large(limit: usize) -> Problem {
    let detail = format!("the body is larger than {limit} bytes");
    Problem::http(StatusCode::PAYLOAD_TOO_LARGE, "payload_too_large", detail)
}

/// Whether reading stopped because of the limit rather than the connection.
fn is_limit(error: &axum::Error) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(current) = cause {
        if current.to_string() == "length limit exceeded" {
            return true;
        }
        cause = current.source();
    }
    false
}
