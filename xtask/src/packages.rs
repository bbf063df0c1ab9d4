//! Packages of other languages that tests need: of PyPI in a virtual environment, of npm in a folder, both under `target/packages`.
//! Invariant: nothing is fetched unasked, and what is there is what the lists of the sources name.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tombolo_servers::{Context, Error, programs};

use crate::chore;
use crate::workspace::Workspace;

/// Where the lists are: `requirements.txt`, `package.json` and its lock.
const LISTS: &str = "crates/tombolo-http/tests/http/languages";
/// The variable by which tests find the packages.
pub(crate) const VARIABLE: &str = "TOMBOLO_TEST_PACKAGES";
/// What the programs are called in Debian.
const PROGRAMS: [(&str, &str); 3] = [("python3", "python3-venv"), ("node", "nodejs"), ("npm", "npm")];

/// The folder with all packages, which are fetched where that is allowed: by `install`, or by `CI=true`.
pub(crate) fn folder(workspace: &Workspace, install: bool) -> Result<PathBuf, Error> {
    let (lists, folder) = (workspace.root.join(LISTS), workspace.target.join("packages"));
    let wanted = ["requirements.txt", "package.json", "package-lock.json"]
        .map(|name| fs::read_to_string(lists.join(name)));
    let wanted = wanted
        .into_iter()
        .collect::<Result<Vec<_>, _>>()
        .context(|| format!("read the lists in {LISTS}"))?
        .join("\n");
    let stamp = folder.join("lists");
    if fs::read_to_string(&stamp).is_ok_and(|there| there == wanted) {
        return Ok(folder);
    }
    if !programs::may_fetch(install) {
        return Err(Error::new(format!(
            "tests need packages of PyPI and npm ({LISTS}), which are not in {}; `cargo xtask test --install` fetches them there",
            folder.display()
        )));
    }
    programs::commands(&PROGRAMS, install)?;
    fetch(&lists, &folder)?;
    fs::write(&stamp, wanted).context(|| format!("write {}", stamp.display()))?;
    Ok(folder)
}

fn fetch(lists: &Path, folder: &Path) -> Result<(), Error> {
    fs::create_dir_all(folder).context(|| format!("make {}", folder.display()))?;
    let python = folder.join("python");
    chore::run(Command::new("python3").args(["-m", "venv"]).arg(&python))?;
    let requirements = lists.join("requirements.txt");
    chore::run(Command::new(python.join("bin/pip")).args(["install", "--quiet", "-r"]).arg(requirements))?;
    for name in ["package.json", "package-lock.json"] {
        fs::copy(lists.join(name), folder.join(name)).context(|| format!("copy {name}"))?;
    }
    chore::run(Command::new("npm").args(["ci", "--silent", "--no-audit", "--no-fund"]).current_dir(folder))
}
