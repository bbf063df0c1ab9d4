//! The runner from outside: the built binary, real processes, real signals.
//!
//! Invariant of what is tested: everything that a runner started ends with it or at the next start, and nothing
//! else ever does.

use std::process::Stdio;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::stage::{Bystander, Stage, get, is_alive, signal, text, until};

/// A service that is deaf to SIGTERM: what is ignored stays ignored in the program that the shell becomes.
const DEAF: &str = "[services.deaf]\ncommand = [\"sh\", \"-c\", \"trap '' TERM; exec {service}\"]\n";

#[test]
fn a_detached_system_says_where_everything_is() {
    let stage = Stage::with(
        "[services.users]\ncommand = [\"{service}\"]\nenv = { KEY = \"value\" }\n\
         [services.orders]\ncommand = [\"{service}\"]\ndatabase = \"mongodb://db/orders\"\nreplicas = 2\n\
         [services.mail]\ncommand = [\"{service}\"]\ndatabase = \"none\"\n",
    );
    let said = stage.must(&["dev", ".", "--detach"]);
    assert!(
        said.contains("users") && said.contains("http://127.0.0.1:") && said.contains("tombolo down"),
        "{said}"
    );
    let status = stage.status();
    let bus_pid = &status["bus"]["pid"];
    assert!(bus_pid.is_u64());
    let socket = stage.data().join("bus.sock");
    assert_eq!(
        status["bus"],
        json!({ "url": format!("tombolo+unix://{}", socket.display()), "pid": bus_pid })
    );
    let shape: Vec<_> = status["services"]
        .as_array()
        .unwrap()
        .iter()
        .map(|service| {
            (
                service["name"].clone(),
                service["database"].clone(),
                service["replicas"].as_array().unwrap().len(),
            )
        })
        .collect();
    let sqlite = format!("sqlite://{}?mode=rwc", stage.data().join("users.db").display());
    assert_eq!(
        shape,
        [
            (json!("users"), json!(sqlite), 1),
            (json!("orders"), json!("mongodb://db/orders"), 2),
            (json!("mail"), Value::Null, 1)
        ]
    );
    let replica = stage.replica("users");
    assert_eq!(replica, json!({ "pid": replica["pid"], "url": replica["url"], "ready": true }));
    assert!(replica["pid"].is_u64());
}

#[test]
fn a_service_is_scaled_while_it_runs() {
    let stage = Stage::with_users();
    stage.must(&["dev", ".", "--detach"]);
    let replicas = || stage.status()["services"][0]["replicas"].as_array().unwrap().clone();
    let first = replicas()[0].clone();
    let said = stage.must(&["scale", "users=3"]);
    assert!(said.contains("users runs 3 times"), "{said}");
    let three = replicas();
    assert_eq!((three.len(), &three[0]), (3, &first), "the first goes on as it was");
    for (number, replica) in (1..).zip(&three) {
        let url = replica["url"].as_str().unwrap();
        assert!(said.contains(url), "{said}");
        let told = get(url, "/");
        assert!(told.contains(&format!("TOMBOLO_REPLICA={number}\n")), "{told}");
    }
    stage.must(&["scale", "users=1"]);
    assert_eq!(replicas(), [first]);
    for gone in &three[1..] {
        assert!(!is_alive(gone["pid"].as_u64().unwrap() as u32), "it has not ended");
    }
    stage.must(&["scale", "users=2"]);
    assert_eq!(replicas().len(), 2);
    let last = replicas()[1]["pid"].as_u64().unwrap() as u32;
    stage.must(&["down"]);
    assert!(!is_alive(last), "it has not ended");
}

#[test]
fn what_cannot_be_scaled_is_refused_by_name() {
    let stage = Stage::with_users();
    stage.must(&["dev", ".", "--detach"]);
    for (asked, code, says) in [
        ("users", 2, "expected NAME=COUNT"),
        ("users=0", 2, "expected 1 to 64"),
        ("bus=2", 2, "the bus is one process"),
        ("orders=2", 3, "there is no service \"orders\"; there are: bus, users"),
    ] {
        let said = stage.refused(&["scale", asked], code);
        assert!(said.contains(says), "{said}");
    }
}

#[test]
fn a_service_is_told_who_it_is_and_where_everything_is() {
    let stage =
        Stage::with("[services.users]\ncommand = [\"{service}\"]\nenv = { TOMBOLO_TASTE = \"salt\" }\n");
    stage.must(&["dev", ".", "--detach"]);
    let url = stage.replica("users")["url"].as_str().unwrap().to_owned();
    let told = get(&url, "/");
    let expected = [
        "TOMBOLO_SERVICE=users".to_owned(),
        "TOMBOLO_REPLICA=1".to_owned(),
        "TOMBOLO_TASTE=salt".to_owned(),
        format!("TOMBOLO_LISTEN={}", url.strip_prefix("http://").unwrap()),
        format!("TOMBOLO_BUS={}", stage.status()["bus"]["url"].as_str().unwrap()),
        format!("TOMBOLO_DATABASE=sqlite://{}?mode=rwc", stage.data().join("users.db").display()),
        format!("TOMBOLO_PARENT={}", stage.runner_pid()),
    ];
    for line in expected {
        assert!(told.lines().any(|told| told == line), "{line} is not among:\n{told}");
    }
}

