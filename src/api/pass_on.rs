//! Passing requests on to the primary, from a node that is not.
//!
//! One request, one connection: it is made before the body is taken, so that a request for which there is no primary
//! yet can still be carried out here, where this node becomes it. What has been sent is never sent again.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::http::HeaderName;
use axum::http::HeaderValue;
use axum::http::Method;
use axum::http::StatusCode;
use axum::http::header;
use axum::http::request::Parts;
use axum::middleware::Next;
use axum::response::IntoResponse as _;
use axum::response::Response;
use serde::de::DeserializeOwned;

use crate::api::Service;
use crate::api::call::MANAGEMENT_BODY_MAX;
use crate::api::call::body_within;
use crate::api::data::WRITE_BODY_MAX;
use crate::api::problem::NO_PRIMARY;
use crate::api::problem::Problem;
use crate::error::Error;
use crate::error::ErrorKind;
use crate::error::Result;
use crate::replica::cluster::Cluster;
use crate::replica::cluster::Passage;
use crate::replica::link::Link;
use crate::replica::link::kind;

/// Says that another node has passed the request on: it is not passed on again.
pub(super) const PASSED_ON: &str = "sinter-passed-on";

/// Most requests that are passed on at a time: each takes a thread, and the node's own routes need some, too.
pub(super) const PASSED_ON_MAX: usize = 4;

/// Largest answer: one of data in Base64, or a list of very many volumes.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// How long a request waits for a primary that can be reached: longer than a failover takes.
const PRIMARY_PATIENCE: Duration = Duration::from_secs(5);

/// Between two attempts to reach one.
const PRIMARY_PAUSE: Duration = Duration::from_millis(100);

/// Longest silence of the primary while it works on a request.
const SILENCE_MAX: Duration = Duration::from_secs(120);

/// The same where only figures are asked for.
const FIGURES_SILENCE_MAX: Duration = Duration::from_secs(2);

/// Bytes of one frame.
const PIECE_BYTES: usize = 64 << 10;

/// Headers that belong to a connection, and not to what is sent over it.
const OF_CONNECTIONS: [HeaderName; 9] = [
    header::CONNECTION,
    header::TRANSFER_ENCODING,
    header::CONTENT_LENGTH,
    header::UPGRADE,
    header::TE,
    header::TRAILER,
    header::HOST,
    header::EXPECT,
    header::DATE,
];

/// Who answers a request.
enum Way {
    This,
    Primary(Box<Link>),
}

/// Whether a route is about this node, whatever the primary says.
fn is_local(method: &Method, path: &str) -> bool {
    let Some(route) = path.strip_prefix("/api/v1/") else { return true };
    match route.split('/').next().unwrap_or_default() {
        "cluster" if route == "cluster/verify" => false,
        "cluster" => !(method == Method::POST && matches!(route, "cluster/failover" | "cluster/failback")),
        // The pool of this node is verified, and directories of this machine are mounted on.
        "scrub" | "mounts" => true,
        _ => false,
    }
}

/// Carries a request out here, or has the primary do it.
pub(super) async fn pass_on(State(service): State<Arc<Service>>, request: Request, next: Next) -> Response {
    let cluster = service.cluster.clone().filter(|cluster| cluster.passes_on());
    let Some(cluster) = cluster else { return next.run(request).await };
    let path = request.uri().path();
    if request.method() == Method::POST && path == "/api/v1/mounts" {
        let what = "volumes are mounted on the primary, or by NBD from anywhere";
        return Problem::from(Error::new(ErrorKind::NotPrimary, what)).into_response();
    }
    if is_local(request.method(), path) {
        return next.run(request).await;
    }
    if request.headers().contains_key(PASSED_ON) {
        let what = "this node is not the primary any more";
        return Problem::from(Error::new(ErrorKind::NotPrimary, what)).into_response();
    }
    let _turn = service.passing.acquire().await.expect("the semaphore is never closed");
    match way(&service, &cluster).await {
        Ok(Way::This) => next.run(request).await,
        Ok(Way::Primary(link)) => ask(&service, *link, request).await.unwrap_or_else(Problem::into_response),
        Err(problem) => problem.into_response(),
    }
}

