//! `tombolo new service`: what a new service begins with: a route, an event, a view, and a test that passes.
//!
//! Invariant: nothing that is there is overwritten, and what is made compiles as it stands.

use std::fs;
use std::path::{Path, PathBuf};

use crate::arguments::NewService;
use crate::commands::say;
use crate::error::{Context, Error, Result};

/// The files, by their place in the new folder.
const FILES: [(&str, &str); 7] = [
    ("Cargo.toml", include_str!("../../templates/service/Cargo.toml.in")),
    ("src/lib.rs", include_str!("../../templates/service/lib.rs.in")),
    ("src/main.rs", include_str!("../../templates/service/main.rs.in")),
    ("src/schema.sql", include_str!("../../templates/service/schema.sql.in")),
    ("tests/service.rs", include_str!("../../templates/service/test.rs.in")),
    ("tombolo.toml", include_str!("../../templates/service/tombolo.toml.in")),
    (".gitignore", include_str!("../../templates/service/gitignore.in")),
];

/// The library, seen from this crate.
const LIBRARY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tombolo");

/// `tombolo new service`.
pub(crate) fn service(arguments: &NewService) -> Result<()> {
    let name = arguments.name.as_str();
    let folder = arguments.into.join(name);
    fs::create_dir_all(&arguments.into).context(|| format!("cannot make {}", arguments.into.display()))?;
    fs::create_dir(&folder).map_err(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => {
            Error::failed(format!("{} is there already; nothing was changed", folder.display()))
        }
        _ => Error::failed(format!("cannot make {}: {error}", folder.display())),
    })?;
    let library = library(arguments.tombolo.as_deref())?;
    for (place, text) in FILES {
        write(&folder.join(place), &filled(text, name, library.as_deref()))?;
    }
    say(&format!(
        "made {}; next: cd {}, cargo test, cargo build, tombolo dev",
        folder.display(),
        folder.display()
    ))
}

/// Where the library's source is: as was said, or where this program was built, if that is still there.
fn library(said: Option<&Path>) -> Result<Option<PathBuf>> {
    let Some(said) = said else { return Ok(PathBuf::from(LIBRARY).canonicalize().ok()) };
    let inside = said.join("crates/tombolo");
    let library = if inside.is_dir() { inside } else { said.to_owned() };
    let path = library.canonicalize();
    path.map(Some).map_err(|error| Error::usage(format!("cannot use --tombolo {}: {error}", said.display())))
}

fn filled(text: &str, name: &str, library: Option<&Path>) -> String {
    let place = match library {
        Some(path) => format!("path = {:?}", path.display().to_string()),
        None => format!("version = {:?}", env!("CARGO_PKG_VERSION")),
    };
    text.replace("{{tombolo}}", &format!("{{ {place} }}"))
        .replace("{{tombolo_testing}}", &format!("{{ {place}, features = [\"testing\"] }}"))
        .replace("{{crate}}", &format!("{}_service", name.replace('-', "_")))
        .replace("{{name}}", name)
}

fn write(path: &Path, text: &str) -> Result<()> {
    let written = path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::write(path, text));
    written.context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_left_to_fill_in() {
        for (place, text) in FILES {
            for library in [None, Some(Path::new("/somewhere"))] {
                let filled = filled(text, "order-notes", library);
                assert!(!filled.contains("{{"), "{place}: {filled}");
            }
        }
    }
}
