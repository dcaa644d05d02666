//! The configuration: `sinter.toml`, then the environment, then flags; the later one wins.
//!
//! Which keys there are stands in one table (`keys`), which drives the file, the environment,
//! `--print-config` and the documents. What is not in it, or has a bad value, is refused with the place
//! it stands at and the nearest key that exists; nothing is guessed and nothing is ignored.

use std::fmt;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use toml::de::DeTable;
use toml::de::DeValue;

use crate::daemon::failure::Failure;
use crate::daemon::failure::Outcome;
use crate::daemon::keys::KEYS;
use crate::daemon::keys::Key;
use crate::error::ErrorKind;
use crate::units::ByteCount;

/// Everything that can be configured, with the defaults where nothing was said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// What the array calls itself.
    pub array_name: String,
    /// The pool's devices, always all of them; none given means the default file.
    pub devices: Vec<DeviceSpec>,
    /// Size of a segment when a pool is made; `None` chooses by the pool's size.
    pub segment_size: Option<ByteCount>,
    /// How many erases of a segment count as its whole life.
    pub rated_cycles: u32,
    /// Where REST and metrics are served.
    pub api_listen: SocketAddr,
    /// Where NBD is served over TCP, if it is.
    pub nbd_listen: Option<SocketAddr>,
    /// Where NBD is served over a Unix socket.
    pub nbd_unix: UnixEndpoint,
    /// Most NBD connections at a time.
    pub nbd_connections: usize,
    /// Where the volumes are mounted as files, if they are.
    pub fuse_mountpoint: Option<PathBuf>,
    /// Where other nodes reach this one, if they do.
    pub cluster_listen: Option<SocketAddr>,
    /// What this node is called when it joins a cluster; `None` is the name of the machine.
    pub cluster_name: Option<String>,
    /// Whether it is never waited for.
    pub cluster_asynchronous: bool,
    /// Budget of cached metadata.
    pub memory_metadata: ByteCount,
    /// Budget of the fingerprint index.
    pub memory_index: ByteCount,
    /// Budget of requests in flight.
    pub memory_requests: ByteCount,
    /// Budget of recent operations kept for other nodes.
    pub memory_ring: ByteCount,
    /// A checkpoint is made when the log since the last one has this size.
    pub checkpoint_log_bytes: ByteCount,
    /// What was written is synced at the latest after this time.
    pub log_sync_after: Duration,
    /// What a scrub reads in a second.
    pub scrub_rate: ByteCount,
    /// What is sent in a second to a node that is compared; `None` is no limit.
    pub resync_rate: Option<ByteCount>,
    /// For how long a bookmark is kept for a node that is away.
    pub bookmark_keep: Duration,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            array_name: "sinter".to_owned(),
            devices: Vec::new(),
            segment_size: None,
            rated_cycles: 3000,
            api_listen: SocketAddr::from(([127, 0, 0, 1], 8000)),
            nbd_listen: Some(SocketAddr::from(([127, 0, 0, 1], 10809))),
            nbd_unix: UnixEndpoint::InDataDirectory,
            nbd_connections: 1024,
            fuse_mountpoint: None,
            cluster_listen: None,
            cluster_name: None,
            cluster_asynchronous: false,
            memory_metadata: ByteCount(256 << 20),
            memory_index: ByteCount(256 << 20),
            memory_requests: ByteCount(64 << 20),
            memory_ring: ByteCount(64 << 20),
            checkpoint_log_bytes: ByteCount(512 << 20),
            log_sync_after: Duration::from_millis(100),
            scrub_rate: ByteCount(64 << 20),
            resync_rate: None,
            bookmark_keep: Duration::from_secs(30 * 24 * 3600),
        }
    }
}

/// One device of the pool, as `PATH` or `PATH,size=16GiB`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceSpec {
    /// A regular file or a block device.
    pub path: PathBuf,
    /// The file is made in this size where it is missing.
    pub size: Option<ByteCount>,
}

impl fmt::Display for DeviceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        if let Some(size) = self.size {
            write!(f, ",size={}", crate::daemon::quantity::show_size(size))?;
        }
        Ok(())
    }
}

