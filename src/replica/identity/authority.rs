//! The cluster's certificate authority: kept on every data node, so that any of them can let a node in.

use std::fmt;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyUsagePurpose,
};

use super::key::{NodeKey, SigningRequest};
use super::token::Token;
use super::{CERTIFICATE_LIFE, ClusterSecret, PeerIdentity, PeerName, PeerRole, TOKEN_LIFE, certificate};
use crate::error::{Error, ErrorKind, Result};
use crate::sync::RandomSource;
use crate::units::Uuid;

/// The authority's own certificate is never renewed: nodes know the cluster by it.
const AUTHORITY_LIFE: Duration = Duration::from_secs(50 * 365 * 24 * 3600);

/// Certificates hold from a little earlier on, for nodes whose clocks are behind.
const CLOCK_ERROR: Duration = Duration::from_secs(24 * 3600);

/// Later times do not fit into a certificate.
const TIME_MAX: Duration = Duration::from_secs(200_000_000_000);

/// What an authority is known by: BLAKE3 of its certificate.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint(pub [u8; 32]);

impl Fingerprint {
    /// Of this certificate, in DER.
    #[must_use]
    pub fn of(certificate: &[u8]) -> Fingerprint {
        Fingerprint(*blake3::hash(certificate).as_bytes())
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Signs certificates and tokens.
#[derive(Clone, Debug)]
pub struct Authority {
    cluster: Uuid,
    key: NodeKey,
    certificate: Vec<u8>,
    secret: ClusterSecret,
}

impl Authority {
    /// The authority of a new cluster.
    ///
    /// # Errors
    /// `Device` without random bytes, `Invalid` for a time out of reach.
    pub fn create(cluster: Uuid, now: Duration, random: &dyn RandomSource) -> Result<Authority> {
        let key = NodeKey::generate()?;
        let mut parameters = parameters(cluster);
        set_life(&mut parameters, now, AUTHORITY_LIFE)?;
        let certificate = parameters
            .self_signed(key.pair())
            .map_err(|e| Error::caused(ErrorKind::Invalid, "the authority cannot sign its certificate", e))?;
        let certificate = certificate.der().to_vec();
        Ok(Authority { cluster, key, certificate, secret: ClusterSecret::generate(random) })
    }

    /// The authority of `cluster` again, from what another data node or a directory holds.
    ///
    /// # Errors
    /// `Corrupt` where key, certificate and secret do not belong together.
    pub fn open(
        cluster: Uuid,
        certificate: Vec<u8>,
        sealed_key: &[u8],
        secret: ClusterSecret,
    ) -> Result<Authority> {
        let key = NodeKey::from_bytes(&secret.open(sealed_key, &certificate)?)?;
        Ok(Authority { cluster, key, certificate, secret })
    }

    /// The cluster.
    #[must_use]
    pub fn cluster(&self) -> Uuid {
        self.cluster
    }

    /// The authority's certificate, in DER.
    #[must_use]
    pub fn certificate(&self) -> &[u8] {
        &self.certificate
    }

    /// What the authority is known by.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.certificate)
    }

    /// The secret that the data nodes share.
    #[must_use]
    pub fn secret(&self) -> &ClusterSecret {
        &self.secret
    }

    /// The key, encrypted: anew at each call.
    ///
    /// # Errors
    /// `Invalid` where it cannot be encrypted.
    pub fn sealed_key(&self, random: &dyn RandomSource) -> Result<Vec<u8>> {
        self.secret.seal(&self.key.to_bytes(), &self.certificate, random)
    }

    /// A certificate in DER that makes the sender of `request` known as `name` for `CERTIFICATE_LIFE`. Whether it may
    /// be called so is for the caller to know.
    ///
    /// # Errors
    /// `Invalid` where the request is not signed by its own key, or the time is out of reach.
    pub fn sign(&self, name: PeerName, request: &SigningRequest, now: Duration) -> Result<Vec<u8>> {
        let public_key = request.verified(self.cluster)?;
        let whole = Duration::from_secs(now.as_secs());
        let peer = PeerIdentity {
            cluster: self.cluster,
            name,
            valid_from: whole,
            valid_until: whole.saturating_add(CERTIFICATE_LIFE),
        };
        let failed = |e| Error::caused(ErrorKind::Invalid, format!("no certificate for {name}"), e);
        let mut parameters = CertificateParams::new(certificate::names(&peer)).map_err(failed)?;
        set_life(&mut parameters, whole, CERTIFICATE_LIFE)?;
        parameters.distinguished_name = common_name(&format!("Sinter {name}"));
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        parameters.extended_key_usages = match name.role() {
            PeerRole::Client => vec![ExtendedKeyUsagePurpose::ClientAuth],
            PeerRole::Data | PeerRole::Witness => {
                vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth]
            }
        };
        let issuer = Issuer::new(self::parameters(self.cluster), self.key.pair());
        let signed = parameters.signed_by(&public_key, &issuer).map_err(failed)?;
        Ok(signed.der().to_vec())
    }

    /// A token for one peer of this role, to be used within `TOKEN_LIFE` at one of `addresses`.
    ///
    /// # Errors
    /// `Invalid` for no address, too many, or one that is none.
    pub fn token(
        &self,
        role: PeerRole,
        addresses: &[String],
        now: Duration,
        random: &dyn RandomSource,
    ) -> Result<Token> {
        let mut id = [0u8; 16];
        random.fill(&mut id);
        let expires = Duration::from_secs(now.saturating_add(TOKEN_LIFE).as_secs());
        Token::make(self, role, id, expires, addresses)
    }
}

/// The authority's name and uses: the same each time, because a certificate names its issuer by them.
fn parameters(cluster: Uuid) -> CertificateParams {
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name = common_name(&format!("Sinter cluster {cluster}"));
    parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    parameters
}

fn common_name(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

fn set_life(parameters: &mut CertificateParams, now: Duration, life: Duration) -> Result<()> {
    if now > TIME_MAX {
        return Err(Error::new(ErrorKind::Invalid, "the clock shows a time that no certificate can hold"));
    }
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    parameters.not_before = epoch + now.saturating_sub(CLOCK_ERROR);
    parameters.not_after = epoch + now + life;
    Ok(())
}
