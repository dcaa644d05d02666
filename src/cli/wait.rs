//! `sinter wait`: until background work is done.

use std::time::Duration;

use clap::Args;
use clap::ValueEnum;

use crate::api::scrub::Scrub;
use crate::api::scrub::ScrubPhase;
use crate::api::types::CollectionState;
use crate::api::types::Status;
use crate::cli::client::Client;
use crate::cli::client::parse;
use crate::cli::progress::Progress;
use crate::cli::scrub;
use crate::daemon::failure::Failure;
use crate::daemon::failure::Outcome;
use crate::error::ErrorKind;
use crate::sync::Condition;
use crate::sync::Mutex;

/// How often it is looked.
const INTERVAL: Duration = Duration::from_millis(200);

/// Looks in a row that find nothing to do, before it is believed: one step of the work may bring more to light.
const QUIET_LOOKS: u32 = 3;

/// `sinter wait`.
#[derive(Debug, Args)]
pub struct Wait {
    /// What to wait for, parted by commas; what is not going on is done
    #[arg(long = "for", value_name = "WORK,...", value_delimiter = ',', required = true)]
    work: Vec<Work>,
}

/// Background work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Work {
    /// Winning back segments (garbage collection)
    Gc,
    /// Giving back the space of what was deleted
    Delete,
    /// The scrub that is under way, if one is; exits 14 if it has found damage
    Scrub,
    /// Nodes of the cluster that are coming back, until all that can be are in sync
    Resync,
}

/// Runs `sinter wait`.
///
/// # Errors
/// What the array answered; `Stopped` where the array takes no writes, so that nothing will be done; `Corrupt` where
/// a scrub that was waited for has found damage.
pub fn run(client: &Client, wait: &Wait) -> Outcome {
    let mut shown = Shown::default();
    let (still, pause) = (Mutex::new(()), Condition::new());
    let mut quiet = 0;
    // The checkpoint after which the space of all that had been taken apart by then is back.
    let mut enough: Option<u64> = None;
    let deletes = wait.work.contains(&Work::Delete);
    loop {
        let scrub = wait.work.contains(&Work::Scrub).then(|| scrub::fetch(client)).transpose()?;
        let status: Status = parse(&client.get_text("/api/v1/status")?)?;
        let writes = wait.work.iter().any(|work| matches!(work, Work::Gc | Work::Delete));
        if writes && status.garbage_collection.state == CollectionState::Stopped {
            let what = "the array takes no writes, so the work will not be done";
            return Err(Failure::new(ErrorKind::Stopped, what).hint("`sinter status` says why"));
        }
        let busy = wait.work.iter().any(|work| match work {
            Work::Gc => status.garbage_collection.state == CollectionState::Running,
            Work::Delete => status.snapshots.pending_releases > 0,
            Work::Resync => status.cluster.resyncing > 0,
            Work::Scrub => scrub.as_ref().is_some_and(|scrub| scrub.state == ScrubPhase::Running),
        });
        quiet = if busy { 0 } else { quiet + 1 };
        if quiet >= QUIET_LOOKS {
            // One that was under way may have begun too early. Under load there is always more to free, but not of
            // what was deleted before.
            let checkpoints = status.log.checkpoints;
            let is_back = checkpoints >= *enough.get_or_insert(checkpoints + 2);
            if !deletes || is_back || !status.snapshots.awaits_checkpoint {
                return scrub.as_ref().map_or(Ok(()), scrub::outcome);
            }
        }
        shown.show(&wait.work, &status, scrub.as_ref());
        drop(pause.wait_for(still.lock(), INTERVAL));
    }
}

/// What is shown on a terminal: one line, of that which takes longest.
#[derive(Default)]
struct Shown {
    line: Option<(Work, Progress)>,
}

impl Shown {
    fn show(&mut self, wanted: &[Work], status: &Status, scrub: Option<&Scrub>) {
        let scrub = scrub.filter(|scrub| scrub.state == ScrubPhase::Running);
        let left = |work: Work| match work {
            Work::Scrub => scrub.map_or(0, |scrub| scrub.end.saturating_sub(scrub.position)),
            Work::Delete => status.snapshots.pending_releases,
            Work::Resync => status.cluster.resyncing,
            Work::Gc => u64::from(status.garbage_collection.state == CollectionState::Running),
        };
        let order = [Work::Resync, Work::Scrub, Work::Delete, Work::Gc];
        let Some(work) = order.into_iter().find(|work| wanted.contains(work) && left(*work) > 0) else {
            self.line = None;
            return;
        };
        if self.line.as_ref().is_none_or(|(shown, _)| *shown != work) {
            // The line before is wiped first.
            self.line = None;
            self.line = Some((work, line_for(work)));
        }
        let Some((_, progress)) = &mut self.line else { return };
        match scrub.filter(|_| work == Work::Scrub) {
            Some(scrub) => progress.show(scrub.position, Some(scrub.end)),
            None => progress.show(left(work), None),
        }
    }
}

fn line_for(work: Work) -> Progress {
    match work {
        Work::Scrub => Progress::blocks("scrubbing"),
        Work::Delete => Progress::left("freeing what was deleted, map nodes left:"),
        Work::Resync => Progress::left("nodes that are coming back:"),
        Work::Gc => Progress::left("collecting, under way:"),
    }
}