#[test]
fn a_killed_service_is_started_again_where_it_was() {
    let stage = Stage::with_users();
    stage.must(&["dev", ".", "--detach"]);
    let before = stage.replica("users");
    signal(stage.pid("users"), Signal::SIGKILL);
    until("users has another process", || {
        let now = stage.replica("users");
        now["ready"] == true && now["pid"] != before["pid"]
    });
    assert_eq!(stage.replica("users")["url"], before["url"]);
    let said = std::fs::read_to_string(stage.data().join("runner.log")).unwrap();
    assert!(said.contains("users was killed by SIGKILL; starting it again in"), "{said}");
}

#[test]
fn kill_is_a_death_like_any_other() {
    let stage = Stage::with_users();
    stage.must(&["dev", ".", "--detach"]);
    for name in ["users", "bus"] {
        let pid = |status: Value| match name {
            "bus" => status["bus"]["pid"].clone(),
            _ => status["services"][0]["replicas"][0]["pid"].clone(),
        };
        let before = pid(stage.status());
        stage.must(&["kill", name]);
        assert!(!is_alive(u32::try_from(before.as_u64().unwrap()).unwrap()));
        until("it runs again", || pid(stage.status()).is_u64());
        assert_ne!(pid(stage.status()), before);
    }
}

#[test]
fn a_stopped_service_stays_stopped_until_it_is_started() {
    let stage = Stage::with_users();
    stage.must(&["dev", ".", "--detach"]);
    let before = stage.replica("users");
    stage.must(&["stop", "users"]);
    assert!(!is_alive(u32::try_from(before["pid"].as_u64().unwrap()).unwrap()));
    assert_eq!(stage.replica("users"), json!({ "pid": null, "url": before["url"], "ready": false }));
    assert!(stage.refused(&["kill", "users"], 1).contains("users does not run"));
    stage.must(&["stop", "users"]);
    stage.must(&["start", "users"]);
    let after = stage.replica("users");
    assert_eq!((&after["ready"], &after["url"]), (&json!(true), &before["url"]));
    assert_ne!(after["pid"], before["pid"]);
    stage.must(&["start", "users"]);
    assert_eq!(stage.replica("users")["pid"], after["pid"]);
}

#[test]
fn a_stopped_bus_is_gone_until_it_is_started() {
    let stage = Stage::with_users();
    stage.must(&["dev", ".", "--detach"]);
    stage.must(&["stop", "bus"]);
    assert_eq!(stage.status()["bus"]["pid"], Value::Null);
    assert!(stage.refused(&["topics", "list"], 4).contains("cannot be reached"));
    stage.must(&["start", "bus"]);
    assert_eq!(stage.must(&["topics", "list", "--format", "json"]).trim(), "[]");
}

#[test]
fn down_leaves_no_process() {
    let stage = Stage::with(
        "[services.users]\ncommand = [\"sh\", \"-c\", \"(trap '' TERM; exec sleep 1000) & echo child $!; exec {service}\"]\n",
    );
    stage.must(&["dev", ".", "--detach"]);
    let bus = u32::try_from(stage.status()["bus"]["pid"].as_u64().unwrap()).unwrap();
    let child = stage.must(&["logs", "users"]);
    let child: u32 = child.lines().find_map(|line| line.strip_prefix("child ")?.parse().ok()).unwrap();
    let all = [stage.runner_pid(), bus, stage.pid("users"), child];
    assert!(all.iter().all(|pid| is_alive(*pid)));
    stage.must(&["down"]);
    assert_eq!(all.map(is_alive), [false; 4]);
    assert!(!stage.data().join("runner.json").exists() && !stage.data().join("bus.sock").exists());
    assert!(stage.refused(&["status"], 4).contains("tombolo dev"));
}

#[test]
fn ctrl_c_ends_everything_that_the_foreground_started() {
    let mut stage = Stage::with_users();
    let runner = stage.foreground();
    let terminal = stage.terminal();
    assert!(terminal.contains("users   | users listens on 127.0.0.1:"), "{terminal}");
    let all = [stage.pid("users"), u32::try_from(stage.status()["bus"]["pid"].as_u64().unwrap()).unwrap()];
    signal(runner, Signal::SIGINT);
    assert_eq!(stage.foreground_end(), Some(0));
    assert_eq!(all.map(is_alive), [false; 2]);
    assert!(stage.terminal().contains("tombolo | ending"));
}