/// Waits a while for a primary, here or elsewhere.
async fn way(service: &Service, cluster: &Arc<Cluster>) -> std::result::Result<Way, Problem> {
    let deadline = service.clock.monotonic() + PRIMARY_PATIENCE;
    loop {
        if !cluster.passes_on() {
            return Ok(Way::This);
        }
        let asked = Arc::clone(cluster);
        let link = service.blocking(move |_| Ok(asked.pass_on(Passage::Rest))).await?;
        match link {
            Ok(link) => return Ok(Way::Primary(Box::new(link))),
            Err(error) if service.clock.monotonic() >= deadline => {
                let detail = format!("there is no primary that can be reached: {error}");
                return Err(Problem::http(StatusCode::SERVICE_UNAVAILABLE, NO_PRIMARY, detail));
            }
            Err(_) => tokio::time::sleep(PRIMARY_PAUSE).await,
        }
    }
}

async fn ask(service: &Service, link: Link, request: Request) -> std::result::Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    let last = parts.uri.path().rsplit('/').next().unwrap_or_default();
    let (moves_data, limit) = match last {
        "write" => (true, WRITE_BODY_MAX),
        "read" => (true, MANAGEMENT_BODY_MAX),
        _ => (false, MANAGEMENT_BODY_MAX),
    };
    let _transfer = if moves_data { Some(service.transfer().await) } else { None };
    let body = body_within(body, limit).await?;
    let head = head_of(&parts, body.len());
    let without_body = parts.method == Method::HEAD;
    let asked = move |_: &_| exchange(link, &[head.as_slice(), &body], without_body, SILENCE_MAX);
    let answer = service.blocking(asked).await?;
    let mut response = Response::new(Body::from(answer.body));
    *response.status_mut() = answer.status;
    *response.headers_mut() = answer.headers;
    Ok(response)
}

/// What the primary says at a path.
///
/// # Errors
/// `NoQuorum`, `Unreachable` where nobody answers in time; `Invalid` for another answer than that.
pub(super) fn get<T: DeserializeOwned>(cluster: &Cluster, path: &str) -> Result<T> {
    let link = cluster.pass_on(Passage::Rest)?;
    let head = format!("GET {path} HTTP/1.1\r\nhost: sinter\r\nconnection: close\r\n{PASSED_ON}: 1\r\n\r\n");
    let answer = exchange(link, &[head.as_bytes()], false, FIGURES_SILENCE_MAX)?;
    serde_json::from_slice(&answer.body)
        .map_err(|error| Error::caused(ErrorKind::Invalid, format!("reading the primary's {path}"), error))
}

fn head_of(parts: &Parts, body_len: usize) -> Vec<u8> {
    let target = parts.uri.path_and_query().map_or("/", |target| target.as_str());
    let mut head = format!("{} {target} HTTP/1.1\r\nhost: sinter\r\nconnection: close\r\n", parts.method);
    head += &format!("content-length: {body_len}\r\n{PASSED_ON}: 1\r\n");
    let mut head = head.into_bytes();
    for (name, value) in parts.headers.iter().filter(|(name, _)| !OF_CONNECTIONS.contains(name)) {
        head.extend_from_slice(name.as_str().as_bytes());
        head.extend_from_slice(b": ");
        head.extend_from_slice(value.as_bytes());
        head.extend_from_slice(b"\r\n");
    }
    head.extend_from_slice(b"\r\n");
    head
}

/// What was answered.
#[derive(Debug)]
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Vec<u8>,
}

/// Sends a request, and takes the whole answer.
fn exchange(mut link: Link, request: &[&[u8]], without_body: bool, silence_max: Duration) -> Result<Answer> {
    for piece in request.iter().flat_map(|part| part.chunks(PIECE_BYTES)) {
        link.send(kind::DATA, &[piece])?;
    }
    let mut bytes = Vec::new();
    loop {
        let frame = link.receive(Some(silence_max))?;
        let frame = frame.ok_or_else(|| Error::new(ErrorKind::Unreachable, "the primary does not answer"))?;
        match frame.kind {
            kind::DATA => bytes.extend_from_slice(&frame.body),
            kind::END => return parse(&bytes, without_body),
            other => {
                return Err(Error::new(
                    ErrorKind::Invalid,
                    format!("the primary sent a frame of kind {other}"),
                ));
            }
        }
        if bytes.len() > ANSWER_BYTES_MAX {
            let what =
                "the primary's answer is too long to be passed on: ask it itself, or for less at a time";
            return Err(Error::new(ErrorKind::Unsupported, what));
        }
    }
}

