//! The table of configuration keys.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::daemon::config::Config;
use crate::daemon::config::DeviceSpec;
use crate::daemon::config::Given;
use crate::daemon::config::UnixEndpoint;
use crate::daemon::quantity::parse_duration;
use crate::daemon::quantity::parse_size;
use crate::daemon::quantity::show_duration;
use crate::daemon::quantity::show_size;
use crate::store::SEGMENT_BYTES_MAX;
use crate::store::SEGMENT_BYTES_MIN;
use crate::units::ByteCount;

/// One key of the configuration.
pub struct Key {
    /// `section.key`, as in the file.
    pub name: &'static str,
    /// The flag of `sinter serve` that sets it, if there is one.
    pub flag: Option<&'static str>,
    /// The default, as one would write it.
    pub default: &'static str,
    /// What it is, in a line.
    pub help: &'static str,
    /// Whether it takes a list (in the environment parted by `;`).
    pub is_list: bool,
    /// Whether its value is a plain number.
    pub is_number: bool,
    /// Sets it; the error says what is wrong with the value.
    pub set: fn(&mut Config, &Given) -> Result<(), String>,
    /// The value in force, such that `set` takes it.
    pub show: fn(&Config) -> Given,
}

impl Key {
    /// The section of the file it stands in.
    #[must_use]
    pub fn section(&self) -> &'static str {
        self.name.split_once('.').map_or(self.name, |(section, _)| section)
    }

    /// Its name within the section.
    #[must_use]
    pub fn bare_name(&self) -> &'static str {
        self.name.split_once('.').map_or(self.name, |(_, key)| key)
    }

    /// The environment variable that sets it.
    #[must_use]
    pub fn variable(&self) -> String {
        format!("SINTER_{}", self.name.replace('.', "_").to_ascii_uppercase())
    }
}

/// Smallest `memory.requests`: one request of the largest size (32 MiB) and what goes with it.
const REQUESTS_MIN: ByteCount = ByteCount(33 << 20);

/// Smallest budget of metadata, of the index, and of log between checkpoints.
const BUDGET_MIN: ByteCount = ByteCount(1 << 20);

/// Largest budget of memory: more is a slip of the pen.
const MEMORY_MAX: ByteCount = ByteCount(1 << 40);

const TEXT: Key = Key {
    name: "",
    flag: None,
    default: "",
    help: "",
    is_list: false,
    is_number: false,
    set: |_, _| Ok(()),
    show: |_| Given::One(String::new()),
};

