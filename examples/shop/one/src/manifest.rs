//! What `tombolo.toml` says of the services, as far as one process needs it: their ports.
//!
//! Invariant: a service that the manifest does not have is refused by name.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::Outcome;

/// The shop's manifest.
pub(crate) struct Manifest {
    path: PathBuf,
    services: BTreeMap<String, Declared>,
}

#[derive(Deserialize)]
struct Whole {
    services: BTreeMap<String, Declared>,
}

#[derive(Deserialize)]
struct Declared {
    /// None for a free one.
    port: Option<u16>,
}

impl Manifest {
    /// Reads that in `folder`.
    pub(crate) fn read(folder: &Path) -> Outcome<Self> {
        let path = folder.join("tombolo.toml");
        let text =
            fs::read_to_string(&path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        let whole: Whole = toml::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Self { path, services: whole.services })
    }

    /// The port of a service; 0 if any will do.
    pub(crate) fn port(&self, service: &str) -> Outcome<u16> {
        let known = || self.services.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        let declared = self.services.get(service).ok_or_else(|| {
            format!("{} has no service {service:?}; expected one, beside: {}", self.path.display(), known())
        })?;
        Ok(declared.port.unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shops_own_manifest_has_a_port_for_each_service() {
        let manifest =
            Manifest::read(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))).expect("it reads");
        let ports = ["users", "products", "orders", "order-history"].map(|name| manifest.port(name).ok());
        assert_eq!(ports, [Some(7101), Some(7102), Some(7103), Some(7104)]);
        let error = manifest.port("shipping").expect_err("there is none").to_string();
        assert!(error.contains("shipping") && error.contains("order-history"), "{error}");
    }
}
