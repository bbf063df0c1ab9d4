//! A scratch folder with a manifest, the built binary, and everything that it started.
//!
//! Invariant: nothing outlives the test: what it started is ended by number when the stage is dropped.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// How long anything is waited for.
pub(crate) const BOUND: Duration = Duration::from_secs(30);

/// The scratch folder of one test.
pub(crate) struct Stage {
    scratch: tempfile::TempDir,
    runners: Vec<Child>,
}

impl Stage {
    /// A stage with this manifest, in which `{service}` stands for the plain service.
    pub(crate) fn with(manifest: &str) -> Self {
        let stage = Self { scratch: tempfile::tempdir().unwrap(), runners: Vec::new() };
        fs::write(
            stage.path("tombolo.toml"),
            manifest.replace("{service}", plain_service().to_str().unwrap()),
        )
        .unwrap();
        fs::create_dir(stage.path("registry")).unwrap();
        fs::set_permissions(stage.path("registry"), fs::Permissions::from_mode(0o700)).unwrap();
        stage
    }

    /// One plain service `users`.
    pub(crate) fn with_users() -> Self {
        Self::with("[services.users]\ncommand = [\"{service}\"]\n")
    }

    /// A path in the scratch folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().canonicalize().unwrap().join(name)
    }

    /// The data folder.
    pub(crate) fn data(&self) -> PathBuf {
        self.path(".tombolo")
    }

    /// A command of the binary, in the scratch folder, out of sight of other runners.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tombolo"));
        command.args(arguments).current_dir(self.scratch.path());
        command.env("XDG_RUNTIME_DIR", self.path("registry")).env_remove("TOMBOLO_RUN");
        command
    }

    /// Runs a command to its end.
    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).stdin(Stdio::null()).output().unwrap()
    }

    /// Runs a command that must succeed, and gives what it printed.
    pub(crate) fn must(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "tombolo {arguments:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    /// Runs a command that must fail with `code`, and gives what it said.
    pub(crate) fn refused(&self, arguments: &[&str], code: i32) -> String {
        let output = self.run(arguments);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "tombolo {arguments:?}: {said}{}", text(&output.stdout));
        said
    }

    /// Starts `tombolo dev` in the foreground, its output in the file `terminal`.
    pub(crate) fn foreground(&mut self) -> u32 {
        let terminal = fs::File::create(self.path("terminal")).unwrap();
        let mut command = self.command(&["dev", "."]);
        let runner =
            command.stdin(Stdio::null()).stdout(terminal.try_clone().unwrap()).stderr(terminal).spawn();
        self.runners.push(runner.unwrap());
        until("the foreground runner is ready", || self.terminal().contains("ready in "));
        self.runners.last().unwrap().id()
    }

    /// What a foreground runner wrote.
    pub(crate) fn terminal(&self) -> String {
        fs::read_to_string(self.path("terminal")).unwrap_or_default()
    }

    /// Waits for the foreground runner's end.
    pub(crate) fn foreground_end(&mut self) -> Option<i32> {
        self.runners.pop().unwrap().wait().unwrap().code()
    }

    /// `tombolo status --format json`.
    pub(crate) fn status(&self) -> Value {
        serde_json::from_str(&self.must(&["status", "--format", "json"])).unwrap()
    }

    /// The first replica of a service, as the status says.
    pub(crate) fn replica(&self, name: &str) -> Value {
        let status = self.status();
        let services = status["services"].as_array().unwrap();
        let service = services.iter().find(|service| service["name"] == name).unwrap();
        service["replicas"][0].clone()
    }

    /// The number of a service's first process.
    pub(crate) fn pid(&self, name: &str) -> u32 {
        u32::try_from(self.replica(name)["pid"].as_u64().unwrap()).unwrap()
    }

    /// What the recorded runner's number is.
    pub(crate) fn runner_pid(&self) -> u32 {
        let record: Value =
            serde_json::from_slice(&fs::read(self.data().join("runner.json")).unwrap()).unwrap();
        u32::try_from(record["runner"]["pid"].as_u64().unwrap()).unwrap()
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let record = fs::read(self.data().join("runner.json")).unwrap_or_default();
        let record: Value = serde_json::from_slice(&record).unwrap_or_default();
        let pid = record["runner"]["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok());
        if let Some(pid) = pid.filter(|pid| is_tombolo(*pid)) {
            // Again and again: a second signal spares the wait for services that are deaf to SIGTERM.
            wait_until(|| {
                signal(pid, Signal::SIGTERM);
                !is_alive(pid)
            });
        }
        // What a failed test of a killed runner left: the processes that carry its run's name.
        if let Some(run) = record["run"].as_str() {
            members_of(run).into_iter().for_each(|pid| signal(pid, Signal::SIGKILL));
        }
        for runner in &mut self.runners {
            drop(runner.kill());
            drop(runner.wait());
        }
    }
}

/// A process that no runner started, and that none may end.
pub(crate) struct Bystander(Child);

impl Bystander {
    /// One that bears the name of another run.
    pub(crate) fn of_another_run() -> Self {
        let mut command = Command::new("sleep");
        command.arg("1000").env("TOMBOLO_RUN", "another");
        Self(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }

    /// Its number.
    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Bystander {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// The plain service, which cargo builds with the tests.
pub(crate) fn plain_service() -> PathBuf {
    let beside = Path::new(env!("CARGO_BIN_EXE_tombolo")).parent().unwrap().join("examples/plain_service");
    assert!(beside.exists(), "{} is not built; run cargo build -p tombolo-cli --examples", beside.display());
    beside
}

/// Waits for a condition, with a bound.
pub(crate) fn until(what: &str, condition: impl FnMut() -> bool) {
    assert!(wait_until(condition), "waited {} s in vain until {what}", BOUND.as_secs());
}

fn wait_until(mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + BOUND;
    while !condition() {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::park_timeout(Duration::from_millis(5));
    }
    true
}

/// Waits for a condition that has to be asked for.
pub(crate) async fn until_within<F: Future<Output = bool>>(
    bound: Duration,
    what: &str,
    mut condition: impl FnMut() -> F,
) {
    let mut looks = tokio::time::interval(Duration::from_millis(20));
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let waited = async {
        while !condition().await {
            looks.tick().await;
        }
    };
    let waited = tokio::time::timeout(bound, waited).await;
    assert!(waited.is_ok(), "waited {} s in vain until {what}", bound.as_secs());
}

/// Whether a process runs; a zombie does not.
pub(crate) fn is_alive(pid: u32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    let state = stat.rsplit_once(") ").map(|(_, rest)| rest.chars().next());
    !matches!(state, Some(Some('Z' | 'X')))
}

fn members_of(run: &str) -> Vec<u32> {
    let mark = format!("TOMBOLO_RUN={run}");
    let pids =
        fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes())
    })
    .collect()
}

fn is_tombolo(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "tombolo")
}

/// Signals a process that the test or its runner started.
pub(crate) fn signal(pid: u32, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), signal).ok();
}

/// The body of a GET.
pub(crate) fn get(url: &str, path: &str) -> String {
    let address = url.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.split_once("\r\n\r\n").unwrap().1.to_owned()
}

/// Bytes as text.
pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
