//! `sinter status`, `sinter reduction` and `sinter flash`.

use std::fmt::Write as _;

use clap::Args;

use crate::api::types::CollectionState;
use crate::api::types::FlashMetrics;
use crate::api::types::HealthState;
use crate::api::types::MountState;
use crate::api::types::ReductionMetrics;
use crate::api::types::Status;
use crate::api::types::Trouble;
use crate::cli::client::Client;
use crate::cli::client::parse;
use crate::cli::cluster::cluster_state;
use crate::cli::output;
use crate::cli::volume::one_line;
use crate::daemon::failure::Outcome;
use crate::daemon::quantity::round_size;
use crate::error::ErrorKind;
use crate::units::ByteCount;

/// `sinter status`.
#[derive(Debug, Args)]
pub struct StatusFlags {
    /// Only what is wrong; nothing if all is well
    #[arg(short = 'x')]
    only_trouble: bool,
    /// What REST returns, as JSON
    #[arg(long)]
    json: bool,
}

/// `sinter reduction`.
#[derive(Debug, Args)]
pub struct ReductionFlags {
    /// What REST returns, as JSON
    #[arg(long)]
    json: bool,
}

/// `sinter flash`.
#[derive(Debug, Args)]
pub struct FlashFlags {
    /// What REST returns, as JSON
    #[arg(long)]
    json: bool,
}

/// Runs `sinter status`.
///
/// # Errors
/// What the array answered.
pub fn status(client: &Client, flags: &StatusFlags) -> Outcome {
    let answer = client.get_text("/api/v1/status").map_err(|failure| match failure.error.kind() {
        ErrorKind::NoQuorum | ErrorKind::NotPrimary => {
            failure.hint("`sinter cluster status` shows which nodes are there")
        }
        _ => failure,
    })?;
    if flags.json {
        return output::data(answer + "\n");
    }
    let status: Status = parse(&answer)?;
    let mut text = String::new();
    tell(&status.problems, &mut text);
    if !flags.only_trouble {
        describe(&status, &mut text);
    }
    output::data(text)
}

/// What is wrong, each line with what helps; where that is the same for several, once below them.
pub(super) fn tell(problems: &[Trouble], text: &mut String) {
    let mut following = problems.iter().skip(1);
    for trouble in problems {
        let _ = writeln!(text, "problem: {}", trouble.what);
        if following.next().is_none_or(|next| next.hint != trouble.hint) {
            let _ = writeln!(text, "   hint: {}", trouble.hint);
        }
    }
}

fn describe(status: &Status, text: &mut String) {
    let size = |bytes: u64| round_size(ByteCount(bytes));
    if !status.problems.is_empty() {
        text.push('\n');
    }
    let health = match status.health {
        HealthState::Healthy => "healthy",
        HealthState::Degraded => "degraded",
    };
    let array = &status.array;
    let _ = writeln!(text, "array       {} ({}), {health}, sinter {}", array.name, array.id, array.version);
    let _ = writeln!(text, "time        {}, up {}", status.time, up(array.uptime_seconds));
    let cluster = &status.cluster;
    if cluster.enabled {
        let _ = writeln!(
            text,
            "cluster     {}, {} of {} nodes healthy, {} is the primary, epoch {}",
            cluster_state(cluster.state),
            cluster.healthy_nodes.unwrap_or(0),
            cluster.node_count.unwrap_or(0),
            cluster.current_primary.as_deref().unwrap_or("nobody"),
            cluster.epoch.unwrap_or(0)
        );
    }
    let capacity = &status.capacity;
    let _ = writeln!(
        text,
        "pool        {} used of {}, {} free, {} kept back for collection and checkpoints",
        size(capacity.used_bytes),
        size(capacity.total_bytes),
        size(capacity.free_bytes),
        size(capacity.reserved_bytes)
    );
    let _ = writeln!(text, "writable    {} more, before reduction", size(capacity.writable_bytes));
    let _ = writeln!(
        text,
        "live        {} of {} usable ({} %), {} of it metadata",
        size(capacity.live_bytes),
        size(capacity.usable_bytes),
        percent(capacity.live_bytes, capacity.usable_bytes),
        size(capacity.metadata_bytes)
    );
    let volumes = &status.volumes;
    let _ = writeln!(
        text,
        "volumes     {}, {} provisioned, {} written",
        volumes.total,
        size(volumes.provisioned_bytes),
        size(volumes.used_bytes)
    );
    let snapshots = &status.snapshots;
    let _ = write!(text, "snapshots   {}", snapshots.total);
    let _ = match snapshots.pending_releases {
        0 => writeln!(text),
        left => writeln!(text, ", {left} map nodes to take apart until deleted space is back"),
    };
    let reduction = &status.reduction;
    let _ = writeln!(
        text,
        "reduction   {:.2} to 1 ({:.2} with thin provisioning), {} stored",
        reduction.ratio,
        reduction.total_ratio,
        size(reduction.stored_bytes)
    );
    let collection = &status.garbage_collection;
    let _ = writeln!(
        text,
        "collection  {}, {} runs, {} segments won back, {} moved",
        collection_state(collection.state),
        collection.runs,
        collection.reclaimed_segments,
        size(collection.moved_bytes)
    );
    let log = &status.log;
    let _ = writeln!(
        text,
        "log         operation {}, {} not synced yet, {} checkpoints",
        log.lsn,
        log.lsn.saturating_sub(log.durable_lsn),
        log.checkpoints
    );
    for (label, uri) in [("nbd", &status.endpoints.nbd), ("nbd socket", &status.endpoints.nbd_unix)] {
        if let Some(uri) = uri {
            let _ = writeln!(text, "{label:<11} {uri}");
        }
    }
    for mount in &status.mounts {
        let files = match mount.open_files {
            1 => "1 file open".to_owned(),
            files => format!("{files} files open"),
        };
        let ending = if mount.state == MountState::Detached { ", taken away but for these" } else { "" };
        let _ = writeln!(text, "mount       {} ({files}{ending})", one_line(&mount.mountpoint));
    }
    let next = if volumes.total == 0 { "sinter volume create NAME SIZE" } else { "sinter volume list" };
    let _ = writeln!(text, "next        {next}");
}

