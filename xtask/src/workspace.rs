//! The workspace as Cargo and git know it: packages, targets, features, dependencies, tracked files.
//! Everything else asks here. Invariant: paths are relative to the root of the repository.

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;
use tombolo_servers::programs::output;
use tombolo_servers::{Context, Error};

/// The repository and its packages.
pub(crate) struct Workspace {
    pub(crate) root: PathBuf,
    pub(crate) target: PathBuf,
    pub(crate) packages: Vec<Package>,
}

/// One member of the workspace.
pub(crate) struct Package {
    pub(crate) name: String,
    /// Its folder.
    pub(crate) folder: PathBuf,
    /// The first file of each of its targets.
    pub(crate) roots: Vec<PathBuf>,
    pub(crate) features: Vec<String>,
    pub(crate) dependencies: Vec<String>,
}

impl Workspace {
    pub(crate) fn find() -> Result<Self, Error> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let root = root.parent().ok_or_else(|| Error::new("xtask has no parent folder"))?.to_path_buf();
        let mut command = cargo(&root);
        command.args(["metadata", "--format-version=1", "--no-deps"]);
        let metadata: Value = serde_json::from_str(&output(&mut command)?)
            .context(|| "read what `cargo metadata` printed".into())?;
        let packages = array(&metadata["packages"]).map(|package| Package::read(package, &root)).collect();
        Ok(Workspace { target: PathBuf::from(text(&metadata["target_directory"])), packages, root })
    }

    pub(crate) fn package(&self, name: &str) -> Option<&Package> {
        self.packages.iter().find(|package| package.name == name)
    }

    /// All files that git tracks or would track.
    pub(crate) fn files(&self) -> Result<Vec<PathBuf>, Error> {
        let mut command = Command::new("git");
        command.current_dir(&self.root);
        command.args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
        let listed = output(&mut command)?;
        let mut files: Vec<PathBuf> = listed.split_terminator('\0').map(PathBuf::from).collect();
        files.retain(|file| self.root.join(file).is_file());
        files.sort();
        files.dedup();
        Ok(files)
    }

    /// Cargo, run in the root of the repository.
    pub(crate) fn cargo(&self) -> Command {
        cargo(&self.root)
    }
}

impl Package {
    fn read(package: &Value, root: &Path) -> Self {
        let relative = |value: &Value| {
            let path = Path::new(text(value));
            path.strip_prefix(root).unwrap_or(path).to_path_buf()
        };
        let mut folder = relative(&package["manifest_path"]);
        folder.pop();
        let dependencies = array(&package["dependencies"]).map(|it| text(&it["name"]).to_owned());
        let features = package["features"].as_object().into_iter().flatten();
        Package {
            name: text(&package["name"]).to_owned(),
            folder,
            roots: array(&package["targets"]).map(|target| relative(&target["src_path"])).collect(),
            features: features.map(|(name, _)| name.clone()).collect(),
            dependencies: dependencies.collect(),
        }
    }
}

fn cargo(root: &Path) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root);
    command
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn array(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}