#[test]
fn a_second_signal_spares_the_wait_for_a_deaf_service() {
    let mut stage = Stage::with(DEAF);
    let runner = stage.foreground();
    let deaf = stage.pid("deaf");
    let began = std::time::Instant::now();
    signal(runner, Signal::SIGINT);
    until("the runner is ending", || stage.terminal().contains("tombolo | ending"));
    signal(runner, Signal::SIGINT);
    assert_eq!(stage.foreground_end(), Some(0));
    assert!(!is_alive(deaf));
    assert!(began.elapsed().as_secs() < 5, "it waited {:?}", began.elapsed());
}

#[test]
fn a_service_that_does_not_start_fails_detach_with_the_end_of_its_log() {
    let stage = Stage::with(
        "[services.users]\ncommand = [\"{service}\"]\n\
         [services.orders]\ncommand = [\"sh\", \"-c\", \"echo cannot find the harbour >&2; exit 3\"]\n",
    );
    let said = stage.refused(&["dev", ".", "--detach"], 1);
    assert!(said.contains("orders does not start: ended by itself with exit code 3, 3 times"), "{said}");
    assert!(said.contains("  | cannot find the harbour"), "{said}");
    stage.refused(&["status"], 4);
    let log = std::fs::read_to_string(stage.data().join("runner.log")).unwrap();
    assert!(log.contains("orders ended by itself with exit code 3 before it was ready"), "{log}");
}

#[test]
fn a_service_that_is_never_ready_fails_detach_at_its_bound() {
    let stage =
        Stage::with("[services.mute]\ncommand = [\"sh\", \"-c\", \"echo thinking; exec sleep 1000\"]\n");
    let said = stage.refused(&["dev", ".", "--detach", "--ready-within", "1"], 1);
    assert!(said.contains("mute is not ready after 1 s (GET /ready must answer 200)"), "{said}");
    assert!(said.contains("  | thinking"), "{said}");
    stage.refused(&["status"], 4);
}

#[test]
fn a_service_that_dies_at_its_start_is_tried_until_it_stays() {
    // The first two starts fail; the third finds two lines in the file.
    let stage = Stage::with(
        "[services.users]\ncommand = [\"sh\", \"-c\", \"echo try >> tries; [ $(wc -l < tries) -gt 2 ] && exec {service}; exit 1\"]\n",
    );
    stage.must(&["dev", ".", "--detach"]);
    assert_eq!(std::fs::read_to_string(stage.path("tries")).unwrap().lines().count(), 3);
    assert_eq!(stage.replica("users")["ready"], true);
}

#[test]
fn services_that_heed_sigterm_end_with_a_killed_runner() {
    let stage = Stage::with_users();
    stage.must(&["dev", ".", "--detach"]);
    let all = [stage.pid("users"), u32::try_from(stage.status()["bus"]["pid"].as_u64().unwrap()).unwrap()];
    signal(stage.runner_pid(), Signal::SIGKILL);
    until("they have ended", || all.map(is_alive) == [false; 2]);
}

#[test]
fn what_a_killed_runner_left_behind_is_ended_at_the_next_start_and_nothing_else() {
    let stage = Stage::with(
        "[services.deaf]\ncommand = [\"sh\", \"-c\", \"trap '' TERM; sleep 1000 & echo child $!; exec {service}\"]\n",
    );
    stage.must(&["dev", ".", "--detach"]);
    let child = stage.must(&["logs", "deaf"]);
    let child: u32 = child.lines().find_map(|line| line.strip_prefix("child ")?.parse().ok()).unwrap();
    let (runner, deaf) = (stage.runner_pid(), stage.pid("deaf"));
    let bystander = Bystander::of_another_run();
    signal(runner, Signal::SIGKILL);
    until("the runner is dead", || !is_alive(runner));
    assert!(stage.refused(&["status"], 4).contains("no system of Tombolo runs here"));
    assert_eq!([deaf, child].map(is_alive), [true; 2], "the service is deaf to SIGTERM");
    stage.must(&["dev", ".", "--detach"]);
    assert_eq!([deaf, child].map(is_alive), [false; 2]);
    assert_ne!(stage.pid("deaf"), deaf);
    assert!(is_alive(bystander.id()));
}

#[test]
fn a_second_runner_on_the_same_data_is_refused_by_number() {
    let stage = Stage::with_users();
    stage.must(&["dev", ".", "--detach"]);
    for arguments in [&["dev", "."][..], &["dev", ".", "--detach"]] {
        let said = stage.refused(arguments, 1);
        assert!(said.contains(&format!("in use by another runner (pid {})", stage.runner_pid())), "{said}");
    }
    assert_eq!(stage.replica("users")["ready"], true);
}