fn collection_state(state: CollectionState) -> &'static str {
    match state {
        CollectionState::Idle => "idle",
        CollectionState::Running => "running",
        CollectionState::Stopped => "stopped",
    }
}

/// Runs `sinter flash`.
///
/// # Errors
/// What the array answered.
pub fn flash(client: &Client, flags: &FlashFlags) -> Outcome {
    let answer = client.get_text("/api/v1/metrics/flash")?;
    if flags.json {
        return output::data(answer + "\n");
    }
    let metrics: FlashMetrics = parse(&answer)?;
    let size = |bytes: u64| round_size(ByteCount(bytes));
    let mut text = String::new();
    let capacity = &metrics.capacity;
    let _ = writeln!(
        text,
        "capacity    {} used of {} ({:.1} %), {} free",
        size(capacity.used_bytes),
        size(capacity.total_bytes),
        100.0 * capacity.utilization,
        size(capacity.free_bytes)
    );
    let health = &metrics.health;
    let _ = writeln!(
        text,
        "health      {:.2} %, {:.2} erases on average, {} at most",
        health.health_percentage, health.avg_erase_count, health.max_erase_count
    );
    let wear = &metrics.wear_leveling;
    let _ = writeln!(
        text,
        "wear        variance {:.2}, {} segments moved to even it out",
        wear.wear_variance, wear.blocks_moved
    );
    let collection = &metrics.garbage_collection;
    let _ = writeln!(
        text,
        "collection  {}, {} runs, {} segments won back",
        collection_state(collection.state),
        collection.gc_runs,
        collection.blocks_reclaimed
    );
    output::data(text)
}

/// Whole percents, rounded down: what is not full is not called full.
fn percent(part: u64, whole: u64) -> u128 {
    u128::from(part) * 100 / u128::from(whole.max(1))
}

/// A time for people, in its two largest units.
fn up(seconds: u64) -> String {
    let units = [("d", 86_400), ("h", 3600), ("min", 60), ("s", 1)];
    let Some(first) = units.iter().position(|(_, length)| seconds >= *length) else {
        return "0 s".to_owned();
    };
    let mut rest = seconds;
    let parts = units.iter().skip(first).take(2).filter_map(|(unit, length)| {
        let count = rest / length;
        rest %= length;
        (count > 0).then(|| format!("{count} {unit}"))
    });
    parts.collect::<Vec<_>>().join(" ")
}

/// Runs `sinter reduction`.
///
/// # Errors
/// What the array answered.
pub fn reduction(client: &Client, flags: &ReductionFlags) -> Outcome {
    let answer = client.get_text("/api/v1/metrics/reduction")?;
    if flags.json {
        return output::data(answer + "\n");
    }
    let metrics: ReductionMetrics = parse(&answer)?;
    let size = |bytes: u64| round_size(ByteCount(bytes));
    let mut text = String::new();
    let _ = writeln!(text, "overall        {:.2} to 1", metrics.overall_reduction_ratio);
    let _ = writeln!(
        text,
        "patterns       {} blocks of zeros, {} of a repeated word, {} saved",
        metrics.pattern_removal.zero_blocks_found,
        metrics.pattern_removal.pattern_blocks_found,
        size(metrics.bytes_saved.pattern)
    );
    let _ = writeln!(
        text,
        "deduplication  {:.2} to 1, {} unique and {} duplicate blocks, {} saved",
        metrics.deduplication.ratio,
        metrics.deduplication.unique_blocks,
        metrics.deduplication.duplicate_blocks,
        size(metrics.bytes_saved.dedupe)
    );
    let _ = writeln!(
        text,
        "compression    {:.2} to 1 ({}), {} saved",
        metrics.compression.ratio,
        metrics.compression.algorithm,
        size(metrics.bytes_saved.compression)
    );
    let sharing = &metrics.sharing;
    let _ = writeln!(
        text,
        "sharing        {} in volumes and snapshots together, {} of it shared by snapshots and clones (or repeated words)",
        size(sharing.held_bytes),
        size(sharing.shared_bytes)
    );
    output::data(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hint_that_helps_several_is_given_once() {
        let trouble = |what: &str, hint: &str| Trouble { what: what.to_owned(), hint: hint.to_owned() };
        let mut text = String::new();
        tell(&[trouble("a", "x"), trouble("b", "y"), trouble("c", "y")], &mut text);
        assert_eq!(text, "problem: a\n   hint: x\nproblem: b\nproblem: c\n   hint: y\n");
        text.clear();
        tell(&[], &mut text);
        assert_eq!(text, "");
    }

    #[test]
    fn times_and_parts_for_people() {
        let times = [
            (0, "0 s"),
            (59, "59 s"),
            (60, "1 min"),
            (3_661, "1 h 1 min"),
            (90_000, "1 d 1 h"),
            (86_401, "1 d"),
        ];
        for (seconds, shown) in times {
            assert_eq!(up(seconds), shown);
        }
        assert_eq!((percent(999, 1000), percent(0, 0), percent(u64::MAX, u64::MAX)), (99, 0, 100));
    }
}
