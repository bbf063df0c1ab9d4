//! How the service is set up: in code, or from the environment.
//!
//! Invariant: what is not said is as strict as it can be, and no secret is in a `Debug` form.

use std::collections::BTreeMap;
use std::env;
use std::path::PathBuf;
use std::time::Duration;

use tombolo::auth::token::Algorithm;
use tombolo::settings::{LISTEN, Secret, URL, database_kind};
use tombolo::{Error, Kind, Result};

use crate::sealing::SealingKey;

const ISSUER: &str = "TOMBOLO_IDENTITY_ISSUER";
const AUDIENCE: &str = "TOMBOLO_IDENTITY_AUDIENCE";
const KEY: &str = "TOMBOLO_IDENTITY_KEY";
const KEY_FILE: &str = "TOMBOLO_IDENTITY_KEY_FILE";
const CLIENTS: &str = "TOMBOLO_IDENTITY_CLIENTS";
const TOKEN_LIFE: &str = "TOMBOLO_IDENTITY_TOKEN_LIFE_S";
const SESSION_LIFE: &str = "TOMBOLO_IDENTITY_SESSION_LIFE_S";
const ROTATE: &str = "TOMBOLO_IDENTITY_ROTATE_S";
const ALGORITHM: &str = "TOMBOLO_IDENTITY_ALGORITHM";
/// Whether somebody may register without a password, as in a demonstration; such a user can't sign in.
const OPEN: &str = "TOMBOLO_IDENTITY_WITHOUT_PASSWORD";

/// Whether anybody may look users up, not administrators alone.
const PUBLIC: &str = "TOMBOLO_IDENTITY_PUBLIC";

/// The shortest secret of a client, in bytes.
const SECRET_BYTES_MIN: usize = 16;

/// How the service is set up.
#[derive(Debug, Clone)]
pub struct Config {
    /// The issuer's name: the address under which others reach the service.
    pub issuer: String,
    /// Whom its tokens are for.
    pub audience: String,
    /// What seals the signing keys.
    pub sealing_key: SealingKey,
    /// Who may introspect and revoke tokens: the names of services, and their secrets.
    pub clients: BTreeMap<String, Secret>,
    /// How long an access token lives.
    pub token_life: Duration,
    /// How long a session lives without being used.
    pub session_life: Duration,
    /// How long a key signs before the next one does.
    pub rotate_every: Duration,
    /// How tokens are signed: `ES256` or `EdDSA`.
    pub algorithm: Algorithm,
    /// Whether somebody may register without a password; such a user can't sign in.
    pub without_password: bool,
    /// Whether anybody may look users up, not administrators alone.
    pub public: bool,
}

impl Config {
    /// The usual setting of an issuer.
    #[must_use]
    pub fn new(issuer: &str, sealing_key: SealingKey) -> Self {
        Self {
            issuer: issuer.to_owned(),
            audience: "tombolo".to_owned(),
            sealing_key,
            clients: BTreeMap::new(),
            token_life: Duration::from_secs(15 * 60),
            session_life: Duration::from_secs(30 * 24 * 3600),
            rotate_every: Duration::from_secs(30 * 24 * 3600),
            algorithm: Algorithm::ES256,
            without_password: false,
            public: false,
        }
    }

    /// With a client that may introspect and revoke tokens.
    #[must_use]
    pub fn client(mut self, name: &str, secret: &str) -> Self {
        self.clients.insert(name.to_owned(), Secret(secret.to_owned()));
        self
    }

    /// What the environment says; `key_file` is where the key-encryption key lies unless that says another place.
    ///
    /// # Errors
    /// `Settings` for a value that cannot be meant.
    pub fn from_env(key_file: PathBuf) -> Result<Self> {
        Self::new(&issuer()?, sealing_key(key_file)?).with_env()
    }

    /// The same for a program that has an address of its own where the environment names none.
    ///
    /// # Errors
    /// As [`Config::from_env`].
    pub fn from_env_or(address: &str, key_file: PathBuf) -> Result<Self> {
        Self::new(&issuer().unwrap_or_else(|_| address.to_owned()), sealing_key(key_file)?).with_env()
    }

