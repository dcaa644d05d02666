//! `sinter attach`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::cli::output;
use crate::cli::output::shell_word;
use crate::daemon::attach;
use crate::daemon::attach::ArrayAddress;
use crate::daemon::attach::AttachOptions;
use crate::daemon::failure::Outcome;
use crate::daemon::quantity::show_size;

/// `sinter attach`.
#[derive(Debug, Args)]
#[group(skip)]
pub struct Attach {
    /// Addresses of the array's nodes and the volume (or VOLUME@SNAPSHOT): HOST:PORT or unix:PATH for NBD as it is,
    /// cluster:HOST:PORT for the cluster's port, where both ends show certificates
    #[arg(value_name = "ARRAY_ADDR[,ARRAY_ADDR...]/VOLUME", value_parser = target)]
    target: Target,
    /// The socket that local clients connect to; only this user may
    #[arg(long, value_name = "PATH")]
    unix: PathBuf,
    /// Others write to the volume too: after the array was away nothing that was acknowledged is written again, and
    /// flushes of clients that had unflushed writes fail
    #[arg(long)]
    shared: bool,
    /// The directory of this machine's certificate, for the cluster's port [default: client in the data directory]
    #[arg(long, value_name = "DIR")]
    identity: Option<PathBuf>,
    /// A token of `sinter cluster token --client`, or @FILE: for a certificate, where there is none yet
    #[arg(long, value_name = "TOKEN_OR_@FILE")]
    token: Option<String>,
    /// End with an error, also for the clients, when the array cannot be reached for so long [default: never]
    #[arg(long, value_name = "SECONDS")]
    give_up_after: Option<u32>,
}

/// What to attach to.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Target {
    addresses: Vec<ArrayAddress>,
    volume: String,
}

/// Serves the volume until the process is told to stop.
///
/// # Errors
/// What kept it from being attached, or ended it.
pub fn run(attach: Attach) -> Outcome {
    let options = AttachOptions {
        addresses: attach.target.addresses,
        volume: attach.target.volume,
        socket: attach.unix,
        shared: attach.shared,
        identity: attach.identity,
        token: attach.token,
        give_up_after: attach.give_up_after.map(|seconds| Duration::from_secs(u64::from(seconds))),
    };
    attach::attach(options, |attached| {
        let uri = shell_word(&attached.endpoint.uri(&attached.volume));
        let size = show_size(attached.size);
        output::announce(&format!(
            "Attached {} ({size}) at {uri}\nNext:\n  nbdinfo {uri}\n",
            attached.volume
        ));
    })
}

fn target(text: &str) -> Result<Target, String> {
    let wanted = "an array's addresses and a volume are written HOST:PORT[,HOST:PORT...]/VOLUME";
    let (addresses, volume) = text.rsplit_once('/').ok_or(wanted)?;
    if volume.is_empty() {
        return Err("the name of the volume is missing behind the last '/'".to_owned());
    }
    let addresses = addresses.split(',').map(address).collect::<Result<_, _>>()?;
    Ok(Target { addresses, volume: volume.to_owned() })
}

fn address(text: &str) -> Result<ArrayAddress, String> {
    if let Some(path) = text.strip_prefix("unix:").filter(|path| !path.is_empty()) {
        return Ok(ArrayAddress::Unix(PathBuf::from(path)));
    }
    if let Some(rest) = text.strip_prefix("cluster:") {
        return match address(rest) {
            Ok(ArrayAddress::Tcp(address)) => Ok(ArrayAddress::Cluster(address)),
            _ => Err(format!("'{text}' is no address: it is written cluster:HOST:PORT")),
        };
    }
    let port =
        text.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port.parse::<u16>());
    match port {
        Some(Ok(_)) => Ok(ArrayAddress::Tcp(text.to_owned())),
        _ => Err(format!("'{text}' is no address: it is written HOST:PORT, unix:PATH or cluster:HOST:PORT")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_addresses_and_a_volume() {
        let tcp = |text: &str| ArrayAddress::Tcp(text.to_owned());
        let both = target("10.0.0.1:10809,[::1]:10810/demo@monday").unwrap();
        assert_eq!(both.addresses, [tcp("10.0.0.1:10809"), tcp("[::1]:10810")]);
        assert_eq!(both.volume, "demo@monday");
        let unix = target("unix:/run/sinter/nbd.sock,host:1/demo").unwrap();
        assert_eq!(unix.addresses, [ArrayAddress::Unix("/run/sinter/nbd.sock".into()), tcp("host:1")]);
        let secure = target("cluster:10.0.0.1:7000,cluster:[::1]:7001/demo").unwrap().addresses;
        let cluster = |text: &str| ArrayAddress::Cluster(text.to_owned());
        assert_eq!(secure, [cluster("10.0.0.1:7000"), cluster("[::1]:7001")]);
        for wrong in
            ["cluster:/demo", "cluster:host/demo", "cluster:cluster:a:1/demo", "cluster:unix:/x/demo"]
        {
            assert!(target(wrong).is_err(), "{wrong}");
        }
        for wrong in
            ["demo", "host:1/", "/demo", "host/demo", "host:x/demo", ":1/demo", "a:1,/demo", "unix:/demo"]
        {
            assert!(target(wrong).is_err(), "{wrong}");
        }
    }
}
