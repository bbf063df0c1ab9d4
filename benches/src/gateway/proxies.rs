//! The programs that are pressed: nginx, HAProxy and the gateway, each on a port of its own, and `wrk`, which presses.
//!
//! HAProxy is one process of two threads, which shares kept connections to the backend among all clients (`http-reuse always`);
//! nginx is two processes, the gateway one.
//!
//! Invariant: what was started here ends with its handle; a request that failed ends the measurement.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, SysconfVar, sysconf};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::{interval, timeout};

use crate::error::{Error, Result};
use crate::scratch::Scratch;

/// For how long `wrk` presses at a time.
pub(super) const PRESSED_S: u32 = 4;
const CONNECTIONS: &str = "64";
/// How long what was started may take to listen.
pub(super) const START_MAX: Duration = Duration::from_secs(10);

/// A program that listens. It ends with this.
pub(super) struct Started {
    child: Child,
    pub(super) port: u16,
}

/// What `wrk` and the kernel counted.
pub(super) struct Pressed {
    /// Requests per second.
    pub(super) rate: f64,
    /// Microseconds of processor time for each.
    pub(super) cost_us: f64,
}

impl Started {
    /// Presses as hard as `wrk` can, with requests that are all the same.
    pub(super) async fn press(&self, script: Option<&Path>) -> Result<Pressed> {
        self.press_at("/", script).await
    }

    /// Presses one path, with the requests that a script of `wrk` makes, if there is one.
    pub(super) async fn press_at(&self, path: &str, script: Option<&Path>) -> Result<Pressed> {
        let before = self.processor_seconds()?;
        let url = format!("http://127.0.0.1:{}{path}", self.port);
        let mut wrk = Command::new("wrk");
        wrk.args(["-t", "1", "-c", CONNECTIONS, "-d", &format!("{PRESSED_S}s")]);
        if let Some(script) = script {
            wrk.arg("-s").arg(script);
        }
        let output = wrk.arg(&url).stdin(Stdio::null()).output().await?;
        let used = self.processor_seconds()? - before;
        let text = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() || text.contains("Non-2xx") || text.contains("Socket errors") {
            let complaint = String::from_utf8_lossy(&output.stderr);
            return Err(Error::new(format!("requests to {url} failed: {text}{complaint}")));
        }
        let rate = figure(&text, "Requests/sec:")?;
        let requests = text.lines().find(|line| line.contains(" requests in ")).unwrap_or_default();
        let requests: f64 = requests.split_whitespace().next().unwrap_or_default().parse()?;
        Ok(Pressed { rate, cost_us: used * 1e6 / requests })
    }

    /// What the process and its children have used.
    fn processor_seconds(&self) -> Result<f64> {
        let per_second = sysconf(SysconfVar::CLK_TCK)?.unwrap_or(100) as f64;
        let ticks: f64 = family(self.pid()?)?.into_iter().map(|(_, ticks)| ticks).sum();
        Ok(ticks / per_second)
    }

    pub(super) fn pid(&self) -> Result<u32> {
        self.child.id().ok_or_else(|| Error::new("a proxy has ended"))
    }
}

impl Drop for Started {
    /// Ends the process before its children, which it would replace; nginx's would outlive it.
    fn drop(&mut self) {
        let Some(family) = self.pid().and_then(family).ok() else { return };
        self.child.start_kill().ok();
        for (process, _) in family {
            kill(Pid::from_raw(process), Signal::SIGKILL).ok();
        }
    }
}

/// A process and its children: the number of each, and the ticks of processor time that it has used.
fn family(own: u32) -> Result<Vec<(i32, f64)>> {
    let mut family = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let stat = fs::read_to_string(entry?.path().join("stat")).unwrap_or_default();
        // The fields behind the name, which may itself hold blanks: the parent is the fourth of all, utime and stime the 14th and 15th.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let is_one = stat.starts_with(&format!("{own} ")) || fields.get(1) == Some(&&*own.to_string());
        if let (true, [user, system]) = (is_one, fields.get(11..13).unwrap_or_default()) {
            let process = stat.split(' ').next().unwrap_or_default().parse()?;
            family.push((process, user.parse::<f64>()? + system.parse::<f64>()?));
        }
    }
    Ok(family)
}

