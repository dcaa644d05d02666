//! Starting the daemon again in its own process, where its pool is to be another one.

use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use signal_hook::consts::SIGTERM;
use signal_hook::low_level::raise;

use crate::daemon::failure::Outcome;
use crate::daemon::uri::NbdEndpoint;
use crate::error::Error;
use crate::error::ErrorKind;

/// The running program, also where its file has been replaced.
const PROGRAM: &str = "/proc/self/exe";

/// Whether the daemon starts again once it has stopped.
#[derive(Clone, Default)]
pub(super) struct Again(Arc<AtomicBool>);

impl Again {
    /// What tells the daemon to stop in order, and to start again.
    pub(super) fn teller(&self) -> impl Fn() + Send + Sync + use<> {
        let again = Arc::clone(&self.0);
        move || {
            again.store(true, Ordering::Release);
            if let Err(error) = raise(SIGTERM) {
                tracing::error!("the array cannot begin anew by itself: {error}; start it again");
            }
        }
    }

    /// Starts the same command line again, at the addresses that are known to clients. It returns where that was not
    /// asked for.
    ///
    /// # Errors
    /// `Device` where the program cannot be started.
    pub(super) fn start_if_told(&self, rest: SocketAddr, nbd: &[NbdEndpoint]) -> Outcome {
        if !self.0.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut arguments = std::env::args_os();
        let mut command = Command::new(PROGRAM);
        if let Some(name) = arguments.next() {
            command.arg0(name);
        }
        command.args(arguments).arg("--api").arg(rest.to_string());
        let tcp = nbd.iter().find_map(|endpoint| match endpoint {
            NbdEndpoint::Tcp(address) => Some(*address),
            NbdEndpoint::Unix(_) => None,
        });
        if let Some(address) = tcp {
            command.arg("--nbd").arg(address.to_string());
        }
        tracing::info!("starting again, as a node of the cluster");
        Err(Error::caused(ErrorKind::Device, "starting again", command.exec()).into())
    }
}
