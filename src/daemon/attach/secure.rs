//! Attaching at the cluster's port: both ends show certificates, and NBD goes through a tunnel.
//!
//! The machine's certificate lies in a directory of its own. It is asked for once, with a token, and renewed by the nodes
//! that are attached to, after half of its life.

use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::Builder;
use std::time::Duration;

use crate::daemon::cluster::read_token;
use crate::daemon::failure::Failure;
use crate::daemon::failure::Outcome;
use crate::daemon::pool::default_data_directory;
use crate::error::Error;
use crate::error::ErrorKind;
use crate::error::Result;
use crate::replica::cluster::Passage;
use crate::replica::cluster::ask_to_renew;
use crate::replica::cluster::join_as_client;
use crate::replica::cluster::passage_to;
use crate::replica::identity::CurrentIdentity;
use crate::replica::identity::IdentityFiles;
use crate::replica::identity::NodeIdentity;
use crate::replica::identity::PeerRole;
use crate::replica::link;
use crate::store::Environment;

/// Where the certificate is kept, below the default data directory.
const DIRECTORY: &str = "client";

/// Where it is kept.
///
/// # Errors
/// `Invalid` where there is no default.
fn directory(said: Option<PathBuf>) -> Outcome<PathBuf> {
    match said {
        Some(directory) => Ok(directory),
        None => default_data_directory(|name| std::env::var(name).ok())
            .map(|data| data.join(DIRECTORY))
            .map_err(|failure| failure.hint("--identity DIR says where the certificate of this machine is")),
    }
}

/// Who this machine is to the cluster, now and as long as it is attached.
#[derive(Debug)]
pub(super) struct Machine {
    files: IdentityFiles,
    identity: CurrentIdentity,
}

impl Machine {
    /// As its directory says; with a token it becomes somebody first, where it is nobody yet or its certificate has ended.
    ///
    /// # Errors
    /// `Invalid` without a certificate that holds and a token, and for a token that is refused; what joining says besides.
    pub(super) fn load(
        said: Option<PathBuf>,
        token: Option<&str>,
        environment: &Environment,
    ) -> Outcome<Machine> {
        let directory = directory(said)?;
        let files = IdentityFiles::in_directory(&directory);
        let stored = files.load()?.map(|stored| stored.identity);
        if stored.as_ref().is_some_and(|identity| identity.peer().name.role() != PeerRole::Client) {
            let what = format!("{} holds the identity of a node, not of a client", directory.display());
            return Err(Failure::new(ErrorKind::Invalid, what).hint("--identity DIR names another directory"));
        }
        let now = environment.clock.since_unix_epoch();
        let ended = stored.as_ref().is_some_and(|identity| now >= identity.peer().valid_until);
        let identity = match stored.filter(|_| !ended) {
            Some(identity) => identity,
            None => {
                let hint = "`sinter cluster token --client` on a node makes a token for --token";
                let token = token.ok_or_else(|| {
                    let place = directory.display();
                    let what = match ended {
                        true => format!("the certificate of this machine in {place} has ended"),
                        false => format!("there is no certificate of this machine in {place}"),
                    };
                    Failure::new(ErrorKind::Invalid, what).hint(hint)
                })?;
                join_as_client(&read_token(token)?, &directory, &*environment.random)
                    .map_err(|error| Failure::from(error.context("asking for a certificate")).hint(hint))?
            }
        };
        Ok(Machine { files, identity: CurrentIdentity::new(Arc::new(identity)) })
    }

    /// Who it is now.
    pub(super) fn now(&self) -> Arc<NodeIdentity> {
        self.identity.now()
    }

    /// Has the certificate renewed by one of the nodes at these addresses (`HOST:PORT`), once half of its life is over at
    /// `now`, a time since 1970.
    ///
    /// # Errors
    /// What the last of them said; `Device` where the renewed one could not be kept: it is used all the same.
    pub(super) fn renew_if_due(&self, addresses: &[String], now: Duration) -> Result<()> {
        let identity = self.identity.now();
        if !identity.renewal_due(now) {
            return Ok(());
        }
        let stored = self.files.load()?.map(|stored| stored.identity);
        let is_kept = stored.is_some();
        // Another process of this machine may have been faster, or somebody has made it another client.
        let newer = stored.filter(|it| it.peer().name != identity.peer().name || !it.renewal_due(now));
        if let Some(newer) = newer.filter(|it| it.peer().name.role() == PeerRole::Client) {
            self.identity.replace(Arc::new(newer));
            return Ok(());
        }
        let mut failure = Error::new(ErrorKind::NotFound, "no node of the cluster is named");
        for address in addresses {
            match ask_to_renew(address, &identity, None) {
                Ok(renewed) => {
                    let renewed = Arc::new(renewed);
                    self.identity.replace(Arc::clone(&renewed));
                    tracing::info!("the certificate of this machine was renewed");
                    return if is_kept { self.files.save_renewed(&renewed) } else { Ok(()) };
                }
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }
}

/// A connection to the NBD server of the node there, if it is the primary. A thread carries it and ends with it.
///
/// # Errors
/// `Unreachable` where nobody answers; `Invalid` where this machine is refused, or another cluster is there.
pub(super) fn connect(address: &str, identity: &NodeIdentity) -> Result<TcpStream> {
    let failed = |error| Error::caused(ErrorKind::Unreachable, "carrying NBD through a tunnel", error);
    let link = passage_to(address, identity, None, Passage::Nbd)?;
    let (near, far) = UnixStream::pair().map_err(failed)?;
    let carry = move || {
        if let Err(error) = link::tunnel(link, far) {
            tracing::debug!("the tunnel to the array has ended: {error}");
        }
    };
    Builder::new().name("attach-tunnel".to_owned()).spawn(carry).map_err(failed)?;
    Ok(TcpStream::from(OwnedFd::from(near)))
}
