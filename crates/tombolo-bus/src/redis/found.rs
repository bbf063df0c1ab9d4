//! What a server is found to be whenever a connection is made: its version, and the settings on which the promise rests.
//!
//! Invariant: a connection to a server whose settings would lose what it acknowledged is not used, unless that was accepted.

use std::collections::HashMap;

use redis::aio::MultiplexedConnection;
use redis::{Value, cmd};

use super::failure::failed;
use super::values::{pairs, text};
use crate::accept::{Accepted, Weakness};
use crate::{Error, Guarantee, Kind, Result};

/// The oldest server that is supported: its append-only file is one that is never torn while it is rewritten.
const VERSION_MIN: (u32, u32) = (7, 0);

const UNLOGGED: Weakness = Weakness {
    name: "unlogged",
    costs: "the death of the server loses whatever came after the last snapshot",
    remedy: "set `appendonly yes`",
};
const UNSYNCED: Weakness = Weakness {
    name: "unsynced",
    costs: "a power cut loses events that were acknowledged in the last second or longer",
    remedy: "set `appendfsync always`",
};
const UNSYNCED_REWRITE: Weakness = Weakness {
    name: "unsynced-rewrite",
    costs: "a power cut while the append-only file is rewritten loses events that were acknowledged meanwhile",
    remedy: "set `no-appendfsync-on-rewrite no`",
};
const EVICTING: Weakness = Weakness {
    name: "evicting",
    costs: "a server that is short of memory may throw away what it acknowledged",
    remedy: "set `maxmemory-policy noeviction`",
};
const UNSEEN: Weakness = Weakness {
    name: "unseen",
    costs: "whether it syncs and keeps what it acknowledged cannot be checked",
    remedy: "allow the command CONFIG GET",
};
/// All that could be accepted.
pub(super) const WEAKNESSES: &[Weakness] = &[UNLOGGED, UNSYNCED, UNSYNCED_REWRITE, EVICTING, UNSEEN];

/// Settings, what each must be, and what is lost otherwise.
const SETTINGS: [(&str, &str, &Weakness); 4] = [
    ("appendonly", "yes", &UNLOGGED),
    ("appendfsync", "always", &UNSYNCED),
    ("no-appendfsync-on-rewrite", "no", &UNSYNCED_REWRITE),
    ("maxmemory-policy", "noeviction", &EVICTING),
];

/// What was found.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub(super) version: String,
    keeps: bool,
    replicas: u32,
}

impl Found {
    pub(super) async fn ask(connection: &mut MultiplexedConnection, accepted: &Accepted) -> Result<Self> {
        let facts: Value = cmd("INFO").query_async(connection).await.map_err(|error| failed(&error))?;
        let facts = facts_of(&text(&facts).unwrap_or_default());
        let mut ask = cmd("CONFIG");
        ask.arg("GET").arg(SETTINGS.map(|(name, _, _)| name).as_slice());
        let settings = match ask.query_async::<Value>(connection).await {
            Ok(settings) => Some(pairs(settings)),
            // A lost connection is no answer.
            Err(error) if failed(&error).is_transient() => return Err(failed(&error)),
            Err(_) => None,
        };
        Self::read(&facts, settings, accepted)
    }

    fn read(
        facts: &HashMap<String, String>,
        settings: Option<HashMap<String, String>>,
        accepted: &Accepted,
    ) -> Result<Self> {
        let fact = |name: &str| facts.get(name).map(String::as_str).unwrap_or_default();
        let version = fact("redis_version");
        check_version(version)?;
        if fact("redis_mode") == "cluster" {
            let message =
                "the Redis server is part of a cluster; expected one that stands alone, or with replicas";
            return Err(Error::new(Kind::Configuration, message));
        }
        if fact("role") != "master" {
            let message = "the Redis server is a replica; expected the server that it follows";
            return Err(Error::new(Kind::Unavailable, message));
        }
        let mut keeps = settings.is_some();
        match settings {
            None => accepted.check(&UNSEEN, "the Redis server does not tell its settings")?,
            Some(settings) => {
                for (name, expected, weakness) in SETTINGS {
                    let found = settings.get(name).map(String::as_str).unwrap_or("not known");
                    if found != expected {
                        keeps = false;
                        accepted.check(weakness, &format!("the Redis server runs with {name} {found}"))?;
                    }
                }
            }
        }
        let replicas = fact("connected_slaves").parse().unwrap_or(0);
        Ok(Self { version: version.to_owned(), keeps, replicas })
    }

