//! A load of real data: each unique block of an image written once to a volume over NBD, because
//! data made up by a load generator compresses several times faster than what people store.
//!
//! One thread, one connection over a Unix socket, a window of requests in flight. It speaks the
//! plainest NBD there is (option EXPORT_NAME, simple replies), so that it measures any server alike.
//! `scripts/bench-peers` calls it for its `real` rows; it prints one line of JSON.

mod image;

use std::collections::HashMap;
use std::error::Error;
use std::io::{self, BufReader, Read, Write};
use std::ops::ControlFlow;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use image::BLOCK_BYTES;

// NBD protocol, "Newstyle negotiation" and "Transmission phase".
const GREETING: &[u8; 16] = b"NBDMAGICIHAVEOPT";
const OPTION_MAGIC: &[u8; 8] = b"IHAVEOPT";
const OPTION_EXPORT_NAME: u32 = 1;
/// Fixed newstyle, and no padding after the export's size.
const CLIENT_FLAGS: u32 = 0b11;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
const COMMAND_WRITE: u16 = 1;
const COMMAND_DISCONNECT: u16 = 2;
const COMMAND_FLUSH: u16 = 3;

/// Writes each unique block of an image once to a volume over NBD.
#[derive(Parser)]
struct Options {
    /// Unix socket of the server.
    #[arg(long)]
    socket: Option<PathBuf>,
    /// Name of the export.
    #[arg(long, default_value = "")]
    export: String,
    /// Image whose blocks are written.
    #[arg(long)]
    image: Option<PathBuf>,
    /// Bytes of one request: a multiple of 4096.
    #[arg(long, default_value_t = BLOCK_BYTES)]
    block: usize,
    /// Requests in flight.
    #[arg(long, default_value_t = 32)]
    depth: usize,
    /// Where the requests go.
    #[arg(long, value_enum, default_value_t = Order::Sequential)]
    order: Order,
    /// At most this much of the image's unique data.
    #[arg(long, default_value_t = 2 << 30)]
    bytes_max: usize,
    /// Ends after this time, or when all is written.
    #[arg(long)]
    seconds: Option<f64>,
    /// A FLUSH after each write (at depth 1).
    #[arg(long)]
    flush_each: bool,
    /// A FLUSH at the end, within the measured time.
    #[arg(long)]
    flush_at_end: bool,
    /// What `cargo bench` adds.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Order {
    Sequential,
    Random,
}

/// One connection in the transmission phase.
struct Connection {
    requests: UnixStream,
    replies: BufReader<UnixStream>,
    outgoing: Vec<u8>,
    volume_bytes: u64,
}

impl Connection {
    fn open(socket: &Path, export: &str) -> io::Result<Connection> {
        let mut stream = UnixStream::connect(socket)?;
        let mut greeting = [0u8; 18];
        stream.read_exact(&mut greeting)?;
        if &greeting[..16] != GREETING {
            return Err(io::Error::other("this is no newstyle NBD server"));
        }
        let mut hello = CLIENT_FLAGS.to_be_bytes().to_vec();
        hello.extend_from_slice(OPTION_MAGIC);
        hello.extend_from_slice(&OPTION_EXPORT_NAME.to_be_bytes());
        hello.extend_from_slice(&u32::try_from(export.len()).map_err(io::Error::other)?.to_be_bytes());
        hello.extend_from_slice(export.as_bytes());
        stream.write_all(&hello)?;
        let mut size = [0u8; 8];
        let mut flags = [0u8; 2];
        let refused =
            |error: io::Error| io::Error::new(error.kind(), format!("export '{export}' refused: {error}"));
        stream.read_exact(&mut size).map_err(refused)?;
        stream.read_exact(&mut flags)?;
        let replies = BufReader::with_capacity(64 << 10, stream.try_clone()?);
        Ok(Connection {
            requests: stream,
            replies,
            outgoing: Vec::new(),
            volume_bytes: u64::from_be_bytes(size),
        })
    }

    /// Notes a request; it leaves with the next `send`.
    fn request(&mut self, command: u16, cookie: u64, offset: u64, length: usize) {
        self.outgoing.extend_from_slice(&REQUEST_MAGIC.to_be_bytes());
        self.outgoing.extend_from_slice(&0u16.to_be_bytes());
        self.outgoing.extend_from_slice(&command.to_be_bytes());
        self.outgoing.extend_from_slice(&cookie.to_be_bytes());
        self.outgoing.extend_from_slice(&offset.to_be_bytes());
        let length = u32::try_from(length).expect("a request is at most 32 MiB");
        self.outgoing.extend_from_slice(&length.to_be_bytes());
    }

    fn send(&mut self) -> io::Result<()> {
        self.requests.write_all(&self.outgoing)?;
        self.outgoing.clear();
        Ok(())
    }

    /// Waits for one reply and gives its cookie.
    fn reply(&mut self) -> io::Result<u64> {
        let mut reply = [0u8; 16];
        self.replies.read_exact(&mut reply)?;
        let number = |at: usize| u32::from_be_bytes([reply[at], reply[at + 1], reply[at + 2], reply[at + 3]]);
        if number(0) != SIMPLE_REPLY_MAGIC {
            return Err(io::Error::other("the server sent no simple reply"));
        }
        if number(4) != 0 {
            return Err(io::Error::other(format!("the server answered error {}", number(4))));
        }
        Ok(u64::from(number(8)) << 32 | u64::from(number(12)))
    }