/// All keys, in the order they are printed.
pub static KEYS: &[Key] = &[
    Key {
        name: "array.name",
        default: "sinter",
        help: "what the array calls itself",
        set: |config, given| {
            let name = one(given)?;
            if name.is_empty() || name.len() > 255 || name.chars().any(char::is_control) {
                return Err("a name has 1 to 255 bytes and no control characters".to_owned());
            }
            config.array_name = name.to_owned();
            Ok(())
        },
        show: |config| Given::One(config.array_name.clone()),
        ..TEXT
    },
    Key {
        name: "pool.devices",
        flag: Some("--device"),
        default: "the default file",
        help: "all files and block devices of the pool, each as PATH or PATH,size=16GiB (made if missing)",
        is_list: true,
        set: |config, given| {
            config.devices = list(given).iter().map(|text| device_spec(text)).collect::<Result<_, _>>()?;
            Ok(())
        },
        show: |config| Given::List(config.devices.iter().map(ToString::to_string).collect()),
        ..TEXT
    },
    Key {
        name: "pool.segment_size",
        default: "auto",
        help: "size of a segment when a pool is made, a power of two from 64KiB to 1GiB; auto chooses by the pool's size",
        set: |config, given| {
            config.segment_size = match one(given)? {
                "auto" => None,
                text => Some(segment_size(text)?),
            };
            Ok(())
        },
        show: |config| Given::One(config.segment_size.map_or_else(|| "auto".to_owned(), show_size)),
        ..TEXT
    },
    Key {
        name: "pool.rated_cycles",
        default: "3000",
        help: "erases of a segment that count as its whole life",
        is_number: true,
        set: |config, given| {
            config.rated_cycles = number(one(given)?, 1, u64::from(u32::MAX))?
                .try_into()
                .map_err(|_| "the number is too large".to_owned())?;
            Ok(())
        },
        show: |config| Given::One(config.rated_cycles.to_string()),
        ..TEXT
    },
    Key {
        name: "api.listen",
        flag: Some("--api"),
        default: "127.0.0.1:8000",
        help: "address and port of REST and metrics; port 0 takes a free one",
        set: |config, given| {
            config.api_listen = address(one(given)?)?;
            Ok(())
        },
        show: |config| Given::One(config.api_listen.to_string()),
        ..TEXT
    },
    Key {
        name: "nbd.listen",
        flag: Some("--nbd"),
        default: "127.0.0.1:10809",
        help: "address and port of NBD, or none; port 0 takes a free one",
        set: |config, given| {
            config.nbd_listen = match one(given)? {
                "none" => None,
                text => Some(address(text)?),
            };
            Ok(())
        },
        show: |config| Given::One(config.nbd_listen.map_or_else(|| "none".to_owned(), |a| a.to_string())),
        ..TEXT
    },
    Key {
        name: "nbd.unix",
        flag: Some("--nbd-unix"),
        default: "auto",
        help: "path of the Unix socket of NBD, or none; auto is nbd.sock in the data directory",
        set: |config, given| {
            config.nbd_unix = match one(given)? {
                "auto" => UnixEndpoint::InDataDirectory,
                "none" => UnixEndpoint::Off,
                "" => return Err("the path is empty".to_owned()),
                path => UnixEndpoint::At(PathBuf::from(path)),
            };
            Ok(())
        },
        show: |config| {
            Given::One(match &config.nbd_unix {
                UnixEndpoint::InDataDirectory => "auto".to_owned(),
                UnixEndpoint::Off => "none".to_owned(),
                UnixEndpoint::At(path) => path.display().to_string(),
            })
        },
        ..TEXT
    },
    Key {
        name: "nbd.connections",
        default: "1024",
        help: "most NBD connections at a time",
        is_number: true,
        set: |config, given| {
            config.nbd_connections = number(one(given)?, 1, 65_536)?
                .try_into()
                .map_err(|_| "the number is too large".to_owned())?;
            Ok(())
        },
        show: |config| Given::One(config.nbd_connections.to_string()),
        ..TEXT
    },
    Key {
        name: "fuse.mountpoint",
        flag: Some("--fuse"),
        default: "none",
        help: "empty directory in which the volumes are mounted as files, or none",
        set: |config, given| {
            config.fuse_mountpoint = match one(given)? {
                "none" => None,
                "" => return Err("the path is empty".to_owned()),
                path => Some(PathBuf::from(path)),
            };
            Ok(())
        },
        show: |config| {
            let path = config.fuse_mountpoint.as_ref();
            Given::One(path.map_or_else(|| "none".to_owned(), |path| path.display().to_string()))
        },
        ..TEXT
    },
    Key {
        name: "cluster.listen",
        flag: Some("--cluster"),
        default: "none",
        help: "address and port where other nodes reach this one, or none; it takes nothing without a certificate",
        set: |config, given| {
            config.cluster_listen = match one(given)? {
                "none" => None,
                text => Some(address(text)?),
            };
            Ok(())
        },
        show: |config| Given::One(config.cluster_listen.map_or_else(|| "none".to_owned(), |a| a.to_string())),
        ..TEXT
    },
    Key {
        name: "cluster.name",
        default: "auto",
        help: "what this node is called in its cluster, when it joins; auto is the name of the machine",
        set: |config, given| {
            config.cluster_name = match one(given)? {
                "auto" => None,
                "" => return Err("the name is empty".to_owned()),
                name if name.len() > 255 || name.chars().any(char::is_control) => {
                    return Err("a name has 1 to 255 bytes and no control characters".to_owned());
                }
                name => Some(name.to_owned()),
            };
            Ok(())
        },
        show: |config| Given::One(config.cluster_name.clone().unwrap_or_else(|| "auto".to_owned())),
        ..TEXT
    },
    Key {
        name: "cluster.mode",
        default: "sync",
        help: "how a node that joins follows: sync, or async for a far one that is never waited for",
        set: |config, given| {
            config.cluster_asynchronous = match one(given)? {
                "sync" => false,
                "async" => true,
                other => return Err(format!("`{other}` is neither sync nor async")),
            };
            Ok(())
        },
        show: |config| Given::One(if config.cluster_asynchronous { "async" } else { "sync" }.to_owned()),
        ..TEXT
    },
    Key {
        name: "memory.metadata",
        default: "256MiB",
        help: "memory for cached metadata, 1MiB to 1TiB",
        set: |config, given| {
            config.memory_metadata = memory(one(given)?, BUDGET_MIN)?;
            Ok(())
        },
        show: |config| Given::One(show_size(config.memory_metadata)),
        ..TEXT
    },
    Key {
        name: "memory.index",
        default: "256MiB",
        help: "memory for the fingerprint index, 1MiB to 1TiB",
        set: |config, given| {
            config.memory_index = memory(one(given)?, BUDGET_MIN)?;
            Ok(())
        },
        show: |config| Given::One(show_size(config.memory_index)),
        ..TEXT
    },
    Key {
        name: "memory.requests",
        default: "64MiB",
        help: "memory for requests in flight, 33MiB to 1TiB",
        set: |config, given| {
            config.memory_requests = memory(one(given)?, REQUESTS_MIN)?;
            Ok(())
        },
        show: |config| Given::One(show_size(config.memory_requests)),
        ..TEXT
    },
    Key {
        name: "memory.ring",
        default: "64MiB",
        help: "memory for recent operations that other nodes may lack, 1MiB to 1TiB; only in a cluster",
        set: |config, given| {
            config.memory_ring = memory(one(given)?, BUDGET_MIN)?;
            Ok(())
        },
        show: |config| Given::One(show_size(config.memory_ring)),
        ..TEXT
    },
    Key {
        name: "checkpoint.log_bytes",
        default: "512MiB",
        help: "log after which a checkpoint is made, at least 1MiB: bounds the time an opening takes",
        set: |config, given| {
            config.checkpoint_log_bytes = size(one(given)?, BUDGET_MIN)?;
            Ok(())
        },
        show: |config| Given::One(show_size(config.checkpoint_log_bytes)),
        ..TEXT
    },
    Key {
        name: "log.sync_after",
        default: "100ms",
        help: "time after which written data is synced though nobody asked, 1ms to 1h",
        set: |config, given| {
            let duration = parse_duration(one(given)?)?;
            if !(Duration::from_millis(1)..=Duration::from_secs(3600)).contains(&duration) {
                return Err("it lies between 1ms and 1h".to_owned());
            }
            config.log_sync_after = duration;
            Ok(())
        },
        show: |config| Given::One(show_duration(config.log_sync_after)),
        ..TEXT
    },
    Key {
        name: "dedup.index",
        default: "dense",
        help: "which fingerprints the index holds: dense, those of all blocks",
        set: |_, given| match one(given)? {
            "dense" => Ok(()),
            "sparse" => Err("`sparse` is not there yet: the index is dense".to_owned()),
            other => Err(format!("`{other}` is no kind of index: it is dense")),
        },
        show: |_| Given::One("dense".to_owned()),
        ..TEXT
    },
    Key {
        name: "scrub.rate",
        default: "64MiB",
        help: "what a scrub reads in a second, at least 1MiB",
        set: |config, given| {
            config.scrub_rate = size(one(given)?, BUDGET_MIN)?;
            Ok(())
        },
        show: |config| Given::One(show_size(config.scrub_rate)),
        ..TEXT
    },
    Key {
        name: "resync.rate",
        default: "none",
        help: "what a node that is compared is sent in a second, at least 1MiB, or none for no limit",
        set: |config, given| {
            config.resync_rate = match one(given)? {
                "none" => None,
                text => Some(size(text, BUDGET_MIN)?),
            };
            Ok(())
        },
        show: |config| Given::One(config.resync_rate.map_or_else(|| "none".to_owned(), show_size)),
        ..TEXT
    },
    Key {
        name: "bookmark.keep",
        default: "30d",
        help: "for how long a bookmark is kept for a node that is away, 1s to 3650d",
        set: |config, given| {
            let duration = parse_duration(one(given)?)?;
            if !(Duration::from_secs(1)..=Duration::from_secs(3650 * 24 * 3600)).contains(&duration) {
                return Err("it lies between 1s and 3650d".to_owned());
            }
            config.bookmark_keep = duration;
            Ok(())
        },
        show: |config| Given::One(show_duration(config.bookmark_keep)),
        ..TEXT
    },
];

