//! TLS 1.3 with the cluster's own rule of who is who: a certificate of its authority, and no host names.

use std::net::TcpStream;
use std::sync::Arc;
use std::time::Instant;

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring::cipher_suite::{
    TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256,
};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::NoServerSessionStorage;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, ClientConnection, Connection, DigitallySignedStruct, DistinguishedName,
    OtherError, ServerConfig, SignatureScheme,
};

use super::now;
use crate::error::{Error, ErrorKind, Result};
use crate::replica::identity::{self, Fingerprint, NodeIdentity, PeerIdentity, Usage};
use crate::units::Uuid;

/// TLS wants to know a name for the other end; nobody looks at it.
const ANY_NAME: &str = "node.sinter";

/// How the authority is known.
#[derive(Debug)]
enum Trust {
    Certificate(Vec<u8>),
    /// The peer sends the certificate along.
    Fingerprint(Fingerprint),
}

/// Checks the peer's certificate.
#[derive(Debug)]
struct Verifier {
    cluster: Uuid,
    trust: Trust,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    fn of_cluster(identity: &NodeIdentity) -> Arc<Verifier> {
        let trust = Trust::Certificate(identity.authority().to_vec());
        Arc::new(Verifier { cluster: identity.peer().cluster, trust, provider: provider() })
    }

    fn verify(
        &self,
        certificate: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        time: UnixTime,
        usage: Usage,
    ) -> Result<(), rustls::Error> {
        let refused =
            |e: Error| rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(e))));
        let authority = match &self.trust {
            Trust::Certificate(certificate) => certificate.as_slice(),
            Trust::Fingerprint(fingerprint) => others
                .iter()
                .map(|other| &**other)
                .find(|other| Fingerprint::of(other) == *fingerprint)
                .ok_or_else(|| {
                    let what = "the node does not belong to the cluster that the token is for";
                    refused(Error::new(ErrorKind::Invalid, what))
                })?,
        };
        let peer = identity::verify(certificate, authority, time, usage).map_err(refused)?;
        if peer.cluster != self.cluster {
            let what = format!("a certificate is of cluster {}, not {}", peer.cluster, self.cluster);
            return Err(refused(Error::new(ErrorKind::Invalid, what)));
        }
        Ok(())
    }

    fn verify_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }
}

/// The answer to TLS 1.2, which is never spoken here.
fn never_spoken() -> rustls::Error {
    rustls::Error::General("TLS 1.2 is not spoken".to_owned())
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp_response: &[u8],
        time: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.verify(certificate, others, time, Usage::Server).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(never_spoken())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verify_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

impl ClientCertVerifier for Verifier {
    /// A node that joins has none yet.
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        time: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.verify(certificate, others, time, Usage::Client).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(never_spoken())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verify_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

/// The ciphers in the order of their speed on machines with AES instructions.
fn provider() -> Arc<CryptoProvider> {
    let mut provider = rustls::crypto::ring::default_provider();
    provider.cipher_suites =
        vec![TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256];
    Arc::new(provider)
}

fn unusable(error: rustls::Error) -> Error {
    Error::caused(ErrorKind::Invalid, "TLS cannot be set up with this node's identity", error)
}

/// For the accepting end. No session is ever resumed: each connection shows its certificate anew.
pub(super) fn server_config(identity: &NodeIdentity) -> Result<Arc<ServerConfig>> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(unusable)?
        .with_client_cert_verifier(Verifier::of_cluster(identity))
        .with_single_cert(identity.chain(), identity.key().private())
        .map_err(unusable)?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// The connecting end of a node or client with a certificate.
pub(super) fn client_of(identity: &NodeIdentity) -> Result<Connection> {
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(unusable)?
        .dangerous()
        .with_custom_certificate_verifier(Verifier::of_cluster(identity))
        .with_client_auth_cert(identity.chain(), identity.key().private())
        .map_err(unusable)?;
    client(config)
}

/// The connecting end of one that has a token only.
pub(super) fn client_without_certificate(cluster: Uuid, authority: Fingerprint) -> Result<Connection> {
    let provider = provider();
    let verifier = Verifier { cluster, trust: Trust::Fingerprint(authority), provider: provider.clone() };
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .map_err(unusable)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    client(config)
}

fn client(mut config: ClientConfig) -> Result<Connection> {
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    let name = ServerName::try_from(ANY_NAME)
        .map_err(|e| Error::caused(ErrorKind::Invalid, "TLS cannot be set up", e))?;
    Ok(ClientConnection::new(Arc::new(config), name).map_err(unusable)?.into())
}

/// Brings the handshake to its end, by `deadline` at the latest.
pub(super) fn handshake(socket: &TcpStream, tls: &mut Connection, deadline: Instant) -> Result<()> {
    let lost = |e| Error::caused(ErrorKind::Unreachable, "a handshake was cut short", e);
    loop {
        while tls.wants_write() {
            tls.write_tls(&mut &*socket).map_err(lost)?;
        }
        if !tls.is_handshaking() {
            return Ok(());
        }
        let left = deadline.saturating_duration_since(now());
        if left.is_zero() {
            return Err(Error::new(ErrorKind::Unreachable, "a handshake took too long"));
        }
        socket.set_read_timeout(Some(left)).map_err(lost)?;
        if tls.read_tls(&mut &*socket).map_err(lost)? == 0 {
            return Err(Error::new(ErrorKind::Unreachable, "the peer ended a handshake"));
        }
        if let Err(e) = tls.process_new_packets() {
            // The peer learns why; that it may not want to is no further failure.
            let _ = tls.write_tls(&mut &*socket);
            return Err(Error::caused(ErrorKind::Invalid, "a handshake failed", e));
        }
    }
}

/// Who the peer is, by the certificate that the handshake has checked; `None` if it had none.
pub(super) fn peer(tls: &Connection) -> Result<Option<PeerIdentity>> {
    let certificate = tls.peer_certificates().and_then(<[_]>::first);
    certificate.map(|certificate| identity::read_checked(certificate)).transpose()
}