#[test]
fn an_unknown_name_is_answered_with_those_there_are() {
    let stage = Stage::with_users();
    stage.must(&["dev", ".", "--detach"]);
    for command in ["stop", "start", "kill"] {
        let said = stage.refused(&[command, "user"], 3);
        assert!(said.contains("there is no service \"user\"; there are: bus, users"), "{said}");
    }
    assert!(stage.refused(&["logs", "user"], 3).contains("there are: bus, users"));
}

#[test]
fn a_system_is_found_from_elsewhere_if_it_is_the_only_one() {
    let stage = Stage::with_users();
    stage.must(&["dev", ".", "--detach"]);
    let elsewhere = tempfile::tempdir().unwrap();
    let from_elsewhere = |arguments: &[&str]| {
        stage.command(arguments).current_dir(elsewhere.path()).stdin(Stdio::null()).output().unwrap()
    };
    assert!(from_elsewhere(&["status"]).status.success());
    let second = stage.path("second");
    let second = second.to_str().unwrap();
    stage.must(&["dev", ".", "--detach", "--data", second]);
    let output = from_elsewhere(&["status"]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains(&format!("--data {}", stage.data().display())), "{said}");
    assert!(said.contains(&format!("--data {second}")), "{said}");
    assert!(from_elsewhere(&["down", "--data", second]).status.success());
    assert!(from_elsewhere(&["status"]).status.success());
}

#[test]
fn a_manifest_mistake_is_shown_with_its_line() {
    let stage = Stage::with("[services.users]\ncomand = [\"users\"]\nport = \"7101\"\n");
    let said = stage.refused(&["dev", "."], 2);
    let expected = "\
tombolo: ./tombolo.toml:1:11: [services.users] has no command
  |
1 | [services.users]
  |           ^^^^^ add command = [\"path/to/binary\"]

./tombolo.toml:2:1: unknown key `comand` in [services.users]; expected command, port, database, replicas, env
  |
2 | comand = [\"users\"]
  | ^^^^^^ did you mean `command`?

./tombolo.toml:3:8: port is the string \"7101\"; expected a number from 1 to 65535
  |
3 | port = \"7101\"
  |        ^^^^^^
";
    assert_eq!(said, expected);
    assert!(!stage.data().exists(), "a mistake leaves nothing behind");
}

#[test]
fn a_missing_program_and_a_missing_manifest_are_said_before_anything_starts() {
    let stage = Stage::with("[services.users]\ncommand = [\"./users\"]\n");
    let said = stage.refused(&["dev", ".", "--detach"], 2);
    assert!(said.contains("service users: ") && said.contains("cargo build --bin users"), "{said}");
    assert!(stage.refused(&["dev", "registry"], 2).contains("cannot read registry/tombolo.toml"));
}

#[test]
fn a_port_in_use_names_who_has_it() {
    let held = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = held.local_addr().unwrap().port();
    let stage = Stage::with(&format!(
        "[bus]\nlisten = \"127.0.0.1:{port}\"\n[services.a]\ncommand = [\"{{service}}\"]\n"
    ));
    let said = stage.refused(&["dev", "."], 1);
    assert!(said.contains(&format!("bus cannot listen on 127.0.0.1:{port}")), "{said}");
    assert!(said.contains(&format!("(pid {})", std::process::id())), "{said}");
}

#[test]
fn a_path_too_long_for_a_socket_gives_services_the_port() {
    let stage = Stage::with_users();
    let deep = stage.path(&"d".repeat(100));
    let deep = deep.to_str().unwrap();
    stage.must(&["dev", ".", "--detach", "--data", deep]);
    let status: Value =
        serde_json::from_str(&stage.must(&["status", "--data", deep, "--format", "json"])).unwrap();
    let bus = status["bus"]["url"].as_str().unwrap();
    assert!(bus.starts_with("tombolo://127.0.0.1:"), "{bus}");
    assert_eq!(stage.must(&["topics", "list", "--data", deep, "--format", "json"]).trim(), "[]");
    stage.must(&["down", "--data", deep]);
}

#[test]
fn logs_go_on_with_what_is_written() {
    let stage = Stage::with_users();
    stage.must(&["dev", ".", "--detach"]);
    assert!(stage.must(&["logs", "users"]).starts_with("users listens on "));
    let followed = stage.path("followed");
    let out = std::fs::File::create(&followed).unwrap();
    let mut follower = stage.command(&["logs", "users", "--follow"]).stdout(out).spawn().unwrap();
    let lines = || std::fs::read_to_string(&followed).unwrap().lines().count();
    until("the first line is there", || lines() == 1);
    stage.must(&["stop", "users"]);
    stage.must(&["start", "users"]);
    until("the second line is there", || lines() == 2);
    follower.kill().unwrap();
    follower.wait().unwrap();
}