fn one(given: &Given) -> Result<&str, String> {
    match given {
        Given::One(text) => Ok(text),
        Given::List(_) => Err("this takes one value, not a list".to_owned()),
    }
}

fn list(given: &Given) -> &[String] {
    match given {
        Given::One(text) => std::slice::from_ref(text),
        Given::List(texts) => texts,
    }
}

fn number(text: &str, min: u64, max: u64) -> Result<u64, String> {
    text.parse()
        .ok()
        .filter(|number| (min..=max).contains(number))
        .ok_or_else(|| format!("`{text}` is not a whole number from {min} to {max}"))
}

fn size(text: &str, min: ByteCount) -> Result<ByteCount, String> {
    let size = parse_size(text)?;
    if size < min {
        return Err(format!("{} is less than {}", show_size(size), show_size(min)));
    }
    Ok(size)
}

fn segment_size(text: &str) -> Result<ByteCount, String> {
    let size = parse_size(text)?;
    if size.0.is_power_of_two() && (SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&size.0) {
        return Ok(size);
    }
    Err(format!("{} is not a power of two from 64KiB to 1GiB", show_size(size)))
}

fn memory(text: &str, min: ByteCount) -> Result<ByteCount, String> {
    let size = size(text, min)?;
    if size > MEMORY_MAX {
        return Err(format!("{} is more than {}", show_size(size), show_size(MEMORY_MAX)));
    }
    Ok(size)
}

