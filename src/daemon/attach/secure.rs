//! Attaching at the cluster's port: both ends show certificates, and NBD goes through a tunnel.
//!
//! The machine's certificate lies in a directory of its own. It is asked for once, with a token.

use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread::Builder;

use crate::daemon::cluster::read_token;
use crate::daemon::failure::Failure;
use crate::daemon::failure::Outcome;
use crate::daemon::pool::default_data_directory;
use crate::error::Error;
use crate::error::ErrorKind;
use crate::error::Result;
use crate::replica::cluster::Passage;
use crate::replica::cluster::join_as_client;
use crate::replica::cluster::passage_to;
use crate::replica::identity::IdentityFiles;
use crate::replica::identity::NodeIdentity;
use crate::replica::identity::PeerRole;
use crate::replica::link;
use crate::sync::RandomSource;

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

/// Who this machine is to the cluster; with a token it becomes somebody first, where it is nobody yet.
///
/// # Errors
/// `Invalid` without a certificate and a token, and for a token that is refused; what joining says besides.
pub(super) fn identity(
    said: Option<PathBuf>,
    token: Option<&str>,
    random: &dyn RandomSource,
) -> Outcome<NodeIdentity> {
    let directory = directory(said)?;
    let files = IdentityFiles::in_directory(&directory);
    if let Some(stored) = files.load()? {
        if stored.identity.peer().name.role() != PeerRole::Client {
            let what = format!("{} holds the identity of a node, not of a client", directory.display());
            return Err(Failure::new(ErrorKind::Invalid, what).hint("--identity DIR names another directory"));
        }
        return Ok(stored.identity);
    }
    let hint = "`sinter cluster token --client` on a node makes a token for --token";
    let Some(token) = token else {
        let what = format!("there is no certificate of this machine in {}", directory.display());
        return Err(Failure::new(ErrorKind::Invalid, what).hint(hint));
    };
    let token = read_token(token)?;
    join_as_client(&token, &directory, random)
        .map_err(|error| Failure::from(error.context("asking for a certificate")).hint(hint))
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