    fn with_env(mut self) -> Result<Self> {
        let config = &mut self;
        if let Some(audience) = value(AUDIENCE) {
            config.audience = audience;
        }
        if let Some(clients) = value(CLIENTS) {
            config.clients = parse_clients(&clients)?;
        }
        for (name, life) in [
            (TOKEN_LIFE, &mut config.token_life),
            (SESSION_LIFE, &mut config.session_life),
            (ROTATE, &mut config.rotate_every),
        ] {
            if let Some(given) = value(name) {
                let seconds = given.parse().ok().filter(|&seconds| seconds > 0).ok_or_else(|| {
                    wrong(format!("{name} is {given:?}; expected a number of seconds from 1"))
                })?;
                *life = Duration::from_secs(seconds);
            }
        }
        if let Some(algorithm) = value(ALGORITHM) {
            config.algorithm = parse_algorithm(&algorithm)?;
        }
        config.without_password = value(OPEN).is_some_and(|open| open == "true");
        config.public = value(PUBLIC).is_some_and(|public| public == "true");
        Ok(self)
    }
}

/// Where the key-encryption key lies unless the environment says another place: beside the database's file, or else in a file of the
/// service's name in the working folder.
#[must_use]
pub fn key_file(address: &str, service: &str) -> PathBuf {
    if database_kind(address) != "sqlite" {
        return PathBuf::from(format!("{service}.key"));
    }
    let file = address.trim_start_matches("sqlite:").trim_start_matches("//");
    let file = file.split_once('?').map_or(file, |(file, _)| file);
    PathBuf::from(format!("{file}.key"))
}

fn value(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

fn wrong(message: String) -> Error {
    Error::new(Kind::Settings, message)
}

fn issuer() -> Result<String> {
    let listen =
        || value(LISTEN).filter(|listen| !listen.ends_with(":0")).map(|listen| format!("http://{listen}"));
    value(ISSUER).or_else(|| value(URL)).or_else(listen).ok_or_else(|| {
        wrong(format!(
            "{ISSUER} is not set; expected the address under which others reach this service, which its tokens name"
        ))
    })
}

fn sealing_key(key_file: PathBuf) -> Result<SealingKey> {
    // A program that only describes itself seals nothing, and leaves no file.
    if env::args().nth(1).is_some() {
        return SealingKey::generate();
    }
    match value(KEY) {
        Some(key) => SealingKey::parse(KEY, &key),
        None => SealingKey::in_file(&value(KEY_FILE).map_or(key_file, PathBuf::from)),
    }
}

fn parse_algorithm(name: &str) -> Result<Algorithm> {
    match name {
        "ES256" => Ok(Algorithm::ES256),
        "EdDSA" => Ok(Algorithm::EdDSA),
        _ => Err(wrong(format!("{ALGORITHM} is {name:?}; expected \"ES256\" or \"EdDSA\""))),
    }
}

/// `orders=SECRET,products=SECRET`. What is wrong is said without the secrets.
fn parse_clients(text: &str) -> Result<BTreeMap<String, Secret>> {
    let mut clients = BTreeMap::new();
    for (number, client) in text.split(',').enumerate() {
        let shape = || {
            wrong(format!(
                "entry {} of {CLIENTS} is not NAME=SECRET with a secret of {SECRET_BYTES_MIN} bytes or more; `openssl rand -hex 16` makes one",
                number + 1
            ))
        };
        let (name, secret) = client.trim().split_once('=').ok_or_else(shape)?;
        if name.is_empty() || secret.len() < SECRET_BYTES_MIN {
            return Err(shape());
        }
        clients.insert(name.to_owned(), Secret(secret.to_owned()));
    }
    Ok(clients)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_read_and_a_short_secret_is_refused_without_being_repeated() {
        let clients = parse_clients("orders=0123456789abcdef, products=fedcba9876543210").unwrap();
        assert_eq!(clients.keys().collect::<Vec<_>>(), ["orders", "products"]);
        for text in ["orders", "orders=hush", "=0123456789abcdef"] {
            let refused = parse_clients(text).unwrap_err().to_string();
            assert!(refused.contains("entry 1") && !refused.contains("hush"), "{refused}");
        }
    }

    #[test]
    fn the_key_lies_beside_the_database_if_that_is_a_file() {
        for (address, file) in [
            ("sqlite:identity.db", "identity.db.key"),
            ("sqlite:///data/users.db?mode=rwc", "/data/users.db.key"),
            ("data/users.db", "data/users.db.key"),
            ("mysql://root@db/users", "users.key"),
            ("postgres://me@db/users", "users.key"),
        ] {
            assert_eq!(key_file(address, "users"), PathBuf::from(file), "{address}");
        }
    }

    #[test]
    fn no_secret_is_in_the_debug_form() {
        let key = SealingKey::generate().unwrap();
        let shown = format!("{:?}", Config::new("http://i", key).client("orders", "hush-hush-hush-hush"));
        assert!(shown.contains("orders") && !shown.contains("hush"), "{shown}");
    }
}
