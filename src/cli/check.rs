//! `sinter check`: looks at a pool that nobody serves.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use clap::Args;

use crate::cli::output;
use crate::cli::progress::Progress;
use crate::cli::volume::one_line;
use crate::daemon;
use crate::daemon::config;
use crate::daemon::config::Config;
use crate::daemon::config::Flag;
use crate::daemon::config::Given;
use crate::daemon::failure::Failure;
use crate::daemon::failure::Outcome;
use crate::daemon::pool;
use crate::daemon::quantity::round_size;
use crate::error::ErrorKind;
use crate::format::catalog::Record;
use crate::format::catalog::RecordKind;
use crate::store;
use crate::store::CheckMode;
use crate::store::CheckedObject;
use crate::store::Fault;
use crate::store::Place;
use crate::units::ByteCount;
use crate::units::ObjectNumber;
use crate::units::Uuid;

/// `sinter check`.
#[derive(Debug, Args)]
pub struct Check {
    /// Configuration file, for the pool's devices
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where the pool file is [default: ~/.local/share/sinter]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// A device of the pool; all of them must be given
    #[arg(long = "device", value_name = "PATH")]
    devices: Vec<String>,
    /// Look at the last checkpoint only, and write nothing
    #[arg(long)]
    no_recovery: bool,
    /// Put right what can be counted anew, and give up what cannot be read: an I/O error until it is written again
    #[arg(long, conflicts_with = "no_recovery")]
    repair: bool,
    /// With --repair: do not ask
    #[arg(long, short = 'y', requires = "repair")]
    yes: bool,
}

/// Checks the pool; each fault is a line on standard output.
///
/// # Errors
/// `Corrupt` where faults were found; what keeps the pool from being looked at.
pub fn run(check: Check) -> Outcome {
    let variable = |name: &str| std::env::var(name).ok();
    let file = check.config.or_else(|| config::default_file(variable));
    let environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let flags: Vec<Flag> = match check.devices.is_empty() {
        true => Vec::new(),
        false => vec![("pool.devices", Given::List(check.devices))],
    };
    let config = Config::load(file.as_deref(), environment, flags)?;
    let data_directory = match check.data_dir {
        Some(path) => path,
        None => pool::default_data_directory(variable)?,
    };
    let devices = pool::open_devices(&pool::device_specs(&config, &data_directory))?;
    let mode = match (check.no_recovery, check.repair) {
        (true, _) => CheckMode::LastCheckpointOnly,
        (false, true) => CheckMode::Repair,
        (false, false) => CheckMode::AfterRecovery,
    };
    if check.repair {
        output::confirm("What cannot be read will be given up, with no way back.", check.yes)?;
    }
    let mut progress = Progress::blocks(if check.repair { "repairing" } else { "checking" });
    let mut show = |done: u64, all: u64| progress.show(done, Some(all));
    let options = daemon::store_options(&config, false);
    let report = store::check(devices, options, daemon::environment(), mode, &mut show)?;
    drop(progress);
    for repair in &report.repairs {
        output::data(format!("repaired: {}\n", repair.what))?;
    }
    if report.repairs_more > 0 {
        output::data(format!("and {} repairs more\n", report.repairs_more))?;
    }
    let names = Names::of(&report.objects);
    for fault in &report.faults {
        output::data(format!("{}{}\n", fault.what, names.places(fault)))?;
    }
    if report.faults_more > 0 {
        output::data(format!("and {} faults more\n", report.faults_more))?;
    }
    let faults = report.faults.len() as u64 + report.faults_more;
    output::note(&format!(
        "{}, {}, {} map nodes, {} blocks, {} verified: {}",
        counted(names.volumes, "volume"),
        counted(names.snapshots, "snapshot"),
        report.nodes,
        report.blocks,
        round_size(ByteCount(report.bytes_verified)),
        counted(faults, "fault")
    ));
    if faults == 0 {
        return Ok(());
    }
    let hint = match mode {
        _ if report.log_is_damaged => {
            "only `sinter serve --accept-loss` goes on from a damaged log: with what is intact, without what came later"
        }
        CheckMode::Repair => {
            "a log that is damaged is given up by `sinter serve --accept-loss`, not by a repair"
        }
        _ => "what is damaged reads as an I/O error, and must come from a copy; --repair mends the rest",
    };
    Err(Failure::new(ErrorKind::Corrupt, format!("the pool has {}", counted(faults, "fault"))).hint(hint))
}

/// So many of them; `noun` takes an s where there is not one.
pub(super) fn counted(number: u64, noun: &str) -> String {
    match number {
        0 => format!("no {noun}s"),
        1 => format!("1 {noun}"),
        _ => format!("{number} {noun}s"),
    }
}

/// What the pool's objects are called.
struct Names {
    by_number: BTreeMap<ObjectNumber, (String, ByteCount)>,
    volumes: u64,
    snapshots: u64,
}

impl Names {
    fn of(objects: &[CheckedObject]) -> Names {
        let mut names = Names { by_number: BTreeMap::new(), volumes: 0, snapshots: 0 };
        let records: Vec<Option<Record>> =
            objects.iter().map(|object| Record::decode(&object.opaque).ok()).collect();
        let living: BTreeMap<Uuid, &str> = records
            .iter()
            .flatten()
            .filter(|record| record.kind == RecordKind::Volume)
            .map(|record| (record.id, record.name.as_str()))
            .collect();
        for (object, record) in objects.iter().zip(&records) {
            let name = match record.as_ref().map(|record| (&record.kind, &record.name)) {
                Some((RecordKind::Volume, name)) => {
                    names.volumes += 1;
                    format!("volume {name}")
                }
                Some((RecordKind::Snapshot { of, of_name }, name)) => {
                    names.snapshots += 1;
                    format!("snapshot {}@{name}", living.get(of).copied().unwrap_or(of_name))
                }
                None => format!("object {}, whose name cannot be read,", object.number),
            };
            names.by_number.insert(object.number, (one_line(&name), object.size));
        }
        names
    }

    /// Where clients meet the fault, to stand behind what it is.
    fn places(&self, fault: &Fault) -> String {
        let mut text = String::new();
        for (index, place) in fault.places.iter().enumerate() {
            text.push_str(if index == 0 { ": " } else { ", " });
            let Place { object, offset, length } = place;
            let (name, size) = match self.by_number.get(object) {
                Some((name, size)) => (name.clone(), *size),
                None => (format!("object {object}"), ByteCount(u64::MAX)),
            };
            let end = offset.saturating_add(length.0).min(size.0);
            let _ = write!(text, "{name} at offset {offset}, {} bytes", end.saturating_sub(*offset));
        }
        if fault.places_more > 0 {
            let _ = write!(text, ", and {}", counted(fault.places_more, "place"));
            text.push_str(" more");
        }
        text
    }
}
