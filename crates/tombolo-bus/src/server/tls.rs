//! TLS on both ends of the protocol: what a server shows and asks for, and what a client trusts and shows.
//!
//! Invariant: files that cannot be used never take the place of those that can; connections keep what they began with; and a
//! certificate of a client counts only once it was verified against the authorities that the operator named.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use tokio::net::TcpStream;
use tokio::time::{MissedTickBehavior, interval};
use tokio_rustls::rustls::client::verify_server_name;
use tokio_rustls::rustls::crypto::aws_lc_rs::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use crate::{Error, Kind, Result};

/// How often the files of a server are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long the two ends may take to agree.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// Both versions of HTTP, the newer one first.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// A certificate with its chain, and its key, each a file in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// The certificate, and those that signed it.
    pub chain: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// What a server seals its connections with: read again whenever the files change.
#[derive(Debug, Clone)]
pub struct Seal(Arc<Sealing>);

struct Sealing {
    own: Certificate,
    clients: Option<PathBuf>,
    current: RwLock<TlsAcceptor>,
}

impl std::fmt::Debug for Sealing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sealing")
            .field("own", &self.own)
            .field("clients", &self.clients)
            .finish_non_exhaustive()
    }
}

impl Seal {
    /// Reads the server's certificate, and the authorities of its clients' where it shall ask for those (mutual TLS). A client
    /// without a certificate is let in all the same, and has to show a token.
    ///
    /// # Errors
    /// `Configuration` for a file that cannot be used.
    pub fn open(own: Certificate, clients: Option<PathBuf>) -> Result<Self> {
        let current = RwLock::new(acceptor(&own, clients.as_deref())?);
        Ok(Self(Arc::new(Sealing { own, clients, current })))
    }

    /// What seals a new connection.
    #[must_use]
    pub fn acceptor(&self) -> TlsAcceptor {
        self.0.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads the files again whenever they change, until it is dropped.
    pub async fn follow(&self) {
        let mut clock = interval(LOOK_EVERY);
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut known = self.changed();
        loop {
            clock.tick().await;
            let now = self.changed();
            if now == known {
                continue;
            }
            match acceptor(&self.0.own, self.0.clients.as_deref()) {
                Ok(acceptor) => {
                    *self.0.current.write().unwrap_or_else(PoisonError::into_inner) = acceptor;
                    tracing::info!(chain = %self.0.own.chain.display(), "the certificate was read again");
                    known = now;
                }
                // Chain and key are written one after the other; the next look may find both.
                Err(error) => tracing::warn!(%error, "the changed certificate is not used"),
            }
        }
    }

    fn changed(&self) -> Vec<Option<(SystemTime, u64)>> {
        let of = |path: &PathBuf| {
            let found = path.metadata().ok()?;
            Some((found.modified().ok()?, found.len()))
        };
        let Certificate { chain, key } = &self.0.own;
        [chain, key].into_iter().chain(&self.0.clients).map(of).collect()
    }

    /// Agrees with a client.
    pub(super) async fn accept(&self, stream: TcpStream) -> std::io::Result<server::TlsStream<TcpStream>> {
        tokio::time::timeout(HANDSHAKE_MAX, self.acceptor().accept(stream)).await?
    }
}

/// What a client's certificate says, once it was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificate(CertificateDer<'static>);

impl ClientCertificate {
    pub(super) fn of(stream: &server::TlsStream<TcpStream>) -> Option<Self> {
        let shown = stream.get_ref().1.peer_certificates()?.first()?;
        Some(Self(shown.clone().into_owned()))
    }

    /// Whether it was given out for this name: one of its alternative names, as a DNS name.
    #[must_use]
    pub fn is_for(&self, name: &str) -> bool {
        let Ok(name) = ServerName::try_from(name) else { return false };
        ParsedCertificate::try_from(&self.0).is_ok_and(|parsed| verify_server_name(&parsed, &name).is_ok())
    }
}

/// Whom a client trusts, and what it shows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trust {
    /// The authorities, a file in PEM; the system's where there is none.
    pub authorities: Option<PathBuf>,
    /// What it shows where it is asked (mutual TLS).
    pub own: Option<Certificate>,
}

impl Trust {
    /// What connects to a server.
    pub(super) fn connector(&self) -> Result<TlsConnector> {
        let roots = match &self.authorities {
            Some(path) => authorities(path)?,
            None => system_authorities(),
        };
        let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| unusable("TLS cannot be set up", error))?
            .with_root_certificates(roots);
        let mut config = match &self.own {
            None => config.with_no_client_auth(),
            Some(own) => {
                let (chain, key) = read(own)?;
                let wrong = |error| unusable(&format!("{} is not of its key", own.chain.display()), error);
                config.with_client_auth_cert(chain, key).map_err(wrong)?
            }
        };
        config.alpn_protocols = vec![PROTOCOLS[0].to_vec()];
        Ok(TlsConnector::from(Arc::new(config)))
    }
}

/// Connects to a server, and agrees with it.
pub(super) async fn connect(
    connector: TlsConnector,
    host: String,
    port: u16,
) -> std::io::Result<client::TlsStream<TcpStream>> {
    let name = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let name = ServerName::try_from(name).map_err(std::io::Error::other)?;
    let stream = TcpStream::connect(format!("{host}:{port}")).await?;
    stream.set_nodelay(true)?;
    tokio::time::timeout(HANDSHAKE_MAX, connector.connect(name, stream)).await?
}

fn acceptor(own: &Certificate, clients: Option<&Path>) -> Result<TlsAcceptor> {
    let (chain, key) = read(own)?;
    let provider = Arc::new(default_provider());
    let config = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| unusable("TLS cannot be set up", error))?;
    let config = match clients {
        None => config.with_no_client_auth(),
        Some(path) => {
            let roots = Arc::new(authorities(path)?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider)
                .allow_unauthenticated()
                .build()
                .map_err(|error| unusable(&format!("{} holds no authority", path.display()), error))?;
            config.with_client_cert_verifier(verifier)
        }
    };
    let wrong = |error| unusable(&format!("{} is not of its key", own.chain.display()), error);
    let mut config = config.with_single_cert(chain, key).map_err(wrong)?;
    config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).to_vec();
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn read(own: &Certificate) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
    let chain = certificates(&own.chain)?;
    let key = PrivateKeyDer::from_pem_file(&own.key)
        .map_err(|error| unusable(&format!("{} is no private key in PEM", own.key.display()), error))?;
    Ok((chain, key))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let found =
        CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<std::result::Result<Vec<_>, _>>);
    let wrong = || format!("{} is no file of certificates in PEM", path.display());
    let found = found.map_err(|error| unusable(&wrong(), error))?;
    if found.is_empty() { Err(Error::new(Kind::Configuration, wrong())) } else { Ok(found) }
}

fn authorities(path: &Path) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        let wrong = |error| unusable(&format!("{} holds what is no authority", path.display()), error);
        roots.add(certificate).map_err(wrong)?;
    }
    Ok(roots)
}

/// The authorities that this machine trusts; one that cannot be read is said.
#[must_use]
pub fn system_authorities() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::warn!(%error, "a root certificate of the system could not be read");
    }
    roots.add_parsable_certificates(found.certs);
    roots
}

fn unusable(what: &str, error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(Kind::Configuration, format!("{what}: {error}")).because(error)
}
