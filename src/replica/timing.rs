//! All constants of time, each derived from the heartbeat.

use std::time::Duration;

/// The table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// A primary sends a heartbeat to every node this often.
    pub heartbeat: Duration,
    /// For how long a primary may read after it has sent a heartbeat that all other members have answered.
    pub lease: Duration,
    /// For how long a member that has received a heartbeat does not begin as primary: longer than the lease by the
    /// error that clocks may have, and by a margin.
    pub promise: Duration,
    /// A member silent for so long is put out of the set.
    pub put_out_after: Duration,
    /// A member that applies nothing for so long while operations wait for it is put out of the set.
    pub stall: Duration,
    /// A member that has heard nothing from its primary for so long proposes itself: longer than a living primary
    /// takes to put a member out.
    pub ask_after: Duration,
    /// A proposal without outcome is made again after this time.
    pub repeat_after: Duration,
    /// For so long it counts where a node said that it stands, while nobody of the set is left: it says so again with every
    /// repetition, one of which may be lost.
    pub report_counts_for: Duration,
    /// The leader of the consensus group sends its heartbeat this often, and waits no longer for an answer to one:
    /// longer than a log entry takes to be synced on a busy device.
    pub group_heartbeat: Duration,
    /// The shortest time without a leader after which a voter stands for election: several heartbeats of the group,
    /// of which one may be late.
    pub group_election_min: Duration,
    /// The longest one. It is also for how long a voter that hears its leader votes for nobody else, and what counts
    /// as hearing the group. A leader's death costs at most about both together: no set can change for so long, while
    /// data goes on wherever the set need not change.
    pub group_election_max: Duration,
    /// A link on which nothing comes is probed after this time: whoever vanished without a word answers no probe.
    pub link_probe_after: Duration,
    /// A link whose other end has taken nothing for so long is lost; where it only listens, it is ended.
    pub link_lost_after: Duration,
    /// The same for a link that carries what roles say: soon, because nothing goes over another one until then.
    pub role_link_lost_after: Duration,
    /// The same for one that carries a client's connection. Its other end cannot be told from a client there that does not
    /// read, which may be paused for some time and is none the worse for it; but for ever is too long for one that is gone.
    pub tunnel_lost_after: Duration,
    /// A stream whose other end has answered for nothing of what it was sent for so long is broken off: longer than any
    /// single thing that it does.
    pub stream_silence: Duration,
}

/// Clocks may go wrong by one part in so many.
const CLOCK_ERROR_ONE_IN: u32 = 100;

impl Timing {
    /// The table for a heartbeat.
    #[must_use]
    pub fn of(heartbeat: Duration) -> Timing {
        let lease = heartbeat * 5;
        Timing {
            heartbeat,
            lease,
            // Twice the error: one clock may be slow while the other is fast.
            promise: lease + lease * 2 / CLOCK_ERROR_ONE_IN + heartbeat,
            put_out_after: heartbeat * 6,
            stall: heartbeat * 100,
            ask_after: heartbeat * 9,
            repeat_after: heartbeat * 4,
            report_counts_for: heartbeat * 10,
            group_heartbeat: heartbeat * 2,
            group_election_min: heartbeat * 6,
            group_election_max: heartbeat * 10,
            link_probe_after: heartbeat * 40,
            link_lost_after: heartbeat * 200,
            role_link_lost_after: heartbeat * 20,
            tunnel_lost_after: heartbeat * 2400,
            stream_silence: heartbeat * 600,
        }
    }
}

impl Default for Timing {
    fn default() -> Timing {
        Timing::of(Duration::from_millis(50))
    }
}
