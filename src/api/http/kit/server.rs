//! Connections: accepted up to a limit, each with HTTP/1 or HTTP/2 (h2c by prior knowledge), and closed when they stall:
//! when a request's head is not complete in time, when there is no request for long, or when the client does not read the
//! answer.

use std::{
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{ConnectInfo, Request},
    http::Version,
};
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use metrics::gauge;
use orgstream_events::Chain;
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, Sleep, sleep, sleep_until, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt;

use super::{bounds::Slot, reply};
use crate::app::problem::Problem;

/// The idle timeout of a connection between two requests.
const IDLE: Duration = Duration::from_secs(75);
/// The timeout of a request's head, from its first byte; and of the first byte of a new connection.
const HEAD: Duration = Duration::from_secs(10);
/// The timeout of an answer of which the client reads nothing.
const STALLED: Duration = Duration::from_secs(60);
/// How long a closing connection may take to deliver its last message.
const FAREWELL: Duration = Duration::from_secs(1);
/// The pause of accepting after the system had no room for a connection.
const NO_ROOM: Duration = Duration::from_millis(200);
/// The longest head of a request over HTTP/1; the read-ahead of a body.
const HEAD_BYTES: usize = 32 << 10;
/// The maximum number of concurrent requests on one connection of HTTP/2.
const MULTIPLEXED: u32 = 128;
/// The read-ahead of bodies on HTTP/2, of one and of all of a connection.
const WINDOWS: (u32, u32) = (64 << 10, 128 << 10);
/// The interval of pings on a connection of HTTP/2.
const PING: Duration = Duration::from_secs(20);
/// The kernel's buffer of an answer for a client that does not read: its bytes cannot be recalled, even if the client has
/// lost access. In bytes; Linux takes twice that.
const SEND_BUFFER: usize = 256 << 10;
/// The maximum number of connections over the limit that get an answer at the same time; others are closed without one.
const TOLD: usize = 64;

/// Serves requests until `stop`, and then those in flight to their end. `room` is asked for each connection.
pub(crate) async fn serve(
    listener: TcpListener,
    router: Router,
    room: impl Fn(SocketAddr) -> Option<[Slot; 2]>,
    stop: CancellationToken,
) {
    let (connections, protocol) = (TaskTracker::new(), Arc::new(protocol()));
    let telling = Arc::new(Semaphore::new(TOLD));
    while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) if is_of_one_connection(&error) => continue,
            Err(error) => {
                tracing::warn!(error = %Chain(&error), "no connection can be accepted at the moment");
                sleep(NO_ROOM).await;
                continue;
            }
        };
        let Some(slots) = room(peer) else {
            if let Ok(turn) = Arc::clone(&telling).try_acquire_owned() {
                tokio::spawn(refuse(stream, turn));
            }
            continue;
        };
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(error = %Chain(&error), "a connection waits to fill its packets");
        }
        if let Err(error) = SockRef::from(&stream).set_send_buffer_size(SEND_BUFFER) {
            tracing::debug!(error = %Chain(&error), "a connection keeps as much as the kernel likes");
        }
        let connection =
            Connection { router: router.clone(), peer, protocol: Arc::clone(&protocol), stop: stop.clone() };
        connections.spawn(async move {
            connection.run(stream).await;
            drop(slots);
        });
    }
    connections.close();
    connections.wait().await;
}

fn protocol() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().max_buf_size(HEAD_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MULTIPLEXED)
        .initial_stream_window_size(WINDOWS.0)
        .initial_connection_window_size(WINDOWS.1)
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING);
    builder
}

fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

/// Answers that there is no room, in HTTP/1, and closes.
async fn refuse(mut stream: TcpStream, _turn: OwnedSemaphorePermit) {
    let problem = Problem::too_many_connections();
    let body = reply::json_bytes(&problem).unwrap_or_default();
    let head = format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/problem+json\r\nretry-after: 1\r\n\
         cache-control: no-store\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let told = async {
        stream.write_all(&[head.as_bytes(), &body].concat()).await?;
        stream.shutdown().await?;
        // Unread bytes at the closing of a connection would discard the answer.
        let mut rest = [0; 1_024];
        while stream.read(&mut rest).await? > 0 {}
        io::Result::Ok(())
    };
    let _ = timeout(FAREWELL, told).await;
}

struct Connection {
    router: Router,
    peer: SocketAddr,
    protocol: Arc<auto::Builder<TokioExecutor>>,
    stop: CancellationToken,
}

