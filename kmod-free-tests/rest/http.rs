//! A small HTTP client that shows everything: status, headers, body.

use std::io::Read;
use std::io::Write;
use std::net::TcpStream;

use serde_json::Value;

pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: String,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// The value of a header, in lower case like its name.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.headers.split("\r\n").skip(1).filter_map(|line| line.split_once(": "));
        lines.find_map(|(found, value)| (found == name).then_some(value))
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&self.body)))
    }

    /// Asserts that this is a problem with this status and code, and gives its detail.
    #[track_caller]
    pub(crate) fn problem(&self, status: u16, code: &str) -> String {
        assert_eq!(self.status, status, "{}", String::from_utf8_lossy(&self.body));
        assert!(self.headers.contains("content-type: application/problem+json"), "{}", self.headers);
        let problem = self.json();
        assert_eq!(problem["code"], code, "{problem}");
        assert_eq!(problem["status"], status, "{problem}");
        assert_eq!(problem["type"], "about:blank");
        assert!(!problem["title"].as_str().unwrap().is_empty());
        problem["detail"].as_str().unwrap().to_owned()
    }
}

pub(crate) fn request(url: &str, method: &str, path: &str, kind: Option<&str>, body: &[u8]) -> Answer {
    let kind = kind.map(|kind| format!("Content-Type: {kind}\r\n")).unwrap_or_default();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: sinter\r\nConnection: close\r\n{kind}Content-Length: {}\r\n\r\n",
        body.len()
    );
    exchange(url, &[head.as_bytes(), body])
}

/// Sends exactly this text.
pub(crate) fn head_and_body(url: &str, text: &str) -> Answer {
    exchange(url, &[text.as_bytes()])
}

fn exchange(url: &str, parts: &[&[u8]]) -> Answer {
    let mut stream = TcpStream::connect(url.strip_prefix("http://").unwrap()).unwrap();
    for part in parts {
        // A server that refuses early may close before it has read everything.
        let _ = stream.write_all(part);
    }
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n").expect("an answer with a head");
    let headers = String::from_utf8_lossy(&answer[..end]).to_lowercase();
    let status = headers.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { status, headers, body: answer[end + 4..].to_vec() }
}

pub(crate) fn get(url: &str, path: &str) -> Answer {
    request(url, "GET", path, None, b"")
}

pub(crate) fn send(url: &str, method: &str, path: &str, body: &str) -> Answer {
    request(url, method, path, Some("application/json"), body.as_bytes())
}
