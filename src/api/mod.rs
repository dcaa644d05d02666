//! REST: routes, the types they share with the command line, and errors as problem details.
//!
//! Handlers check what they were sent before they touch the array, call it from threads that may
//! wait, and turn what it says into the shapes of `types`. Nothing here decides anything about
//! volumes, knows of NBD, or answers anything but JSON (`/metrics` is mounted from above).

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Json;
use axum::Router;
use axum::extract::Request;
use axum::extract::State;
use axum::http::Method;
use axum::http::StatusCode;
use axum::http::Uri;
use axum::middleware::Next;
use axum::response::IntoResponse;
use axum::response::Response;
use axum::routing::get;
use axum::routing::post;
use tokio::sync::Semaphore;
use tokio::sync::SemaphorePermit;

use crate::api::call::Call;
use crate::api::problem::Problem;
use crate::api::statistics::Operation;
use crate::api::statistics::RestStatistics;
use crate::api::types::About;
use crate::api::types::ArrayCapacity;
use crate::api::types::ArrayInfo;
use crate::api::types::ArrayList;
use crate::api::types::Endpoints;
use crate::api::types::Health;
use crate::array::Array;
use crate::error::Result;
use crate::sync::Clock;

mod call;
pub mod problem;
pub mod request;
pub mod scrub;
pub mod server;
pub mod statistics;
pub mod types;
mod view;
mod volumes;

/// Most requests at a time that move data; each may hold a body of 64 MiB.
const TRANSFERS_MAX: usize = 2;

/// What the routes work on.
pub struct Service {
    array: Arc<Array>,
    endpoints: Endpoints,
    clock: Arc<dyn Clock>,
    started: Duration,
    transfers: Semaphore,
    statistics: Arc<RestStatistics>,
    in_flight: Arc<AtomicUsize>,
}

impl Service {
    /// Routes for `array`, which serves its volumes at `endpoints`.
    pub fn new(array: Arc<Array>, endpoints: Endpoints, clock: Arc<dyn Clock>) -> Service {
        let started = clock.monotonic();
        let transfers = Semaphore::new(TRANSFERS_MAX);
        let (statistics, in_flight) = (Arc::default(), Arc::default());
        Service { array, endpoints, clock, started, transfers, statistics, in_flight }
    }

    /// Counters of the requests, which live on.
    #[must_use]
    pub fn statistics(&self) -> Arc<RestStatistics> {
        self.statistics.clone()
    }

    /// How many requests are being worked on, which lives on.
    #[must_use]
    pub fn in_flight(&self) -> Arc<AtomicUsize> {
        self.in_flight.clone()
    }

    /// Calls the array from a thread that may wait.
    async fn blocking<T: Send + 'static>(
        &self,
        call: impl FnOnce(&Array) -> Result<T> + Send + 'static,
    ) -> Result<T, Problem> {
        let array = self.array.clone();
        match tokio::task::spawn_blocking(move || call(&array)).await {
            Ok(result) => Ok(result?),
            Err(_) => {
                let detail = "the array is being shut down";
                Err(Problem::http(StatusCode::SERVICE_UNAVAILABLE, "shutting_down", detail))
            }
        }
    }

    /// Waits for a turn to move data, so that the bodies in memory are few.
    async fn transfer(&self) -> SemaphorePermit<'_> {
        self.transfers.acquire().await.expect("the semaphore is never closed")
    }
}

/// All routes; `mounted` adds what is served beside REST.
pub fn router(service: Arc<Service>, mounted: Router) -> Router {
    let routes = Router::new()
        .route("/", get(about))
        .route("/health", get(health))
        .route("/api/v1/arrays", get(arrays))
        .route("/api/v1/status", get(status))
        .route("/api/v1/metrics/reduction", get(reduction))
        .route("/api/v1/scrub", get(scrub::show).post(scrub::start).delete(scrub::stop))
        .route("/api/v1/volumes", get(volumes::list).post(volumes::create))
        .route("/api/v1/volumes/{id}", get(volumes::show).put(volumes::update).delete(volumes::delete))
        .route("/api/v1/volumes/{id}/resize", post(volumes::resize))
        .route("/api/v1/volumes/{id}/write", post(volumes::write))
        .route("/api/v1/volumes/{id}/read", get(volumes::read))
        .with_state(service.clone());
    routes
        .merge(mounted)
        .fallback(unknown_route)
        .method_not_allowed_fallback(wrong_method)
        .layer(axum::middleware::from_fn_with_state(service, count))
}

async fn count(State(service): State<Arc<Service>>, request: Request, next: Next) -> Response {
    let operation = Operation::of(request.method(), request.uri().path());
    let _working = Working::begin(&service.in_flight);
    let begun = service.clock.monotonic();
    let response = next.run(request).await;
    service.statistics.count(operation, service.clock.monotonic().saturating_sub(begun));
    response
}

/// Counts a request while it is being worked on, also when its client goes away meanwhile.
struct Working(Arc<AtomicUsize>);

impl Working {
    fn begin(in_flight: &Arc<AtomicUsize>) -> Working {
        in_flight.fetch_add(1, Ordering::Relaxed);
        Working(in_flight.clone())
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn unknown_route(uri: Uri) -> Problem {
    Problem::http(StatusCode::NOT_FOUND, "not_found", format!("there is nothing at {}", uri.path()))
}

async fn wrong_method(method: Method, uri: Uri) -> Problem {
    let detail = format!("{method} is not offered at {}", uri.path());
    Problem::http(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", detail)
}

async fn about(call: Call) -> Result<Response, Problem> {
    call.query.finish()?;
    let about = About {
        name: "Sinter API".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        description: "Management of a Sinter virtual flash array".to_owned(),
    };
    Ok(Json(about).into_response())
}

async fn health(State(service): State<Arc<Service>>) -> Result<Response, Problem> {
    let status = service.blocking(|array| Ok(array.status())).await?;
    let health = Health {
        status: view::health(status.health),
        reduction_ratio: status.reduction_ratio,
        cluster_enabled: false,
    };
    Ok(Json(health).into_response())
}

async fn arrays(State(service): State<Arc<Service>>, call: Call) -> Result<Response, Problem> {
    call.query.finish()?;
    let status = service.blocking(|array| Ok(array.status())).await?;
    let array = ArrayInfo {
        id: service.array.id().to_string(),
        name: status.name,
        model: "Sinter Virtual Array".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        capacity: ArrayCapacity {
            total_bytes: status.store.capacity_bytes,
            used_bytes: status.store.used_bytes,
            reduction_ratio: status.reduction_ratio,
        },
        endpoints: service.endpoints.clone(),
    };
    Ok(Json(ArrayList { arrays: vec![array] }).into_response())
}

async fn status(State(service): State<Arc<Service>>, call: Call) -> Result<Response, Problem> {
    call.query.finish()?;
    let status = service.blocking(|array| Ok(array.status())).await?;
    let clock = &service.clock;
    let uptime = clock.monotonic().saturating_sub(service.started);
    let endpoints = service.endpoints.clone();
    let status = view::status(status, service.array.id(), endpoints, clock.since_unix_epoch(), uptime);
    Ok(Json(status).into_response())
}

async fn reduction(State(service): State<Arc<Service>>, call: Call) -> Result<Response, Problem> {
    call.query.finish()?;
    let status = service.blocking(|array| Ok(array.status())).await?;
    Ok(Json(view::reduction(&status)).into_response())
}