impl Connection {
    async fn run(self, stream: TcpStream) {
        let open = gauge!("orgstream_http_connections");
        open.increment(1);
        let activity = Arc::new(Activity::new());
        let (seen, router, peer) = (Arc::clone(&activity), self.router, self.peer);
        let service = service_fn(move |request: hyper::Request<Incoming>| {
            let under_way = Activity::begin(&seen, request.version());
            let mut request: Request = request.map(Body::new);
            request.extensions_mut().insert(ConnectInfo(peer));
            let answered = router.clone().oneshot(request);
            async move { answered.await.map(|response| response.map(|body| held(body, under_way))) }
        });
        let io = TokioIo::new(Watched { io: stream, activity: Arc::clone(&activity), stalled: None });
        let mut connection = pin!(self.protocol.serve_connection(io, service));
        let ends = tokio::select! {
            served = &mut connection => Some(served),
            () = activity.nothing_comes() => None,
            () = self.stop.cancelled() => {
                connection.as_mut().graceful_shutdown();
                tokio::select! {
                    served = &mut connection => Some(served),
                    () = activity.nothing_comes() => None,
                }
            }
        };
        let ended = match ends {
            Some(served) => served,
            None => {
                connection.as_mut().graceful_shutdown();
                timeout(FAREWELL, connection).await.unwrap_or(Ok(()))
            }
        };
        if let Err(error) = ended {
            tracing::debug!(error = %Chain(error.as_ref()), "a connection broke off");
        }
        open.decrement(1);
    }
}

/// The activity of a connection, in milliseconds since it was opened.
struct Activity {
    opened: Instant,
    under_way: AtomicUsize,
    served: AtomicBool,
    is_http2: AtomicBool,
    /// When the last request ended.
    quiet_since: AtomicU64,
    /// When the first byte came after that; 0 while there is none.
    head_since: AtomicU64,
}

impl Activity {
    fn new() -> Self {
        Self {
            opened: Instant::now(),
            under_way: AtomicUsize::new(0),
            served: AtomicBool::new(false),
            is_http2: AtomicBool::new(false),
            quiet_since: AtomicU64::new(0),
            head_since: AtomicU64::new(0),
        }
    }

    fn now(&self) -> u64 {
        // Never 0, which stands for nothing.
        u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX).max(1)
    }

    fn begin(activity: &Arc<Self>, version: Version) -> UnderWay {
        activity.under_way.fetch_add(1, Ordering::Relaxed);
        activity.served.store(true, Ordering::Relaxed);
        // Bytes between two requests of HTTP/2 need not be the next one's head.
        activity.is_http2.store(version == Version::HTTP_2, Ordering::Relaxed);
        UnderWay(Arc::clone(activity))
    }

    fn came(&self) {
        if self.under_way.load(Ordering::Relaxed) == 0 {
            let _ = self.head_since.compare_exchange(0, self.now(), Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// Returns when the connection times out, without further activity.
    fn due(&self) -> Option<Instant> {
        if self.under_way.load(Ordering::Relaxed) > 0 {
            return None;
        }
        let (quiet, head) = (self.quiet_since.load(Ordering::Relaxed), self.head_since.load(Ordering::Relaxed));
        let idle = quiet + millis(IDLE);
        let due = if !self.served.load(Ordering::Relaxed) {
            millis(HEAD)
        } else if head > 0 && !self.is_http2.load(Ordering::Relaxed) {
            idle.min(head + millis(HEAD))
        } else {
            idle
        };
        Some(self.opened + Duration::from_millis(due))
    }

    /// Returns when the connection has timed out.
    async fn nothing_comes(&self) {
        loop {
            let soon = Instant::now() + HEAD / 2;
            match self.due() {
                Some(due) if due <= Instant::now() => return,
                Some(due) => sleep_until(due.min(soon)).await,
                None => sleep_until(soon).await,
            }
        }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// One request of a connection, until its answer was handed over.
struct UnderWay(Arc<Activity>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.quiet_since.store(self.0.now(), Ordering::Relaxed);
        self.0.head_since.store(0, Ordering::Relaxed);
        self.0.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Returns a body that holds something until its end.
pub(crate) fn held<G: Send + 'static>(body: Body, guard: G) -> Body {
    Body::new(Held { body, guard: Mutex::new(Some(guard)) })
}

struct Held<G> {
    body: Body,
    /// Behind a lock only so that it may be of any type.
    guard: Mutex<Option<G>>,
}

impl<G: Send + 'static> HttpBody for Held<G> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if frame.is_none() {
            self.guard.lock().unwrap_or_else(PoisonError::into_inner).take();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<G> Unpin for Held<G> {}

/// A stream that notes incoming bytes, and aborts when outgoing ones are not taken.
struct Watched {
    io: TcpStream,
    activity: Arc<Activity>,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl Watched {
    fn written<T>(&mut self, written: Poll<io::Result<T>>, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(STALLED)));
        ready!(stalled.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read the answer")))
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(context, buffer))?;
        if buffer.filled().len() > before {
            self.activity.came();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(context, bytes);
        self.written(written, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(context, slices);
        self.written(written, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.io).poll_flush(context);
        self.written(flushed, context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}