/// Reads `ADDR:PORT`; `localhost` is the one name that is known without asking anyone.
fn address(text: &str) -> Result<SocketAddr, String> {
    let numeric = match text.strip_prefix("localhost:") {
        Some(port) => format!("127.0.0.1:{port}"),
        None => text.to_owned(),
    };
    numeric
        .parse()
        .map_err(|_| format!("`{text}` is not ADDR:PORT (write it like 127.0.0.1:8000 or [::1]:8000)"))
}

/// Reads `PATH` or `PATH,size=16GiB`.
///
/// # Errors
/// A sentence that says what is wrong with `text`.
pub fn device_spec(text: &str) -> Result<DeviceSpec, String> {
    let (path, size) = match text.rsplit_once(",size=") {
        Some((path, size)) => (path, Some(parse_size(size)?)),
        None => (text, None),
    };
    if path.is_empty() {
        return Err("the path of a device is empty".to_owned());
    }
    if size == Some(ByteCount(0)) {
        return Err(format!("{path} cannot be made with no size"));
    }
    Ok(DeviceSpec { path: PathBuf::from(path), size })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn load(
        file: &str,
        environment: &[(&str, &str)],
        flags: Vec<crate::daemon::config::Flag>,
    ) -> Result<Config, (String, String)> {
        let directory = std::env::temp_dir().join(format!(
            "sinter-keys-{}-{:?}",
            std::process::id(),
            std::thread::current().id()
        ));
        std::fs::create_dir_all(&directory).unwrap();
        let path = directory.join("sinter.toml");
        std::fs::write(&path, file).unwrap();
        let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let config = Config::load(Some(&path), environment, flags)
            .map_err(|failure| (failure.error.to_string(), failure.hint.unwrap_or_default()));
        std::fs::remove_dir_all(&directory).unwrap();
        config
    }

    #[test]
    fn defaults_are_what_the_table_says() {
        for key in KEYS {
            if let Given::One(shown) = (key.show)(&Config::default()) {
                assert_eq!(shown, key.default, "{}", key.name);
            }
        }
    }

    #[test]
    fn a_printed_configuration_reads_back() {
        let config = Config {
            array_name: "ar\"ray".to_owned(),
            devices: vec![device_spec("/a b,size=3GiB").unwrap(), device_spec("/dev/sdx").unwrap()],
            segment_size: Some(ByteCount(8 << 20)),
            nbd_listen: None,
            nbd_unix: UnixEndpoint::At(PathBuf::from("/run/n.sock")),
            fuse_mountpoint: Some(PathBuf::from("/mnt/volumes of mine")),
            rated_cycles: 7,
            ..Config::default()
        };
        assert_eq!(load(&config.print(), &[], Vec::new()), Ok(config));
        assert_eq!(load(&Config::default().print(), &[], Vec::new()), Ok(Config::default()));
    }

    #[test]
    fn flag_over_environment_over_file() {
        let file = "[memory]\nindex = \"2MiB\"\nmetadata = \"2MiB\"\nrequests = 41943040\n";
        let environment = [("SINTER_MEMORY_INDEX", "3MiB"), ("SINTER_MEMORY_METADATA", "3MiB")];
        let config = load(file, &environment, vec![("memory.index", Given::One("4MiB".to_owned()))]).unwrap();
        assert_eq!(config.memory_index, ByteCount(4 << 20));
        assert_eq!(config.memory_metadata, ByteCount(3 << 20));
        assert_eq!(config.memory_requests, ByteCount(40 << 20));
    }

    #[test]
    fn the_nearest_key_is_near() {
        for (file, hint) in [
            ("[pol]\n", "did you mean `[pool]`?"),
            ("[pol]\ndevice = 1\n", "did you mean `pool.devices`?"),
            ("devices = []\n", "did you mean `pool.devices`?"),
            ("listen = \"x\"\n", "did you mean `api.listen`?"),
            ("[nbd]\nconections = 1\n", "did you mean `nbd.connections`?"),
            ("[checkpoints]\nlogbytes = 1\n", "did you mean `checkpoint.log_bytes`?"),
        ] {
            let (_, found) = load(file, &[], Vec::new()).unwrap_err();
            assert_eq!(found, hint, "{file}");
        }
    }

    #[test]
    fn what_a_start_would_refuse_is_refused_with_the_rest() {
        for (file, error) in [
            ("[pool]\nsegment_size = \"3MiB\"\n", "3MiB is not a power of two from 64KiB to 1GiB"),
            ("[pool]\nsegment_size = 0\n", "not a power of two"),
            ("[dedup]\nindex = \"sparse\"\n", "`sparse` is not there yet"),
            ("[dedup]\nindex = \"wide\"\n", "`wide` is no kind of index"),
        ] {
            let (found, _) = load(file, &[], Vec::new()).unwrap_err();
            assert!(found.contains(error), "{found}");
        }
        assert_eq!(load("[dedup]\nindex = \"dense\"\n", &[], Vec::new()), Ok(Config::default()));
    }

    #[test]
    fn unknown_keys_and_bad_values_name_line_and_nearest_key() {
        let (error, hint) = load("\n[pool]\nsegmentsize = 1\n", &[], Vec::new()).unwrap_err();
        assert!(error.contains("sinter.toml:3: there is no key `pool.segmentsize`"), "{error}");
        assert_eq!(hint, "did you mean `pool.segment_size`?");
        let (error, _) = load("[log]\nsync_after = \"100\"\n", &[], Vec::new()).unwrap_err();
        assert!(error.contains("sinter.toml:2: log.sync_after: `100` has no unit"), "{error}");
        let (error, _) = load("[memory]\nrequests = \"32MiB\"\n", &[], Vec::new()).unwrap_err();
        assert!(error.contains("32MiB is less than 33MiB"), "{error}");
        for key in ["metadata", "index", "requests"] {
            let (error, _) = load(&format!("[memory]\n{key} = \"1PiB\"\n"), &[], Vec::new()).unwrap_err();
            assert!(error.contains("1PiB is more than 1TiB"), "{error}");
        }
        let (error, _) = load("[memory\n", &[], Vec::new()).unwrap_err();
        assert!(error.contains("sinter.toml:1: "), "{error}");
        let (error, hint) = load("", &[("SINTER_MEMORY_INDX", "1GiB")], Vec::new()).unwrap_err();
        assert!(error.contains("SINTER_MEMORY_INDX"), "{error}");
        assert_eq!(hint, "did you mean SINTER_MEMORY_INDEX?");
        let (error, _) = load("[plumbing]\n", &[], Vec::new()).unwrap_err();
        assert!(error.contains("there is no key `plumbing`"), "{error}");
    }

    #[test]
    fn variables_of_other_people_are_left_alone() {
        let environment = [("SINTER_SERVICE_HOST", "10.0.0.1"), ("SINTER_URL", "http://x"), ("PATH", "/bin")];
        assert_eq!(load("", &environment, Vec::new()), Ok(Config::default()));
    }

    #[test]
    fn addresses_and_devices() {
        assert_eq!(address("localhost:80"), Ok(SocketAddr::from(([127, 0, 0, 1], 80))));
        assert!(address("[::1]:80").is_ok());
        for text in ["8000", ":8000", "example.org:80", "127.0.0.1:70000"] {
            assert!(address(text).is_err(), "{text}");
        }
        assert_eq!(device_spec("/x,size=1G").unwrap().size, Some(ByteCount(1 << 30)));
        assert_eq!(device_spec("/x,y").unwrap().path, Path::new("/x,y"));
        for text in ["", ",size=1G", "/x,size=0", "/x,size=many"] {
            assert!(device_spec(text).is_err(), "{text}");
        }
    }
}