fn figure(text: &str, label: &str) -> Result<f64> {
    let line = text.lines().find_map(|line| line.trim().strip_prefix(label));
    Ok(line.ok_or_else(|| Error::new(format!("wrk said no {label} {text}")))?.trim().parse()?)
}

pub(super) fn in_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into()])
        .map(|it| it.join(program))
        .find(|file| file.is_file())
}

pub(super) fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

async fn start(mut command: Command, port: u16) -> Result<Started> {
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true).spawn()?;
    let listens = async {
        let mut clock = interval(Duration::from_millis(20));
        while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            clock.tick().await;
        }
    };
    timeout(START_MAX, listens).await.map_err(|_| Error::new(format!("{command:?} does not listen")))?;
    Ok(Started { child, port })
}

/// What stands behind every proxy.
pub(super) async fn backend(scratch: &Scratch, name: &str) -> Result<Started> {
    nginx(scratch, name, "return 200 \"hello, this is what a service answers\";", "").await
}

pub(super) async fn nginx(scratch: &Scratch, name: &str, location: &str, upstream: &str) -> Result<Started> {
    let (port, folder) = (free_port()?, scratch.path(name));
    fs::create_dir_all(&folder)?;
    let config = format!(
        "daemon off; worker_processes 2; pid {0}/pid; error_log stderr crit; events {{ worker_connections 20000; }}\n\
         http {{ access_log off; keepalive_requests 1000000000; client_body_temp_path {0}/b; proxy_temp_path {0}/p; \
         fastcgi_temp_path {0}/f; uwsgi_temp_path {0}/u; scgi_temp_path {0}/s; {upstream}\n\
         server {{ listen 127.0.0.1:{port}; location / {{ {location} }} }} }}\n",
        folder.display()
    );
    let file = folder.join("nginx.conf");
    fs::write(&file, config)?;
    let program = in_path("nginx").unwrap_or_else(|| "nginx".into());
    let mut command = Command::new(program);
    command.arg("-c").arg(&file).arg("-p").arg(&folder);
    start(command, port).await
}

/// The gateway with these tables in its file, without a bus or with one.
pub(super) async fn gateway(
    scratch: &Scratch,
    runner: &Path,
    name: &str,
    tables: &str,
    bus: Option<&str>,
) -> Result<Started> {
    let port = free_port()?;
    let config = scratch.path(&format!("gateway-{name}.toml"));
    fs::write(&config, format!("[gateway]\nport = {port}\naccess_log = false\n{tables}"))?;
    let mut command = Command::new(runner);
    command.arg("gateway").arg("--config").arg(&config).env("RUST_LOG", "warn");
    command.env_remove("TOMBOLO_BUS");
    if let Some(bus) = bus {
        command.arg("--bus").arg(bus);
    }
    start(command, port).await
}

/// HAProxy, with `rules` before it passes a request on.
pub(super) async fn haproxy(scratch: &Scratch, rules: &str, backend: u16) -> Result<Started> {
    let (port, file) = (free_port()?, scratch.path("haproxy.cfg"));
    let config = format!(
        "global\n  nbthread 2\n  maxconn 2000\n\
         defaults\n  mode http\n  timeout connect 5s\n  timeout client 75s\n  timeout server 75s\n  http-reuse always\n\
         frontend door\n  bind 127.0.0.1:{port}\n{rules}  default_backend service\n\
         backend service\n  server one 127.0.0.1:{backend}\n"
    );
    fs::write(&file, config)?;
    let mut command = Command::new(in_path("haproxy").unwrap_or_else(|| "haproxy".into()));
    command.arg("-db").arg("-f").arg(&file);
    start(command, port).await
}
