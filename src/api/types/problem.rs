//! Errors.

use schemars::JsonSchema;
use serde::Deserialize;
use serde::Serialize;

/// An error, as RFC 9457 shapes it (`application/problem+json`).
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ProblemDetails {
    /// `about:blank`: `code` says more.
    #[serde(rename = "type", default)]
    pub kind: String,
    /// The HTTP status in words.
    #[serde(default)]
    pub title: String,
    /// The HTTP status.
    #[serde(default)]
    pub status: u16,
    /// What went wrong with what.
    pub detail: String,
    /// Stable, for programs.
    #[serde(default)]
    pub code: String,
    /// The fields that were wrong, if the request was.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<FieldError>,
}

/// What is wrong with one field of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FieldError {
    /// The field or query parameter.
    pub field: String,
    /// What is wrong with it.
    pub detail: String,
}
