//! Serving HTTP on a listener: a bounded number of connections, none of which may idle for ever.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::task::Context;
use std::task::Poll;
use std::task::ready;
use std::time::Duration;

use axum::Router;
use axum::extract::connect_info::Connected;
use axum::serve::IncomingStream;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::io::ReadBuf;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio::time::Sleep;

/// Most connections at a time; further ones wait to be accepted.
const CONNECTIONS_MAX: usize = 256;

/// Longest silence of a client whose request is being worked on; longer than any request should take.
const IDLE_MAX: Duration = Duration::from_secs(300);

/// Longest time from the start of a connection, or from an answer, to the end of the next request's head.
const HEAD_MAX: Duration = Duration::from_secs(30);

/// The same while all connections are taken: whoever asks goes before whoever may ask some day.
const HEAD_MAX_WHEN_FULL: Duration = Duration::from_secs(2);

/// How often a connection without a request looks whether its time is over.
const HEAD_LOOK: Duration = Duration::from_secs(1);

/// Least time between two lines of the log that say that all connections are taken.
const FULL_SAID_AGAIN: Duration = Duration::from_secs(60);

/// Pause after a failed accept, such as for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Serves until `stop` is done; then lets running requests finish and closes the rest.
///
/// # Errors
/// What the operating system said of the listener.
pub async fn serve(
    listener: std::net::TcpListener,
    router: Router,
    stop: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = Bounded {
        listener: TcpListener::from_std(listener)?,
        room: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
        full_said: None,
    };
    let router = router.into_make_service_with_connect_info::<Activity>();
    axum::serve(listener, router).with_graceful_shutdown(stop).await
}

/// How many requests of a connection are being worked on.
#[derive(Clone, Debug, Default)]
pub(super) struct Activity(Arc<AtomicUsize>);

impl Activity {
    /// Counts a request until what is returned is dropped.
    pub(super) fn begin(&self) -> Working {
        Working::begin(&self.0)
    }

    fn is_working(&self) -> bool {
        self.0.load(Ordering::Acquire) > 0
    }
}

impl Connected<IncomingStream<'_, Bounded>> for Activity {
    fn connect_info(stream: IncomingStream<'_, Bounded>) -> Activity {
        stream.io().activity.clone()
    }
}

/// Counts a request while it is being worked on, also when its client goes away meanwhile.
pub(super) struct Working(Arc<AtomicUsize>);

impl Working {
    pub(super) fn begin(requests: &Arc<AtomicUsize>) -> Working {
        requests.fetch_add(1, Ordering::AcqRel);
        Working(requests.clone())
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

struct Bounded {
    listener: TcpListener,
    room: Arc<Semaphore>,
    full_said: Option<Instant>,
}

impl Bounded {
    /// A place for one more connection, once there is one.
    async fn place(&mut self) -> OwnedSemaphorePermit {
        if let Ok(permit) = self.room.clone().try_acquire_owned() {
            return permit;
        }
        let now = Instant::now();
        if self.full_said.is_none_or(|said| now - said >= FULL_SAID_AGAIN) {
            self.full_said = Some(now);
            tracing::warn!("all {CONNECTIONS_MAX} HTTP connections are taken: further ones wait");
        }
        self.room.clone().acquire_owned().await.expect("the semaphore is never closed")
    }
}

impl axum::serve::Listener for Bounded {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        let permit = self.place().await;
        loop {
            match self.listener.accept().await {
                Ok((stream, address)) => {
                    // Answers are small and written whole: waiting for more would only delay them.
                    let _ = stream.set_nodelay(true);
                    return (Connection::new(stream, self.room.clone(), permit), address);
                }
                Err(error) => {
                    tracing::warn!("accepting an HTTP connection: {error}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection that ends when its client is silent for too long.
struct Connection {
    stream: TcpStream,
    activity: Activity,
    /// What the requests under way said when it was looked last.
    was_working: bool,
    /// Since when the client has had no request worked on, or has been silent while one was.
    since: Instant,
    look: Pin<Box<Sleep>>,
    room: Arc<Semaphore>,
    _permit: OwnedSemaphorePermit,
}

impl Connection {
    fn new(stream: TcpStream, room: Arc<Semaphore>, permit: OwnedSemaphorePermit) -> Connection {
        let look = Box::pin(tokio::time::sleep(HEAD_LOOK));
        let (activity, since) = (Activity::default(), Instant::now());
        Connection { stream, activity, was_working: false, since, look, room, _permit: permit }
    }

    /// Notes that bytes have come or gone. Those of a head on its way are no reason to wait for longer.
    fn note(&mut self, sent: bool) {
        let working = self.activity.is_working();
        if sent || working || working != self.was_working {
            self.since = Instant::now();
        }
        self.was_working = working;
    }

    /// Ready once the client has been silent for too long.
    fn poll_silence(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        loop {
            let working = self.activity.is_working();
            if working != self.was_working {
                self.was_working = working;
                self.since = Instant::now();
            }
            let most = match working {
                true => IDLE_MAX,
                false if self.room.available_permits() == 0 => HEAD_MAX_WHEN_FULL,
                false => HEAD_MAX,
            };
            let now = Instant::now();
            if now - self.since >= most {
                return Poll::Ready(io::ErrorKind::TimedOut.into());
            }
            ready!(self.look.as_mut().poll(context));
            self.look.as_mut().reset(now + HEAD_LOOK);
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Poll::Ready(read) = Pin::new(&mut self.stream).poll_read(context, buffer) {
            self.note(false);
            return Poll::Ready(read);
        }
        self.poll_silence(context).map(Err)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if let Poll::Ready(written) = Pin::new(&mut self.stream).poll_write(context, bytes) {
            self.note(true);
            return Poll::Ready(written);
        }
        self.poll_silence(context).map(Err)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let Poll::Ready(written) = Pin::new(&mut self.stream).poll_write_vectored(context, slices) {
            self.note(true);
            return Poll::Ready(written);
        }
        self.poll_silence(context).map(Err)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
