//! The client's side of REST.

use std::net::IpAddr;
use std::net::ToSocketAddrs;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::api::problem::kind_of;
use crate::api::types::ProblemDetails;
use crate::daemon::failure::Failure;
use crate::daemon::failure::Outcome;
use crate::daemon::uri::NbdEndpoint;
use crate::daemon::uri::encode;
use crate::error::Error;
use crate::error::ErrorKind;

/// Where the daemon is unless `--url` or `SINTER_URL` says otherwise.
pub const DEFAULT_URL: &str = "http://127.0.0.1:8000";

/// Largest answer that is taken.
const ANSWER_BYTES_MAX: u64 = 256 << 20;

/// A connection to one array.
pub struct Client {
    agent: ureq::Agent,
    url: String,
}

impl Client {
    /// A client of the array at `url`; nothing is sent yet.
    ///
    /// # Errors
    /// `Invalid` for what is no `http://` address, and for a port that cannot be.
    pub fn new(url: &str) -> Outcome<Client> {
        if !is_address(url) {
            return Err(Failure::new(ErrorKind::Invalid, format!("`{url}` is not an address of an array"))
                .hint(format!("write it like --url {DEFAULT_URL}")));
        }
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(Duration::from_secs(10)))
            .build()
            .new_agent();
        Ok(Client { agent, url: url.trim_end_matches('/').to_owned() })
    }

    /// `GET`, with the answer as text.
    ///
    /// # Errors
    /// `Unreachable`, or what the array answered.
    pub fn get_text(&self, path: &str) -> Outcome<String> {
        self.answer(self.agent.get(format!("{}{path}", self.url)).call())
    }

    /// `POST` of a JSON body, with the answer as text.
    ///
    /// # Errors
    /// `Unreachable`, or what the array answered.
    pub fn post(&self, path: &str, body: &impl Serialize) -> Outcome<String> {
        self.answer(self.agent.post(format!("{}{path}", self.url)).send_json(body))
    }

    /// `PUT` of a JSON body, with the answer as text.
    ///
    /// # Errors
    /// `Unreachable`, or what the array answered.
    pub fn put(&self, path: &str, body: &impl Serialize) -> Outcome<String> {
        self.answer(self.agent.put(format!("{}{path}", self.url)).send_json(body))
    }

    /// `DELETE`.
    ///
    /// # Errors
    /// `Unreachable`, or what the array answered.
    pub fn delete(&self, path: &str) -> Outcome {
        self.answer(self.agent.delete(format!("{}{path}", self.url)).call()).map(drop)
    }

    /// Whether the array is on this machine, as far as the address says.
    #[must_use]
    pub fn is_local(&self) -> bool {
        let host = self.host();
        host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    }

    /// The endpoint as it is reached from here: an array that listens everywhere is where REST is.
    #[must_use]
    pub fn reachable(&self, endpoint: NbdEndpoint) -> NbdEndpoint {
        match endpoint {
            NbdEndpoint::Tcp(address) if address.ip().is_unspecified() => {
                let found =
                    (self.host(), address.port()).to_socket_addrs().ok().and_then(|mut all| all.next());
                NbdEndpoint::Tcp(found.unwrap_or(address))
            }
            other => other,
        }
    }

    fn host(&self) -> &str {
        let authority = self.url.strip_prefix("http://").unwrap_or(&self.url);
        let authority = authority.split('/').next().unwrap_or_default();
        match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((address, _)) => address,
            None => authority.split(':').next().unwrap_or_default(),
        }
    }

    fn answer(&self, sent: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Outcome<String> {
        let mut response = sent.map_err(|error| self.unreachable(error))?;
        let status = response.status();
        let body = response
            .body_mut()
            .with_config()
            .limit(ANSWER_BYTES_MAX)
            .read_to_string()
            .map_err(|error| self.unreachable(error))?;
        if status.is_success() {
            return Ok(body);
        }
        let Ok(problem) = serde_json::from_str::<ProblemDetails>(&body) else {
            return Err(Failure::new(ErrorKind::Unreachable, format!("{} answered {status}", self.url))
                .hint("is this the address of a Sinter array?"));
        };
        let kind = kind_of(&problem.code).unwrap_or(match status.as_u16() {
            404 => ErrorKind::NotFound,
            409 => ErrorKind::Busy,
            400..=499 => ErrorKind::Invalid,
            _ => ErrorKind::Device,
        });
        Err(Failure::new(kind, problem.detail))
    }

    fn unreachable(&self, error: ureq::Error) -> Failure {
        if matches!(error, ureq::Error::Protocol(_) | ureq::Error::Http(_)) {
            let what = format!("what listens at {} is not the REST of a Sinter array", self.url);
            return Failure::new(ErrorKind::Unreachable, what)
                .hint("`sinter serve` prints where its REST is; --url or SINTER_URL says it here");
        }
        Failure::from(Error::caused(
            ErrorKind::Unreachable,
            format!("asking the array at {}", self.url),
            error,
        ))
        .hint("is it running? `sinter serve` starts it, --url or SINTER_URL says where it is")
    }
}

/// Whether this is `http://HOST` or `http://HOST:PORT`, perhaps with a path.
fn is_address(url: &str) -> bool {
    let Some(rest) = url.strip_prefix("http://") else { return false };
    let authority = rest.split('/').next().unwrap_or_default();
    // The colons of an IPv6 address stand in brackets.
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (authority, None),
    };
    !host.is_empty() && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0))
}

/// Reads an answer.
///
/// # Errors
/// `Unreachable` for what is not the answer of an array of this version.
pub fn parse<T: DeserializeOwned>(answer: &str) -> Outcome<T> {
    serde_json::from_str(answer).map_err(|error| {
        Failure::from(Error::caused(ErrorKind::Unreachable, "the array's answer cannot be read", error))
            .hint("do the versions of `sinter` here and there match?")
    })
}

/// The path of a volume, by name or id.
#[must_use]
pub fn volume_path(volume: &str) -> String {
    format!("/api/v1/volumes/{}", encode(volume.as_bytes(), b"-._~"))
}

/// The path of a mount, by its directory.
#[must_use]
pub fn mount_path(mountpoint: &str) -> String {
    format!("/api/v1/mounts/{}", encode(mountpoint.as_bytes(), b"-._~"))
}

/// The path of a snapshot, by names or ids.
#[must_use]
pub fn snapshot_path(volume: &str, snapshot: &str) -> String {
    format!("{}/snapshots/{}", volume_path(volume), encode(snapshot.as_bytes(), b"-._~"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_a_host_and_a_port_that_can_be() {
        for good in ["http://x", "http://[::1]", "http://[::1]:80/", "http://127.0.0.1:65535/path"] {
            assert!(is_address(good), "{good}");
        }
        for bad in [
            "ftp://x",
            "http://",
            "http://:80",
            "http://x:",
            "http://x:0",
            "http://x:99999",
            "http://[::1]:a",
        ] {
            assert!(!is_address(bad), "{bad}");
        }
    }

    #[test]
    fn names_are_encoded() {
        assert_eq!(volume_path("a b/c?\u{f6}"), "/api/v1/volumes/a%20b%2Fc%3F%C3%B6");
    }
}
