//! What the processes say: each line to the terminal under its process's name, and to a file of its own.
//!
//! Invariant: a line is bounded, a file is bounded, and the last lines of everything are at hand when it fails.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};

use crate::error::{Context, Result};

/// The longest line; what is longer is broken.
const LINE_BYTES_MAX: u64 = 64 << 10;
/// The size at which a log file is put aside as `NAME.log.1` and begun anew.
const FILE_BYTES_MAX: u64 = 16 << 20;
/// How many last lines are shown of something that failed.
const TAIL_LINES_MAX: usize = 20;
/// The colours of names, in the order in which they are given: cyan, yellow, green, magenta, blue, red.
const COLOURS: [u8; 6] = [36, 33, 32, 35, 34, 31];

/// Where people read.
pub(crate) struct Terminal {
    out: Mutex<Box<dyn Write + Send>>,
    coloured: bool,
    quiet: bool,
    names: Vec<String>,
    width: usize,
}

impl Terminal {
    /// The standard output, in colours if it is a terminal and nobody asked for none.
    pub(crate) fn standard(names: Vec<String>) -> Self {
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self::new(Box::new(std::io::stdout()), std::io::stdout().is_terminal() && !plain, names)
    }

    /// The standard error of a detached runner, which is its log: what the runner itself has to say, and no more.
    pub(crate) fn detached() -> Self {
        Self { quiet: true, ..Self::new(Box::new(std::io::stderr()), false, Vec::new()) }
    }

    fn new(out: Box<dyn Write + Send>, coloured: bool, names: Vec<String>) -> Self {
        let width = names.iter().map(String::len).chain([OWN_NAME.len()]).max().unwrap_or_default();
        Self { out: Mutex::new(out), coloured, quiet: false, names, width }
    }

    /// What the runner itself has to say.
    pub(crate) fn say(&self, text: &str) {
        text.lines().for_each(|line| self.line(OWN_NAME, line));
    }

    /// Text without a prefix.
    pub(crate) fn plain(&self, text: &str) {
        self.write(&format!("{text}\n"));
    }

    fn line(&self, name: &str, text: &str) {
        let width = self.width;
        let colour = self.names.iter().position(|known| known == name).map(|at| COLOURS[at % COLOURS.len()]);
        match (self.coloured, colour) {
            (true, Some(colour)) => self.write(&format!("\x1b[{colour}m{name:width$} |\x1b[0m {text}\n")),
            (true, None) => self.write(&format!("\x1b[1m{name:width$} |\x1b[0m {text}\n")),
            (false, _) => self.write(&format!("{name:width$} | {text}\n")),
        }
    }

    fn write(&self, text: &str) {
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        // A terminal that went away is no reason to end what runs; the same lines are in the files.
        out.write_all(text.as_bytes()).and_then(|()| out.flush()).ok();
    }
}

/// The name under which the runner speaks.
const OWN_NAME: &str = "tombolo";

/// The log of one unit, which its replicas share.
pub(crate) struct Log {
    terminal: Arc<Terminal>,
    kept: Mutex<Kept>,
}

struct Kept {
    path: PathBuf,
    file: File,
    size: u64,
    tail: VecDeque<String>,
}

impl Log {
    /// Opens the log file at `path`, going on after what it holds.
    pub(crate) fn open(path: PathBuf, terminal: Arc<Terminal>) -> Result<Self> {
        let file = append_to(&path).context(|| format!("cannot open {}", path.display()))?;
        let size = file.metadata().map_or(0, |found| found.len());
        let kept = Kept { path, file, size, tail: VecDeque::new() };
        Ok(Self { terminal, kept: Mutex::new(kept) })
    }

