//! What an operator writes of the bus's HTTP side: the `[bus]` table of a `tombolo.toml`.
//!
//! Invariant: a key that means nothing is refused, and so is a credential that proves nothing.

use std::path::Path;

use serde::Deserialize;
use tombolo_bus::Identity;
use tombolo_bus::server::Credential;
use tombolo_event::ServiceName;

use crate::plain::Plain;
use crate::problem::{Problem, Refusal};
use crate::push::{Subscription, Webhooks};

/// The tables under `[bus]` that are about HTTP.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Who may call, and by which token.
    #[serde(default)]
    pub credential: Vec<CredentialTable>,
    /// Where plain events are taken, and who is told of them.
    #[serde(default)]
    pub plain: Vec<Plain>,
    /// Who is sent events of topics.
    #[serde(default)]
    pub push: Vec<Subscription>,
    /// What seals connections over TCP.
    pub tls: Option<TlsTable>,
    /// What holds for subscriptions that services make themselves.
    #[serde(default)]
    pub webhooks: Webhooks,
}

/// `[bus.tls]`: paths are relative to the file that they stand in.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsTable {
    /// The certificate of the bus with its chain, in PEM.
    pub certificate: std::path::PathBuf,
    /// Its private key, in PEM.
    pub key: std::path::PathBuf,
    /// The authorities of its clients' certificates, in PEM, where these count as credentials (mutual TLS).
    pub clients: Option<std::path::PathBuf>,
}

/// One `[[bus.credential]]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CredentialTable {
    /// The service that it is; none for an operator.
    pub service: Option<ServiceName>,
    /// Whether it is an operator.
    #[serde(default)]
    pub operator: bool,
    /// The SHA-256 of its tokens, in hexadecimal digits: two while one takes the place of the other.
    #[serde(default)]
    pub token_sha256: Vec<String>,
    /// A file with its tokens, one a line.
    pub token_file: Option<std::path::PathBuf>,
    /// The DNS names for which a certificate of it may have been given out, where `[bus.tls]` has `clients`.
    #[serde(default)]
    pub certificate: Vec<String>,
    /// The topics that it may read beside its own; all, if it is left out.
    pub reads: Option<Vec<ServiceName>>,
}

impl Config {
    /// The credentials, with the files of tokens read now; paths are relative to `folder`.
    ///
    /// # Errors
    /// If one is nobody's, or proves nothing.
    pub fn credentials(&self, folder: &Path) -> Result<Vec<Credential>, Problem> {
        self.credential.iter().map(|table| table.credential(folder)).collect()
    }
}

impl CredentialTable {
    fn credential(&self, folder: &Path) -> Result<Credential, Problem> {
        let identity = match (&self.service, self.operator) {
            (Some(name), false) => Identity::Service(name.clone()),
            (None, true) => Identity::Operator,
            _ => {
                return Err(wrong(
                    "a [[bus.credential]] is a service's or an operator's: expected service = \"NAME\", or operator = true",
                ));
            }
        };
        let mut tokens = self.token_sha256.iter().map(|text| hash(text)).collect::<Result<Vec<_>, _>>()?;
        if let Some(file) = &self.token_file {
            let path = folder.join(file);
            let text = std::fs::read_to_string(&path).map_err(|error| {
                wrong(&format!("the tokens of {identity} cannot be read from {}: {error}", path.display()))
            })?;
            tokens.extend(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(Credential::hash));
        }
        if tokens.is_empty() && self.certificate.is_empty() {
            let detail = format!(
                "{identity} has no token and no certificate; expected token_sha256 = [\"…\"], token_file = \"…\" or certificate = [\"NAME\"]: `openssl rand -hex 32 | tee token | tr -d '\\n' | sha256sum` makes one"
            );
            return Err(wrong(&detail));
        }
        Ok(Credential { identity, tokens, certificates: self.certificate.clone(), reads: self.reads.clone() })
    }
}

fn hash(text: &str) -> Result<[u8; 32], Problem> {
    let byte = |at: usize| text.get(at..at + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok());
    let bytes: Option<Vec<u8>> = (0..text.len()).step_by(2).map(byte).collect();
    let whole = bytes.and_then(|bytes| bytes.try_into().ok());
    whole.ok_or_else(|| wrong(&format!("token_sha256 {text:?} is none; expected 64 hexadecimal digits")))
}

fn wrong(detail: &str) -> Problem {
    Problem::new(Refusal::InvalidParameter, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<Credential>, String> {
        let config: Config = toml::from_str(text).map_err(|error| error.to_string())?;
        config.credentials(Path::new("/")).map_err(|problem| problem.detail().to_owned())
    }

    #[test]
    fn a_credential_is_known_by_the_hash_of_its_token() {
        let hash = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";
        let read =
            read(&format!("[[credential]]\nservice = \"posts\"\ntoken_sha256 = [\"{hash}\"]")).unwrap();
        assert_eq!(read[0].tokens, [Credential::hash("test")]);
    }

    #[test]
    fn what_proves_nothing_is_refused() {
        for (text, said) in [
            ("[[credential]]\nservice = \"posts\"", "has no token"),
            ("[[credential]]\ntoken_sha256 = []", "service = "),
            ("[[credential]]\noperator = true\ntoken_sha256 = [\"12\"]", "64 hexadecimal"),
            ("[[credential]]\noperator = true\ntoken_file = \"nowhere\"", "cannot be read"),
            ("[[credential]]\noperator = true\ntoken = \"x\"", "unknown field"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(said), "{error}");
        }
    }
}
