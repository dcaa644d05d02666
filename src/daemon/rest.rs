//! The thread that serves REST and metrics.

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::response::Response;
use axum::routing::get;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::api;
use crate::api::Service;
use crate::api::statistics::RestStatistics;
use crate::array::Array;
use crate::daemon::process;
use crate::export::fuse::FuseStatistics;
use crate::export::nbd::NbdStatistics;
use crate::metrics;
use crate::metrics::ClusterFigures;
use crate::metrics::Sources;
use crate::replica::cluster::Cluster;

/// Threads that wait for the array on behalf of requests.
const BLOCKING_THREADS: usize = 8;

/// How long running requests may take to finish when the daemon stops.
const DRAIN_MAX: Duration = Duration::from_secs(10);

/// How often it is looked whether they have.
const DRAIN_ROUND: Duration = Duration::from_millis(500);

/// The server, running.
pub(super) struct RestServer {
    stop: oneshot::Sender<()>,
    thread: std::thread::JoinHandle<()>,
}

impl RestServer {
    /// Starts serving on `listener`. `process_started` is when the process began, since the Unix epoch.
    ///
    /// # Errors
    /// What the operating system said.
    pub(super) fn start(
        listener: TcpListener,
        service: Service,
        array: Arc<Array>,
        nbd: Arc<NbdStatistics>,
        fuse: Arc<FuseStatistics>,
        process_started: Duration,
    ) -> std::io::Result<RestServer> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .max_blocking_threads(BLOCKING_THREADS)
            .thread_name("rest-worker")
            .build()?;
        let metrics = Router::new().route("/metrics", get(metrics_page)).with_state(Arc::new(Counters {
            array,
            nbd,
            fuse,
            rest: service.statistics(),
            cluster: service.cluster(),
            process_started,
        }));
        let in_flight = service.in_flight();
        let router = api::router(Arc::new(service), metrics);
        let (stop, stopped) = oneshot::channel::<()>();
        let run = move || {
            runtime.block_on(async {
                let (drain, draining) = oneshot::channel::<()>();
                let until = async {
                    let _ = draining.await;
                };
                let server = tokio::spawn(api::server::serve(listener, router, until));
                let _ = stopped.await;
                let _ = drain.send(());
                finish(server, &in_flight).await;
            });
            runtime.shutdown_timeout(DRAIN_MAX);
        };
        let thread = std::thread::Builder::new().name("rest".to_owned()).spawn(run)?;
        Ok(RestServer { stop, thread })
    }

    /// Stops accepting, lets running requests finish, and waits for that.
    pub(super) fn stop(self) {
        let _ = self.stop.send(());
        // A panic has already ended the process (`daemon::abort_on_panic`).
        let _ = self.thread.join();
    }
}

/// Waits until the server has closed all connections, or only idle ones are left: a client that has
/// sent half a request, or reads its answer too slowly, does not hold up the end.
async fn finish(mut server: JoinHandle<std::io::Result<()>>, in_flight: &AtomicUsize) {
    for round in 0..DRAIN_MAX.as_millis() / DRAIN_ROUND.as_millis() {
        match tokio::time::timeout(DRAIN_ROUND, &mut server).await {
            Ok(Ok(Err(error))) => return tracing::error!("REST: {error}"),
            Ok(_) => return,
            Err(_) if round > 0 && in_flight.load(Ordering::Relaxed) == 0 => return,
            Err(_) => {}
        }
    }
    tracing::warn!("some HTTP requests did not finish in time and were cut off");
}

struct Counters {
    array: Arc<Array>,
    nbd: Arc<NbdStatistics>,
    fuse: Arc<FuseStatistics>,
    rest: Arc<RestStatistics>,
    cluster: Option<Arc<Cluster>>,
    /// Since the Unix epoch.
    process_started: Duration,
}

fn cluster_figures(cluster: &Cluster) -> Option<ClusterFigures> {
    let running = cluster.running()?;
    Some(ClusterFigures { node: running.node.as_ref()?.status(), failovers: running.failovers() })
}

async fn metrics_page(State(counters): State<Arc<Counters>>) -> Response {
    let page = tokio::task::spawn_blocking(move || {
        let (status, volumes) = (counters.array.status(), counters.array.volumes());
        let cluster = counters.cluster.as_ref().and_then(|cluster| cluster_figures(cluster));
        metrics::render(&Sources {
            status: &status,
            volumes: &volumes,
            nbd: &counters.nbd,
            fuse: &counters.fuse,
            rest: &counters.rest,
            process: &process::figures(counters.process_started),
            cluster: cluster.as_ref(),
        })
    });
    match page.await {
        Ok(page) => ([(CONTENT_TYPE, metrics::text::CONTENT_TYPE)], page).into_response(),
        Err(_) => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}
