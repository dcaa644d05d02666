//! Errors on the wire: RFC 9457 problem details, with a `code` that stays the same for programs.

use axum::Json;
use axum::http::HeaderValue;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::response::Response;

use crate::api::types::FieldError;
use crate::api::types::ProblemDetails;
use crate::error::Error;
use crate::error::ErrorKind;

/// The code where there is no primary that could be asked.
pub(super) const NO_PRIMARY: &str = "no_primary";

/// An error that is to be answered.
#[derive(Debug)]
pub struct Problem {
    status: StatusCode,
    code: &'static str,
    detail: String,
    errors: Vec<FieldError>,
}

impl Problem {
    /// A request that is wrong in itself.
    pub fn invalid(detail: impl Into<String>) -> Problem {
        Error::new(ErrorKind::Invalid, detail).into()
    }

    /// A request with wrong fields; `detail` names them all.
    #[must_use]
    pub fn fields(errors: Vec<FieldError>) -> Problem {
        let all: Vec<String> =
            errors.iter().map(|error| format!("{}: {}", error.field, error.detail)).collect();
        Problem { errors, ..Problem::invalid(all.join("; ")) }
    }

    /// A request with one wrong field, and the sentence to say so.
    pub fn field(field: &str, detail: impl Into<String>) -> Problem {
        let detail = detail.into();
        let error = FieldError { field: field.to_owned(), detail: detail.clone() };
        Problem { errors: vec![error], ..Problem::invalid(detail) }
    }

    /// An error of HTTP itself, which no kind of the library stands for.
    pub fn http(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Problem {
        Problem { status, code, detail: detail.into(), errors: Vec::new() }
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Problem {
        let status = status_of(error.kind());
        // That another node is the primary, or none, is for the client to know.
        let usual = matches!(error.kind(), ErrorKind::NotPrimary | ErrorKind::NoQuorum);
        if status.is_server_error() && !usual {
            tracing::error!("{error}");
        }
        Problem { status, code: code_of(error.kind()), detail: error.to_string(), errors: Vec::new() }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let details = ProblemDetails {
            kind: "about:blank".to_owned(),
            title: self.status.canonical_reason().unwrap_or("Error").to_owned(),
            status: self.status.as_u16(),
            detail: self.detail,
            code: self.code.to_owned(),
            errors: self.errors,
        };
        let mut response = (self.status, Json(details)).into_response();
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        response
    }
}

/// The HTTP status for a kind of error.
#[must_use]
pub fn status_of(kind: ErrorKind) -> StatusCode {
    match kind {
        ErrorKind::Invalid => StatusCode::BAD_REQUEST,
        ErrorKind::NotFound => StatusCode::NOT_FOUND,
        ErrorKind::Exists | ErrorKind::Busy | ErrorKind::ReadOnly => StatusCode::CONFLICT,
        ErrorKind::Changed => StatusCode::PRECONDITION_FAILED,
        ErrorKind::NoSpace => StatusCode::INSUFFICIENT_STORAGE,
        ErrorKind::Corrupt | ErrorKind::Device => StatusCode::INTERNAL_SERVER_ERROR,
        ErrorKind::Stopped | ErrorKind::NotPrimary | ErrorKind::NoQuorum => StatusCode::SERVICE_UNAVAILABLE,
        ErrorKind::Unreachable => StatusCode::BAD_GATEWAY,
        ErrorKind::Unsupported => StatusCode::NOT_IMPLEMENTED,
    }
}

/// The stable `code` for a kind of error.
#[must_use]
pub fn code_of(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::Invalid => "invalid",
        ErrorKind::NotFound => "not_found",
        ErrorKind::Exists => "exists",
        ErrorKind::Busy => "busy",
        ErrorKind::Changed => "changed",
        ErrorKind::NoSpace => "no_space",
        ErrorKind::Corrupt => "corrupt",
        ErrorKind::Device => "device",
        ErrorKind::Stopped => "stopped",
        ErrorKind::ReadOnly => "read_only",
        ErrorKind::NotPrimary => "not_primary",
        ErrorKind::NoQuorum => "no_quorum",
        ErrorKind::Unreachable => "unreachable",
        ErrorKind::Unsupported => "unsupported",
    }
}

/// The kind of error behind a `code`, for the client's side; `None` for codes of HTTP itself.
#[must_use]
pub fn kind_of(code: &str) -> Option<ErrorKind> {
    if code == NO_PRIMARY {
        return Some(ErrorKind::NoQuorum);
    }
    ALL_KINDS.into_iter().find(|kind| code_of(*kind) == code)
}

const ALL_KINDS: [ErrorKind; 14] = [
    ErrorKind::Invalid,
    ErrorKind::NotFound,
    ErrorKind::Exists,
    ErrorKind::Busy,
    ErrorKind::Changed,
    ErrorKind::NoSpace,
    ErrorKind::Corrupt,
    ErrorKind::Device,
    ErrorKind::Stopped,
    ErrorKind::ReadOnly,
    ErrorKind::NotPrimary,
    ErrorKind::NoQuorum,
    ErrorKind::Unreachable,
    ErrorKind::Unsupported,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_kinds_are_one_to_one() {
        for kind in ALL_KINDS {
            assert_eq!(kind_of(code_of(kind)), Some(kind));
            assert_ne!(status_of(kind).as_u16(), 422);
        }
        assert_eq!(kind_of("method_not_allowed"), None);
    }
}
