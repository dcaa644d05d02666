//! REST: routes, the types they share with the command line, and errors as problem details.
//!
//! Handlers check what they were sent before they touch the array, call it from threads that may
//! wait, and turn what it says into the shapes of `types`. Nothing here decides anything about
//! volumes, knows of NBD, or answers anything but JSON, but for the two pages that show the `OpenAPI` document
//! (`/metrics` is mounted from above).

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use axum::extract::Request;
use axum::extract::State;
use axum::http::Method;
use axum::http::StatusCode;
use axum::http::Uri;
use axum::middleware::Next;
use axum::response::Response;
use tokio::sync::Semaphore;
use tokio::sync::SemaphorePermit;

use crate::api::mounts::MountControl;
use crate::api::problem::Problem;
use crate::api::server::Activity;
use crate::api::server::Working;
use crate::api::statistics::Operation;
use crate::api::statistics::RestStatistics;
use crate::api::types::Endpoints;
use crate::array::Array;
use crate::error::Result;
use crate::replica::cluster::Cluster;
use crate::sync::Clock;

mod analytics;
mod call;
mod cluster;
mod condition;
mod data;
pub mod document;
mod figures;
pub mod mounts;
mod page;
mod pages;
mod pass_on;
pub mod problem;
pub mod request;
mod routes;
pub mod scrub;
pub mod server;
mod shapes;
mod snapshots;
pub mod statistics;
pub mod types;
mod view;
mod volumes;
mod whole;

/// Most requests at a time that move data; each may hold a body of 64 MiB.
const TRANSFERS_MAX: usize = 2;

/// What the routes work on.
pub struct Service {
    array: Arc<Array>,
    endpoints: Endpoints,
    after_delete: Box<dyn Fn() + Send + Sync>,
    mounts: Option<Arc<dyn MountControl>>,
    cluster: Option<Arc<Cluster>>,
    clock: Arc<dyn Clock>,
    started: Duration,
    transfers: Semaphore,
    passing: Semaphore,
    statistics: Arc<RestStatistics>,
    in_flight: Arc<AtomicUsize>,
}

impl Service {
    /// Routes for `array`, which serves its volumes at `endpoints`. `after_delete` is called when a volume or
    /// snapshot has been deleted, which clients may still be connected to.
    pub fn new(
        array: Arc<Array>,
        endpoints: Endpoints,
        clock: Arc<dyn Clock>,
        after_delete: impl Fn() + Send + Sync + 'static,
    ) -> Service {
        let started = clock.monotonic();
        let (transfers, passing) = (Semaphore::new(TRANSFERS_MAX), Semaphore::new(pass_on::PASSED_ON_MAX));
        let (statistics, in_flight) = (Arc::default(), Arc::default());
        let (after_delete, mounts, cluster) = (Box::new(after_delete), None, None);
        Service {
            array,
            endpoints,
            after_delete,
            mounts,
            cluster,
            clock,
            started,
            transfers,
            passing,
            statistics,
            in_flight,
        }
    }

    /// The same routes, and those of mounts.
    #[must_use]
    pub fn with_mounts(mut self, mounts: Arc<dyn MountControl>) -> Service {
        self.mounts = Some(mounts);
        self
    }

    /// The same routes, and those of the cluster that this node may form or be in.
    #[must_use]
    pub fn with_cluster(mut self, cluster: Arc<Cluster>) -> Service {
        self.cluster = Some(cluster);
        self
    }

    /// The cluster, if this node may be in one.
    #[must_use]
    pub fn cluster(&self) -> Option<Arc<Cluster>> {
        self.cluster.clone()
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

    /// Lets clients go whose volume or snapshot is no more.
    fn disconnect_deleted(&self) {
        (self.after_delete)();
    }

    /// Waits for a turn to move data, so that the bodies in memory are few.
    async fn transfer(&self) -> SemaphorePermit<'_> {
        self.transfers.acquire().await.expect("the semaphore is never closed")
    }
}

/// All routes; `mounted` adds what is served beside REST.
pub fn router(service: Arc<Service>, mounted: Router) -> Router {
    let mut routes = Router::new();
    for route in routes::ALL.iter().flat_map(|routes| routes.iter()) {
        routes = routes.route(route.path, (route.handler)());
    }
    routes
        .with_state(service.clone())
        .merge(pages::router())
        .merge(mounted)
        .fallback(unknown_route)
        .method_not_allowed_fallback(wrong_method)
        .layer(axum::middleware::from_fn_with_state(service.clone(), pass_on::pass_on))
        .layer(axum::middleware::from_fn_with_state(service, count))
}

async fn count(State(service): State<Arc<Service>>, request: Request, next: Next) -> Response {
    let operation = Operation::of(request.method(), request.uri().path());
    let _working = Working::begin(&service.in_flight);
    let connection = request.extensions().get::<ConnectInfo<Activity>>();
    let _of_connection = connection.map(|ConnectInfo(activity)| activity.begin());
    let begun = service.clock.monotonic();
    let response = next.run(request).await;
    service.statistics.count(operation, service.clock.monotonic().saturating_sub(begun));
    response
}

async fn unknown_route(uri: Uri) -> Problem {
    Problem::http(StatusCode::NOT_FOUND, "not_found", format!("there is nothing at {}", uri.path()))
}

async fn wrong_method(method: Method, uri: Uri) -> Problem {
    let detail = format!("{method} is not offered at {}", uri.path());
    Problem::http(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", detail)
}
