//! The certificate of the door, read again when its files change.
//!
//! Invariant: a certificate that cannot be used never takes the place of one that can; connections keep the one that they began with.

use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use tokio::time::{MissedTickBehavior, interval};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::config::Certificate;
use crate::error::{Error, Kind, Result};

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// What seals connections.
pub(crate) struct Seal {
    files: Certificate,
    current: RwLock<TlsAcceptor>,
}

impl Seal {
    pub(crate) fn open(files: &Certificate) -> Result<Self> {
        Ok(Self { files: files.clone(), current: RwLock::new(acceptor(files)?) })
    }

    /// What seals a new connection.
    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads the files again whenever they change, until it is dropped.
    pub(crate) async fn follow(&self) {
        let mut clock = interval(LOOK_EVERY);
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut known = self.changed();
        loop {
            clock.tick().await;
            let now = self.changed();
            if now == known {
                continue;
            }
            match acceptor(&self.files) {
                Ok(acceptor) => {
                    *self.current.write().unwrap_or_else(PoisonError::into_inner) = acceptor;
                    tracing::info!(chain = %self.files.chain.display(), "the certificate was read again");
                    known = now;
                }
                // Chain and key are written one after the other; the next look may find both.
                Err(error) => tracing::warn!(%error, "the changed certificate is not used"),
            }
        }
    }

    fn changed(&self) -> [Option<(SystemTime, u64)>; 2] {
        let of = |path: &Path| {
            let found = path.metadata().ok()?;
            Some((found.modified().ok()?, found.len()))
        };
        [of(&self.files.chain), of(&self.files.key)]
    }
}

fn acceptor(files: &Certificate) -> Result<TlsAcceptor> {
    let wrong = |path: &Path, what: &str| {
        Error::new(Kind::Settings, format!("{} is no {what} in PEM that can be used", path.display()))
    };
    let no_chain = || wrong(&files.chain, "chain of certificates");
    let chain: Vec<_> = CertificateDer::pem_file_iter(&files.chain)
        .and_then(Iterator::collect)
        .map_err(|error| no_chain().because(error))?;
    let no_key = || wrong(&files.key, "private key");
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|error| no_key().because(error))?;
    let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|versions| versions.with_no_client_auth().with_single_cert(chain, key));
    let mut config = config.map_err(|error| no_chain().because(error))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}