/// Where the Unix socket for NBD is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UnixEndpoint {
    /// `nbd.sock` in the data directory.
    InDataDirectory,
    /// Nowhere.
    Off,
    /// At this path.
    At(PathBuf),
}

/// A value as it was given, before a key has made sense of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Given {
    /// One text (or number).
    One(String),
    /// A list of texts.
    List(Vec<String>),
}

/// A key set by a flag: the key's name and the value.
pub type Flag = (&'static str, Given);

impl Config {
    /// Puts the configuration together: defaults, the file (if any), the environment, flags.
    ///
    /// # Errors
    /// `NotFound` for a file that is not there; `Invalid` with place, reason and nearest key.
    pub fn load(
        file: Option<&Path>,
        environment: impl Iterator<Item = (String, String)>,
        flags: Vec<Flag>,
    ) -> Outcome<Config> {
        let mut config = Config::default();
        if let Some(path) = file {
            let text = std::fs::read_to_string(path).map_err(|error| {
                let kind = match error.kind() {
                    std::io::ErrorKind::NotFound => ErrorKind::NotFound,
                    _ => ErrorKind::Invalid,
                };
                Failure::new(kind, format!("reading the configuration {}: {error}", path.display()))
                    .hint("--config FILE names it; `sinter serve --print-config` prints one to begin with")
            })?;
            config.apply_file(&text, &path.display().to_string())?;
        }
        config.apply_environment(environment)?;
        for (name, value) in flags {
            let key = find(name).expect("flags name keys of the table");
            let place = key.flag.unwrap_or(name);
            (key.set)(&mut config, &value).map_err(|reason| bad_value(place, &reason, key))?;
        }
        Ok(config)
    }

    fn apply_file(&mut self, text: &str, name: &str) -> Outcome {
        let table = DeTable::parse(text).map_err(|error| {
            let line = error.span().map_or(1, |span| line_of(text, span.start));
            Failure::new(ErrorKind::Invalid, format!("{name}:{line}: {}", error.message()))
                .hint("the file is TOML: [section] headers and key = value lines")
        })?;
        for (section, keys) in table.get_ref() {
            let section_place = format!("{name}:{}", line_of(text, section.span().start));
            let section = section.get_ref();
            let Some(keys) = keys.get_ref().as_table() else {
                return Err(unknown_key(&section_place, section));
            };
            if keys.is_empty() && !KEYS.iter().any(|key| key.section() == section.as_ref()) {
                return Err(unknown_key(&section_place, section));
            }
            for (key, value) in keys {
                let place = format!("{name}:{}", line_of(text, key.span().start));
                let full = format!("{section}.{}", key.get_ref());
                let key = find(&full).ok_or_else(|| unknown_key(&place, &full))?;
                let given = given_in_file(value.get_ref())
                    .map_err(|reason| bad_value(&format!("{place}: {full}"), &reason, key))?;
                (key.set)(self, &given)
                    .map_err(|reason| bad_value(&format!("{place}: {full}"), &reason, key))?;
            }
        }
        Ok(())
    }

    fn apply_environment(&mut self, environment: impl Iterator<Item = (String, String)>) -> Outcome {
        for (variable, value) in environment {
            let Some(rest) = variable.strip_prefix("SINTER_") else { continue };
            if let Some(key) = KEYS.iter().find(|key| key.variable() == variable) {
                let given = if key.is_list {
                    Given::List(value.split(';').filter(|part| !part.is_empty()).map(str::to_owned).collect())
                } else {
                    Given::One(value)
                };
                (key.set)(self, &given).map_err(|reason| bad_value(&variable, &reason, key))?;
            } else if KEYS.iter().any(|key| {
                rest.strip_prefix(&key.section().to_ascii_uppercase())
                    .is_some_and(|rest| rest.starts_with('_'))
            }) {
                // Other sections are left alone: container platforms set SINTER_PORT_... by themselves.
                let dotted = rest.to_ascii_lowercase().replacen('_', ".", 1);
                let near = nearest(&dotted);
                return Err(Failure::new(
                    ErrorKind::Invalid,
                    format!("{variable}: there is no key `{dotted}`"),
                )
                .hint(format!("did you mean {}?", near.variable())));
            }
        }
        Ok(())
    }

    /// The whole configuration as a file that says the same.
    #[must_use]
    pub fn print(&self) -> String {
        let mut text = String::new();
        let mut section = "";
        for key in KEYS {
            if key.section() != section {
                if !section.is_empty() {
                    text.push('\n');
                }
                section = key.section();
                let _ = writeln!(text, "[{section}]");
            }
            let value = match (key.show)(self) {
                Given::One(value) if key.is_number => value,
                Given::One(value) => toml::Value::String(value).to_string(),
                Given::List(values) => {
                    toml::Value::Array(values.into_iter().map(toml::Value::String).collect()).to_string()
                }
            };
            let _ = writeln!(text, "# {}", key.help);
            let _ = writeln!(text, "{} = {value}", key.bare_name());
        }
        text
    }
}

/// The file that is read when none is named: `sinter/sinter.toml` in the user's configuration
/// directory, else in `/etc`; `None` where neither exists.
#[must_use]
pub fn default_file(environment: impl Fn(&str) -> Option<String>) -> Option<PathBuf> {
    let user = environment("XDG_CONFIG_HOME")
        .filter(|path| path.starts_with('/'))
        .map(PathBuf::from)
        .or_else(|| environment("HOME").map(|home| Path::new(&home).join(".config")));
    let user = user.map(|directory| directory.join("sinter/sinter.toml"));
    user.into_iter().chain([PathBuf::from("/etc/sinter/sinter.toml")]).find(|path| path.exists())
}

fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

fn given_in_file(value: &DeValue<'_>) -> Result<Given, String> {
    match value {
        DeValue::Array(items) => items
            .iter()
            .map(|item| item.get_ref().as_str().map(str::to_owned).ok_or("a list holds texts in quotes"))
            .collect::<Result<Vec<_>, _>>()
            .map(Given::List)
            .map_err(str::to_owned),
        DeValue::String(text) => Ok(Given::One(text.to_string())),
        DeValue::Integer(number) if number.radix() == 10 => Ok(Given::One(number.as_str().replace('_', ""))),
        other => Err(format!("a value of type {} does not fit here", other.type_str())),
    }
}

fn line_of(text: &str, position: usize) -> usize {
    text.bytes().take(position).filter(|byte| *byte == b'\n').count() + 1
}

fn bad_value(place: &str, reason: &str, key: &Key) -> Failure {
    Failure::new(ErrorKind::Invalid, format!("{place}: {reason}"))
        .hint(format!("{} is: {} (default {})", key.name, key.help, key.default))
}

fn unknown_key(place: &str, name: &str) -> Failure {
    Failure::new(ErrorKind::Invalid, format!("{place}: there is no key `{name}`"))
        .hint(format!("did you mean {}?", nearest_word(name)))
}

/// The key or the section that a word most likely stands for: one without a point is either a section, or a key
/// without its section.
fn nearest_word(name: &str) -> String {
    let near = nearest(name);
    if name.contains('.') {
        return format!("`{}`", near.name);
    }
    let section = KEYS.iter().map(Key::section).min_by_key(|section| distance(name, section));
    match section.filter(|section| distance(name, section) <= distance(name, near.bare_name())) {
        Some(section) => format!("`[{section}]`"),
        None => format!("`{}`", near.name),
    }
}

fn nearest(name: &str) -> &'static Key {
    let by = |key: &&Key| match name.split_once('.') {
        Some((section, bare)) => unlike(section, key.section()) + unlike(bare, key.bare_name()),
        None => distance(name, key.bare_name()),
    };
    KEYS.iter().min_by_key(by).expect("the table is not empty")
}

/// How much of the longer word differs, in thousandths: a short key is not near to everything.
fn unlike(from: &str, to: &str) -> usize {
    distance(from, to) * 1000 / from.chars().count().max(to.chars().count()).max(1)
}

/// How many characters must be put in, taken out or replaced to make one of the other (Levenshtein).
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    // A key is a few dozen characters; what is longer is cut, so that a hostile file costs nothing.
    for (i, a) in from.chars().take(200).enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in to.iter().enumerate() {
            let replaced = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[to.len()]
}