/// Reads an answer that was sent to its end.
fn parse(bytes: &[u8], without_body: bool) -> Result<Answer> {
    let broken = || Error::new(ErrorKind::Unreachable, "the primary's answer broke off");
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n").ok_or_else(broken)?;
    let (head, body) = (&bytes[..end], &bytes[end + 4..]);
    let mut lines = head.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let status = lines.next().and_then(|line| line.strip_prefix(b"HTTP/1.1 ")).and_then(|rest| rest.get(..3));
    let status = status.and_then(|code| StatusCode::from_bytes(code).ok()).ok_or_else(broken)?;
    let mut headers = HeaderMap::new();
    let (mut len, mut chunked) = (None, false);
    for line in lines {
        let colon = line.iter().position(|byte| *byte == b':').ok_or_else(broken)?;
        let name = HeaderName::from_bytes(&line[..colon]).map_err(|_| broken())?;
        let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).map_err(|_| broken())?;
        if name == header::CONTENT_LENGTH {
            let text = value.to_str().ok();
            len = Some(text.and_then(|text| text.parse::<usize>().ok()).ok_or_else(broken)?);
        }
        chunked |= name == header::TRANSFER_ENCODING;
        if !OF_CONNECTIONS.contains(&name) {
            headers.append(name, value);
        }
    }
    let body = match (without_body, len) {
        (true, _) => Vec::new(),
        (false, Some(len)) if !chunked => body.get(..len).ok_or_else(broken)?.to_vec(),
        (false, _) if chunked => dechunked(body).ok_or_else(broken)?,
        (false, _) => body.to_vec(),
    };
    Ok(Answer { status, headers, body })
}

/// The pieces of a body, put together; `None` where one is missing.
fn dechunked(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = rest.windows(2).position(|window| window == b"\r\n")?;
        let size = std::str::from_utf8(&rest[..end]).ok()?.split(';').next()?;
        let size = usize::from_str_radix(size.trim(), 16).ok()?;
        rest = &rest[end + 2..];
        if size == 0 {
            return Some(body);
        }
        body.extend_from_slice(rest.get(..size)?);
        rest = rest.get(size..)?.strip_prefix(b"\r\n")?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_answers_are_read_and_broken_ones_are_not() {
        let answer =
            parse(b"HTTP/1.1 201 Created\r\ncontent-length: 2\r\netag: \"1\"\r\n\r\n{}", false).unwrap();
        assert_eq!((answer.status, answer.body.as_slice()), (StatusCode::CREATED, b"{}".as_slice()));
        assert_eq!(answer.headers.len(), 1);
        assert_eq!(answer.headers[header::ETAG], "\"1\"");
        let chunked =
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2;x\r\nde\r\n0\r\n\r\n";
        assert_eq!(parse(chunked, false).unwrap().body, b"abcde");
        assert_eq!(parse(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n", true).unwrap().body, b"");
        for broken in [
            b"".as_slice(),
            b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc",
            b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\nabc",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nab",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n",
            b"HTTP/1.1 200 OK\r\nno header\r\n\r\n",
            b"HTTP/2 200 OK\r\n\r\n",
        ] {
            assert!(parse(broken, false).is_err(), "{}", String::from_utf8_lossy(broken));
        }
    }

    #[test]
    fn only_what_is_about_this_node_is_answered_here() {
        let local = |method: Method, path: &str| is_local(&method, path);
        for path in
            ["/health", "/metrics", "/docs", "/openapi.json", "/api/v1/cluster/members", "/api/v1/scrub"]
        {
            assert!(local(Method::GET, path), "{path}");
        }
        assert!(
            local(Method::POST, "/api/v1/cluster/tokens") && local(Method::DELETE, "/api/v1/cluster/peers/b")
        );
        assert!(!local(Method::GET, "/api/v1/cluster/verify"), "the primary compares");
        for path in ["/api/v1/cluster/failover", "/api/v1/cluster/failback", "/api/v1/volumes"] {
            assert!(!local(Method::POST, path), "{path}");
        }
        assert!(!local(Method::GET, "/api/v1/status") && !local(Method::GET, "/api/v1/metrics/replication"));
    }
}
