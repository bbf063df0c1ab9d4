//! `cargo xtask fuzz`: builds libFuzzer around the gateway's parsing and rewriting, and lets each target run its share.
//!
//! Needs a stable compiler and one of C++, nothing else: what libFuzzer has to see is asked for by stable flags. Invariant: what
//! was found stays in a file, and the command fails if anything was.

use crate::chore;
use crate::workspace::Workspace;
use clap::Args;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use tombolo_servers::programs::output;
use tombolo_servers::{Context, Error};

/// The package, which is no member of the workspace.
const FOLDER: &str = "fuzz";
/// Its targets.
const TARGETS: [&str; 4] = ["guard", "path", "headers", "config"];
/// Has the compiler count which branches are taken, and show libFuzzer what is compared.
const FLAGS: [&str; 8] = [
    "--cfg=fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Cllvm-args=-simplifycfg-branch-fold-threshold=0",
    "-Ccodegen-units=1",
];
/// The longest input.
const INPUT_BYTES_MAX: u32 = 4 << 10;
/// An input that takes so many seconds is a finding.
const INPUT_SECONDS_MAX: u32 = 10;

#[derive(Args)]
pub(crate) struct Options {
    /// How long all targets together may take, beside the build.
    #[arg(long, default_value_t = 4)]
    minutes: u64,
    /// Which targets: guard, path, headers, config. All by default.
    targets: Vec<String>,
}

pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<(), Error> {
    let targets = chosen(&options.targets)?;
    let programs = build(workspace)?;
    let seconds = (options.minutes * 60 / targets.len() as u64).max(1);
    let mut failed = Vec::new();
    for target in targets {
        let mut command = fuzz(workspace, &programs, target, seconds)?;
        if let Err(error) = chore::run(&mut command) {
            eprintln!("xtask: {error}");
            failed.push(target);
        }
    }
    match failed.is_empty() {
        true => Ok(()),
        false => Err(Error::new(format!(
            "something was found by {}; the inputs are in {}, and `cargo xtask fuzz` printed what each panicked with: fix it, and keep \
             the smallest as a test of the gateway",
            failed.join(", "),
            workspace.target.join(FOLDER).join("findings").display()
        ))),
    }
}

fn chosen(named: &[String]) -> Result<Vec<&'static str>, Error> {
    let find = |name: &String| {
        let found = TARGETS.into_iter().find(|target| target == name);
        found.ok_or_else(|| {
            Error::new(format!("there is no target {name:?}; there are: {}", TARGETS.join(", ")))
        })
    };
    if named.is_empty() { Ok(TARGETS.to_vec()) } else { named.iter().map(find).collect() }
}

/// Builds all targets; returns where they are.
fn build(workspace: &Workspace) -> Result<PathBuf, Error> {
    if output(Command::new("c++").arg("--version")).is_err() {
        return Err(Error::new(
            "libFuzzer is built by a compiler of C++, and there is no `c++`; install one: `apt-get install g++`, or your system's own",
        ));
    }
    let host = host(&output(Command::new("rustc").arg("-vV"))?)?;
    let target = workspace.target.join(FOLDER);
    let mut command = workspace.cargo();
    command.args([
        "build",
        "--manifest-path",
        "fuzz/Cargo.toml",
        "--bins",
        "--target",
        &host,
        "--target-dir",
    ]);
    command.arg(&target).env("RUSTFLAGS", FLAGS.join(" "));
    chore::run(&mut command)?;
    Ok(target.join(host).join("debug"))
}

/// The machine that is built on. With it as `--target`, build scripts do not get the flags.
fn host(version: &str) -> Result<String, Error> {
    let line = version.lines().find_map(|line| line.strip_prefix("host: "));
    line.map(str::to_owned).ok_or_else(|| Error::new("`rustc -vV` names no host; is this a rustc?"))
}

fn fuzz(workspace: &Workspace, programs: &Path, target: &str, seconds: u64) -> Result<Command, Error> {
    let folder = |kind: &str| {
        let folder = workspace.target.join(FOLDER).join(kind).join(target);
        fs::create_dir_all(&folder).context(|| format!("make {}", folder.display()))?;
        Ok::<_, Error>(folder)
    };
    let source = workspace.root.join(FOLDER);
    let mut command = Command::new(programs.join(target));
    // What is new goes into the first folder.
    command.arg(folder("corpus")?).arg(source.join("seeds").join(target));
    command.arg(format!("-dict={}", source.join("words.dict").display()));
    command.arg(format!("-artifact_prefix={}/", folder("findings")?.display()));
    command.arg(format!("-max_total_time={seconds}")).arg(format!("-max_len={INPUT_BYTES_MAX}"));
    command.arg(format!("-timeout={INPUT_SECONDS_MAX}")).arg("-print_final_stats=1");
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_is_the_one_that_rustc_names() {
        let said = "rustc 1.95.0\nbinary: rustc\nhost: x86_64-unknown-linux-gnu\nrelease: 1.95.0\n";
        assert_eq!(host(said).unwrap(), "x86_64-unknown-linux-gnu");
        assert!(host("clang version 19").is_err());
    }

    #[test]
    fn a_target_that_there_is_not_is_refused_and_each_is_a_program() {
        assert_eq!(chosen(&["path".into()]).unwrap(), ["path"]);
        assert!(chosen(&["paths".into()]).unwrap_err().to_string().contains("guard, path"));
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/src/bin");
        let mut programs: Vec<_> = fs::read_dir(folder)
            .unwrap()
            .map(|file| file.unwrap().path().file_stem().unwrap().to_owned())
            .collect();
        let mut targets = TARGETS.to_vec();
        programs.sort();
        targets.sort_unstable();
        assert_eq!(programs, targets);
    }
}
