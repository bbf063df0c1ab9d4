//! What was started, on disk as JSON, so that a later xtask can find it and stop it. Invariant: a
//! record is removed only after all that it names is gone.

use super::process::Process;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use tombolo_servers::{Context, Error, scratch};

/// A set of servers that were started together.
pub(super) struct Record {
    pub(super) name: String,
    /// The xtask that started them.
    pub(super) owner: Process,
    pub(super) scratch: PathBuf,
    pub(super) servers: Vec<Process>,
    pub(super) variables: Vec<(String, String)>,
    /// Where it is kept; nothing once it is stopped or handed over.
    path: Option<PathBuf>,
}

impl Record {
    pub(super) fn create(folder: &Path, name: &str) -> Result<Self, Error> {
        fs::create_dir_all(folder).context(|| format!("create {}", folder.display()))?;
        let record = Record {
            name: name.to_owned(),
            owner: Process::myself(),
            scratch: scratch::create()?,
            servers: Vec::new(),
            variables: Vec::new(),
            path: Some(folder.join(format!("{name}.json"))),
        };
        record.save()?;
        Ok(record)
    }

    pub(super) fn load(folder: &Path, name: &str) -> Result<Option<Self>, Error> {
        let path = folder.join(format!("{name}.json"));
        if !path.exists() {
            return Ok(None);
        }
        let doing = || format!("read {}", path.display());
        let text = fs::read_to_string(&path).context(doing)?;
        let value: Value = serde_json::from_str(&text).context(doing)?;
        Ok(Some(Self::from_json(name, &value, path)))
    }

    pub(super) fn load_all(folder: &Path) -> Result<Vec<Self>, Error> {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        let files =
            entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|it| it == "json"));
        let names = files.filter_map(|path| Some(path.file_stem()?.to_string_lossy().into_owned()));
        names.filter_map(|name| Self::load(folder, &name).transpose()).collect()
    }

    /// Adds a server that runs, and keeps that at once.
    pub(super) fn add(&mut self, server: Process) -> Result<(), Error> {
        self.servers.push(server);
        self.save()
    }

    pub(super) fn save(&self) -> Result<(), Error> {
        let Some(path) = &self.path else { return Ok(()) };
        let fresh = path.with_extension("fresh");
        let written =
            fs::write(&fresh, format!("{:#}\n", self.to_json())).and_then(|()| fs::rename(&fresh, path));
        written.context(|| format!("write {}", path.display()))
    }

    pub(super) fn all_run(&self) -> bool {
        self.servers.iter().all(Process::runs) && !self.servers.is_empty()
    }

    /// Leaves the servers running when this value goes.
    pub(super) fn keep(&mut self) {
        self.path = None;
    }

    /// Stops the servers, the last one first, and removes their files and this record; once.
    pub(super) fn stop(&mut self) -> Result<(), Error> {
        let Some(path) = self.path.take() else { return Ok(()) };
        for server in self.servers.iter().rev() {
            server.stop()?;
        }
        scratch::remove(&self.scratch)?;
        fs::remove_file(&path).context(|| format!("remove {}", path.display()))
    }

    fn to_json(&self) -> Value {
        let process =
            |it: &Process| json!({"name": it.name, "pid": it.pid, "started": it.started, "deaf": it.deaf});
        json!({
            "owner": process(&self.owner),
            "scratch": self.scratch,
            "servers": self.servers.iter().map(process).collect::<Vec<_>>(),
            "variables": self.variables,
        })
    }

    fn from_json(name: &str, value: &Value, path: PathBuf) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let process = |it: &Value| Process {
            name: text(&it["name"]),
            pid: it["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()).unwrap_or(0),
            started: text(&it["started"]),
            deaf: it["deaf"].as_bool().unwrap_or(false),
        };
        let variables = value["variables"].as_array().into_iter().flatten();
        Record {
            name: name.to_owned(),
            owner: process(&value["owner"]),
            scratch: text(&value["scratch"]).into(),
            servers: value["servers"].as_array().into_iter().flatten().map(process).collect(),
            variables: variables.map(|pair| (text(&pair[0]), text(&pair[1]))).collect(),
            path: Some(path),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_back_as_it_was_written_and_gone_after_the_stop() {
        let folder = tempfile::tempdir().unwrap();
        let mut record = Record::create(folder.path(), "set").unwrap();
        record.variables.push(("A".into(), "b".into()));
        let ended = Process { name: "ended".into(), pid: 0, started: "1".into(), deaf: true };
        record.add(ended.clone()).unwrap();
        let mut read = Record::load(folder.path(), "set").unwrap().unwrap();
        assert_eq!(read.servers, [ended]);
        assert_eq!(read.variables, record.variables);
        assert!(read.owner.runs());
        read.stop().unwrap();
        assert!(!record.scratch.exists());
        assert!(Record::load(folder.path(), "set").unwrap().is_none());
    }
}
