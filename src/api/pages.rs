//! The `OpenAPI` document and the two pages that show it. All of it is in the binary: nothing is loaded from
//! elsewhere.

use std::sync::LazyLock;

use axum::Router;
use axum::body::Bytes;
use axum::http::header::CACHE_CONTROL;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::response::Response;
use axum::routing::get;

use crate::api::document;

const DOCUMENT_PATH: &str = "/openapi.json";

static DOCUMENT: LazyLock<Bytes> = LazyLock::new(|| Bytes::from(document::document().to_string()));

static SWAGGER_UI: LazyLock<Bytes> =
    LazyLock::new(|| Bytes::from(aide::swagger::Swagger::new(DOCUMENT_PATH).with_title("Sinter").html()));

static REDOC: LazyLock<Bytes> =
    LazyLock::new(|| Bytes::from(aide::redoc::Redoc::new(DOCUMENT_PATH).with_title("Sinter").html()));

pub(super) fn router() -> Router {
    Router::new()
        .route(DOCUMENT_PATH, get(async || page("application/json", &DOCUMENT)))
        .route("/docs", get(async || page("text/html; charset=utf-8", &SWAGGER_UI)))
        .route("/redoc", get(async || page("text/html; charset=utf-8", &REDOC)))
}

fn page(kind: &'static str, content: &Bytes) -> Response {
    // Another version of the program has another page at the same address.
    ([(CONTENT_TYPE, kind), (CACHE_CONTROL, "no-cache")], content.clone()).into_response()
}