    /// Whether another reply has already been received.
    fn has_reply(&self) -> bool {
        self.replies.buffer().len() >= 16
    }

    fn flush(&mut self) -> io::Result<()> {
        self.request(COMMAND_FLUSH, u64::MAX, 0, 0);
        self.send()?;
        self.reply().map(|_| ())
    }
}

/// What a run did.
struct Done {
    ios: u64,
    bytes: u64,
    elapsed: Duration,
    latencies: Vec<Duration>,
}

#[expect(clippy::disallowed_methods, reason = "a bench reads the clock")]
fn now() -> Instant {
    Instant::now()
}

/// Keeps `depth` writes in flight until the data or the time is over.
fn run(connection: &mut Connection, options: &Options, data: &[u8]) -> io::Result<Done> {
    let offsets = offsets(data.len() / options.block, options.order);
    let limit = options.seconds.map(Duration::from_secs_f64);
    let begin = now();
    let mut sent: HashMap<u64, Instant> = HashMap::new();
    let mut latencies = Vec::new();
    let mut next = 0;
    loop {
        let in_time = limit.is_none_or(|limit| begin.elapsed() < limit);
        while in_time && sent.len() < options.depth && next < offsets.len() {
            let payload = &data[next * options.block..][..options.block];
            connection.request(
                COMMAND_WRITE,
                next as u64,
                offsets[next] * options.block as u64,
                payload.len(),
            );
            connection.outgoing.extend_from_slice(payload);
            sent.insert(next as u64, now());
            next += 1;
            if connection.outgoing.len() >= 256 << 10 {
                connection.send()?;
            }
        }
        connection.send()?;
        if sent.is_empty() {
            break;
        }
        loop {
            let cookie = connection.reply()?;
            let when = sent.remove(&cookie).ok_or_else(|| io::Error::other("a reply to no request"))?;
            latencies.push(when.elapsed());
            if !connection.has_reply() {
                break;
            }
        }
        if options.flush_each {
            connection.flush()?;
        }
    }
    if options.flush_at_end {
        connection.flush()?;
    }
    let ios = latencies.len() as u64;
    Ok(Done { ios, bytes: ios * options.block as u64, elapsed: begin.elapsed(), latencies })
}

/// Where each request goes, in requests from the volume's begin: a permutation.
fn offsets(count: usize, order: Order) -> Vec<u64> {
    let mut offsets: Vec<u64> = (0..count as u64).collect();
    if matches!(order, Order::Random) {
        // Fisher and Yates, drawn with xorshift64: the same order in each run.
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        for last in (1..count).rev() {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let other = usize::try_from(state % (last as u64 + 1)).expect("below count");
            offsets.swap(last, other);
        }
    }
    offsets
}

/// The image's unique blocks one behind the other, as many whole requests as fit.
fn load(image: &Path, options: &Options) -> io::Result<Vec<u8>> {
    let mut data = Vec::new();
    image::for_each_unique_block(image, |block| {
        data.extend_from_slice(block);
        if data.len() + BLOCK_BYTES > options.bytes_max {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    })?;
    data.truncate(data.len() / options.block * options.block);
    Ok(data)
}

fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::parse();
    let (Some(socket), Some(image)) = (&options.socket, &options.image) else {
        // `cargo bench` without arguments runs every bench.
        writeln!(io::stderr(), "real_data_load: give --socket and --image; scripts/bench-peers does")?;
        return Ok(());
    };
    if options.block == 0 || !options.block.is_multiple_of(BLOCK_BYTES) || options.block > 32 << 20 {
        return Err("--block: a multiple of 4096, at most 32 MiB".into());
    }
    if options.depth == 0 || (options.flush_each && options.depth != 1) {
        return Err("--depth: at least 1, and exactly 1 with --flush-each".into());
    }
    let data = load(image, &options)?;
    let mut connection = Connection::open(socket, &options.export)?;
    if connection.volume_bytes < data.len() as u64 {
        return Err(
            format!("the volume has {} bytes, the data {}", connection.volume_bytes, data.len()).into()
        );
    }
    let mut done = run(&mut connection, &options, &data)?;
    connection.request(COMMAND_DISCONNECT, 0, 0, 0);
    connection.send()?;
    done.latencies.sort_unstable();
    let microseconds = |latency: Option<&Duration>| latency.map_or(0.0, |l| l.as_secs_f64() * 1e6);
    let percentile = |percent: f64| {
        let rank = (done.latencies.len() as f64 * percent / 100.0) as usize;
        microseconds(done.latencies.get(rank.min(done.latencies.len().saturating_sub(1))))
    };
    let mean =
        done.latencies.iter().sum::<Duration>().as_secs_f64() * 1e6 / done.latencies.len().max(1) as f64;
    let result = serde_json::json!({
        "ios": done.ios,
        "bytes": done.bytes,
        "seconds": done.elapsed.as_secs_f64(),
        "latency_us": { "mean": mean, "p99": percentile(99.0), "p99.9": percentile(99.9) },
    });
    writeln!(io::stdout(), "{result}")?;
    Ok(())
}
