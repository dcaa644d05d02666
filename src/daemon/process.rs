//! What the operating system says of this process.

use std::time::Duration;

use rustix::process::Resource;

use crate::metrics::ProcessFigures;

/// The figures of this moment; `started` is when the process began, since the Unix epoch.
pub(super) fn figures(started: Duration) -> ProcessFigures {
    let read = |name: &str| std::fs::read_to_string(format!("/proc/self/{name}")).unwrap_or_default();
    let status = read("status");
    ProcessFigures {
        started,
        cpu_seconds: cpu_seconds(&read("stat"), rustix::param::clock_ticks_per_second()),
        resident_bytes: kibibytes(&status, "VmRSS:"),
        virtual_bytes: kibibytes(&status, "VmSize:"),
        threads: field(&status, "Threads:"),
        open_files: open_files(),
        files_max: rustix::process::getrlimit(Resource::Nofile).current,
    }
}

/// The descriptors in use, less the one that it takes to look.
fn open_files() -> Option<u64> {
    let count = std::fs::read_dir("/proc/self/fd").ok()?.count();
    u64::try_from(count.saturating_sub(1)).ok()
}

/// A number of `/proc/self/status`.
fn field(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

fn kibibytes(status: &str, name: &str) -> Option<u64> {
    field(status, name)?.checked_mul(1024)
}

/// The time in user and kernel mode, fields 14 and 15 of `/proc/self/stat`.
fn cpu_seconds(stat: &str, ticks_per_second: u64) -> Option<f64> {
    // The second field is the program's name in parentheses, which may hold anything.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut numbers = rest.split_whitespace().skip(11);
    let mut ticks = || numbers.next()?.parse::<u32>().ok();
    let ticks = f64::from(ticks()?) + f64::from(ticks()?);
    Some(ticks / f64::from(u32::try_from(ticks_per_second).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_those_of_this_process() {
        let figures = figures(Duration::from_secs(7));
        assert_eq!(figures.started, Duration::from_secs(7));
        assert!(figures.resident_bytes.unwrap() > 1 << 20, "{figures:?}");
        assert!(figures.virtual_bytes >= figures.resident_bytes);
        assert!(figures.threads.unwrap() >= 1 && figures.open_files.unwrap() >= 3, "{figures:?}");
        assert!(figures.cpu_seconds.is_some() && figures.files_max >= figures.open_files, "{figures:?}");
    }

    #[test]
    fn a_name_with_spaces_and_parentheses_shifts_nothing() {
        let stat = "42 (a) b) c) S 1 42 42 0 -1 4194560 900 0 0 0 250 150 0 0 20 0 9 0 100";
        assert!((cpu_seconds(stat, 100).unwrap() - 4.0).abs() < 1e-9);
        for broken in ["", "42 (a", "42 (a) S 1 2", "42 (a) S 1 42 42 0 -1 4194560 900 0 0 0 x 150"] {
            assert_eq!(cpu_seconds(broken, 100), None, "{broken}");
        }
        assert_eq!(field("Threads:\t12\nVmRSS:\t  8 kB\n", "Threads:"), Some(12));
        assert_eq!(kibibytes("Threads:\t12\nVmRSS:\t  8 kB\n", "VmRSS:"), Some(8192));
        assert_eq!(field("Threads:\n", "VmRSS:"), None);
    }
}