    pub(super) fn guarantee(found: Option<&Self>) -> Guarantee {
        let Some(found) = found else {
            return Guarantee {
                engine: "Redis, of a version not known yet".into(),
                survives_power_cut: false,
                detail: "the server was not reached yet, so its settings are not known".into(),
            };
        };
        let detail = match found.keeps {
            true => {
                "written to the append-only file and synced to the server's disk before it is acknowledged and before \
                 any reader is sent it (appendfsync always)"
            }
            false => {
                "taken, but settings of the server that were accepted by name let a crash, a power cut or want of memory lose it"
            }
        };
        let replicas = match found.replicas {
            0 => String::new(),
            count => format!(
                "; its {count} replicas follow later, so a failover to one may lose what was acknowledged last"
            ),
        };
        Guarantee {
            engine: format!("Redis {}", found.version),
            survives_power_cut: found.keeps,
            detail: format!("{detail}; all of it is kept in the server's memory too{replicas}"),
        }
    }
}

/// The lines `name:value` of INFO.
fn facts_of(text: &str) -> HashMap<String, String> {
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    lines.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect()
}

fn check_version(version: &str) -> Result<()> {
    let mut numbers = version.split('.').map(|number| number.parse::<u32>().unwrap_or(0));
    let found = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if found >= VERSION_MIN {
        return Ok(());
    }
    let (major, minor) = VERSION_MIN;
    let message =
        format!("Redis server is version {version:?}; expected {major}.{minor} or later: upgrade it");
    Err(Error::new(Kind::Configuration, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(settings: Option<[&str; 4]>, info: &str, accept: &str) -> Result<Found> {
        let (_, accepted) = Accepted::split(&format!("redis://h?accept={accept}"), WEAKNESSES)?;
        let settings = settings.map(|values| {
            let names = SETTINGS.iter().map(|(name, _, _)| (*name).to_owned());
            names.zip(values.map(str::to_owned)).collect()
        });
        Found::read(&facts_of(info), settings, &accepted)
    }

    const INFO: &str = "# Server\r\nredis_version:7.0.15\r\nredis_mode:standalone\r\nrole:master\r\n";
    const GOOD: [&str; 4] = ["yes", "always", "no", "noeviction"];

    #[test]
    fn what_loses_events_is_refused_by_name_unless_accepted() {
        assert!(Found::guarantee(Some(&found(Some(GOOD), INFO, "").unwrap())).survives_power_cut);
        let bad = [
            ("no", "unlogged"),
            ("everysec", "unsynced"),
            ("yes", "unsynced-rewrite"),
            ("allkeys-lru", "evicting"),
        ];
        for (at, (value, name)) in bad.into_iter().enumerate() {
            let mut settings = GOOD;
            settings[at] = value;
            let error = found(Some(settings), INFO, "").unwrap_err();
            assert_eq!(error.kind(), Kind::Unsafe);
            let said = error.to_string();
            assert!(said.contains(value) && said.contains(&format!("accept={name}")), "{said}");
            let accepted = found(Some(settings), INFO, name).unwrap();
            assert!(!Found::guarantee(Some(&accepted)).survives_power_cut);
        }
        assert!(found(None, INFO, "").unwrap_err().to_string().contains("accept=unseen"));
    }

    #[test]
    fn a_server_of_another_kind_is_refused() {
        for (from, to, kind) in [
            ("7.0.15", "6.2.14", Kind::Configuration),
            ("standalone", "cluster", Kind::Configuration),
            ("master", "slave", Kind::Unavailable),
        ] {
            assert_eq!(found(Some(GOOD), &INFO.replace(from, to), "").unwrap_err().kind(), kind);
        }
    }
}
