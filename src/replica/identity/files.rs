//! Where a node keeps who it is: `node.key`, `node.crt`, `authority.crt`, and on data nodes `authority.key` (encrypted)
//! and `cluster.secret`.
//!
//! Every file is readable by its owner only, and is replaced as a whole: written beside, synced, renamed. The
//! certificates are in DER. Whoever can read the directory of a data node can sign certificates for the cluster.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind as IoErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::{Authority, ClusterSecret, NodeIdentity, NodeKey};
use crate::error::{Error, ErrorKind, Result};
use crate::sync::RandomSource;

const NODE_KEY: &str = "node.key";
const NODE_CERTIFICATE: &str = "node.crt";
const AUTHORITY_CERTIFICATE: &str = "authority.crt";
const AUTHORITY_KEY: &str = "authority.key";
const CLUSTER_SECRET: &str = "cluster.secret";

/// None of the files is nearly as long.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// The directory of a node's identity.
#[derive(Clone, Debug)]
pub struct IdentityFiles {
    directory: PathBuf,
}

/// What a directory holds.
#[derive(Clone, Debug)]
pub struct Stored {
    /// This node.
    pub identity: NodeIdentity,
    /// The cluster's authority, on data nodes.
    pub authority: Option<Authority>,
}

impl IdentityFiles {
    /// Files in `directory`; nothing is touched yet.
    #[must_use]
    pub fn in_directory(directory: impl Into<PathBuf>) -> IdentityFiles {
        IdentityFiles { directory: directory.into() }
    }

    /// What was saved; `None` where no node was (also after a join that was cut short).
    ///
    /// # Errors
    /// `Device` where a file cannot be read, `Corrupt` where one is missing or does not belong to the others.
    pub fn load(&self) -> Result<Option<Stored>> {
        let Some(certificate) = self.read(NODE_CERTIFICATE)? else { return Ok(None) };
        let key = NodeKey::from_bytes(&self.need(NODE_KEY)?)?;
        let authority_certificate = self.need(AUTHORITY_CERTIFICATE)?;
        let identity = NodeIdentity::new(certificate, authority_certificate.clone(), key).map_err(|e| {
            Error::caused(
                ErrorKind::Corrupt,
                format!("the node's identity in {}", self.directory.display()),
                e,
            )
        })?;
        let authority = match self.read(AUTHORITY_KEY)? {
            None => None,
            Some(sealed) => {
                let secret = self.need(CLUSTER_SECRET)?.try_into().map_err(|_| {
                    Error::new(
                        ErrorKind::Corrupt,
                        format!("{} has a wrong length", self.shown(CLUSTER_SECRET)),
                    )
                })?;
                let secret = ClusterSecret::from_bytes(secret);
                Some(Authority::open(identity.peer().cluster, authority_certificate, &sealed, secret)?)
            }
        };
        Ok(Some(Stored { identity, authority }))
    }

    /// Saves all, the node's certificate last: without it there is no identity.
    ///
    /// # Errors
    /// `Device` where a file cannot be written.
    pub fn save(
        &self,
        identity: &NodeIdentity,
        authority: Option<&Authority>,
        random: &dyn RandomSource,
    ) -> Result<()> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.directory)
            .map_err(|e| self.failed("make", &self.directory, e))?;
        if let Some(authority) = authority {
            self.write(CLUSTER_SECRET, &authority.secret().to_bytes())?;
            self.write(AUTHORITY_KEY, &authority.sealed_key(random)?)?;
        }
        self.write(AUTHORITY_CERTIFICATE, identity.authority())?;
        self.write(NODE_KEY, &identity.key().to_bytes())?;
        self.write(NODE_CERTIFICATE, identity.certificate())
    }

    /// Saves a renewed certificate.
    ///
    /// # Errors
    /// `Device` where the file cannot be written.
    pub fn save_renewed(&self, identity: &NodeIdentity) -> Result<()> {
        self.write(NODE_CERTIFICATE, identity.certificate())
    }

    /// Removes all, the node's certificate first. What is not there stays not there.
    ///
    /// # Errors
    /// `Device` where a file cannot be removed.
    pub fn remove(&self) -> Result<()> {
        for name in [NODE_CERTIFICATE, NODE_KEY, AUTHORITY_CERTIFICATE, AUTHORITY_KEY, CLUSTER_SECRET] {
            let path = self.directory.join(name);
            match fs::remove_file(&path) {
                Err(e) if e.kind() != IoErrorKind::NotFound => return Err(self.failed("remove", &path, e)),
                _ => {}
            }
        }
        Ok(())
    }

    fn need(&self, name: &str) -> Result<Vec<u8>> {
        self.read(name)?
            .ok_or_else(|| Error::new(ErrorKind::Corrupt, format!("{} is missing", self.shown(name))))
    }

    fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let path = self.directory.join(name);
        let len = match fs::metadata(&path) {
            Err(e) if e.kind() == IoErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(self.failed("read", &path, e)),
            Ok(metadata) => metadata.len(),
        };
        if len > FILE_BYTES_MAX {
            return Err(Error::new(ErrorKind::Corrupt, format!("{} is far too long", path.display())));
        }
        fs::read(&path).map(Some).map_err(|e| self.failed("read", &path, e))
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.directory.join(name);
        let beside = self.directory.join(format!("{name}.new"));
        // A file that is left over from an earlier attempt may have been opened by others.
        let _ = fs::remove_file(&beside);
        let written = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&beside)
            .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
            .and_then(|()| fs::rename(&beside, &path))
            .and_then(|()| File::open(&self.directory)?.sync_all());
        written.map_err(|e| self.failed("write", &path, e))
    }

    fn shown(&self, name: &str) -> String {
        self.directory.join(name).display().to_string()
    }

    fn failed(&self, verb: &str, path: &Path, error: std::io::Error) -> Error {
        Error::caused(ErrorKind::Device, format!("cannot {verb} {}", path.display()), error)
    }
}