    /// Takes one line of the process `name`.
    pub(crate) fn line(&self, name: &str, unit: &str, text: &str) {
        if !self.terminal.quiet {
            self.terminal.line(name, text);
        }
        let line = if name == unit { text.to_owned() } else { format!("{name} | {text}") };
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = kept.write(&line) {
            self.terminal.say(&format!("cannot write {}: {error}", kept.path.display()));
        }
        if kept.tail.len() == TAIL_LINES_MAX {
            kept.tail.pop_front();
        }
        kept.tail.push_back(line);
    }

    /// Its last lines, indented, for a message.
    pub(crate) fn tail(&self) -> String {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.tail.is_empty() {
            return "  (it wrote nothing)".into();
        }
        kept.tail.iter().map(|line| format!("  | {line}")).collect::<Vec<_>>().join("\n")
    }
}

impl Kept {
    fn write(&mut self, line: &str) -> std::io::Result<()> {
        if self.size > FILE_BYTES_MAX {
            fs::rename(&self.path, self.path.with_extension("log.1"))?;
            self.file = append_to(&self.path)?;
            self.size = 0;
        }
        self.file.write_all(format!("{line}\n").as_bytes())?;
        self.size += line.len() as u64 + 1;
        Ok(())
    }
}

fn append_to(path: &std::path::Path) -> std::io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

/// Takes the lines of a process until it closes its end.
pub(crate) async fn pump(from: impl AsyncRead + Unpin, log: Arc<Log>, name: String, unit: String) {
    let mut reader = BufReader::new(from);
    let mut buffer = Vec::new();
    loop {
        buffer.clear();
        match (&mut reader).take(LINE_BYTES_MAX).read_until(b'\n', &mut buffer).await {
            Ok(0) => return,
            Ok(_) => log.line(&name, &unit, String::from_utf8_lossy(&buffer).trim_end_matches(['\n', '\r'])),
            Err(error) => {
                log.line(&name, &unit, &format!("(its output cannot be read: {error})"));
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log_in(folder: &std::path::Path) -> (Log, PathBuf) {
        let said = folder.join("terminal");
        let out = Box::new(File::create(&said).unwrap());
        let terminal = Terminal::new(out, false, vec!["orders".into(), "a.1".into()]);
        (Log::open(folder.join("orders.log"), Arc::new(terminal)).unwrap(), said)
    }

    #[tokio::test]
    async fn lines_go_to_the_file_plain_and_to_the_terminal_by_name() {
        let scratch = tempfile::tempdir().unwrap();
        let (log, said) = log_in(scratch.path());
        pump(&b"one\r\ntwo"[..], Arc::new(log), "orders".into(), "orders".into()).await;
        assert_eq!(fs::read_to_string(scratch.path().join("orders.log")).unwrap(), "one\ntwo\n");
        assert_eq!(fs::read_to_string(said).unwrap(), "orders  | one\norders  | two\n");
    }

    #[tokio::test]
    async fn a_line_without_end_is_broken() {
        let scratch = tempfile::tempdir().unwrap();
        let (log, _) = log_in(scratch.path());
        let endless = tokio::io::repeat(b'x').take(LINE_BYTES_MAX * 2 + 3);
        pump(endless, Arc::new(log), "orders".into(), "orders".into()).await;
        let written = fs::read_to_string(scratch.path().join("orders.log")).unwrap();
        let lengths: Vec<_> = written.lines().map(|line| line.len() as u64).collect();
        assert_eq!(lengths, [LINE_BYTES_MAX, LINE_BYTES_MAX, 3]);
    }

    #[test]
    fn a_full_file_is_put_aside_and_the_tail_keeps_the_last_lines() {
        let scratch = tempfile::tempdir().unwrap();
        let (log, _) = log_in(scratch.path());
        log.kept.lock().unwrap().size = FILE_BYTES_MAX + 1;
        for number in 0..25 {
            log.line("a.1", "a", &number.to_string());
        }
        assert!(scratch.path().join("orders.log.1").exists());
        assert!(
            log.tail().starts_with("  | a.1 | 5\n") && log.tail().ends_with("  | a.1 | 24"),
            "{}",
            log.tail()
        );
    }
}
