//! `tombolo gateway`, beside the services of `tombolo dev` and alone.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use nix::sys::signal::Signal;

use crate::stage::{Stage, signal, until};

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// What is answered under a path, or nothing.
fn asked(port: u16, path: &str) -> String {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { return String::new() };
    let mut answer = String::new();
    let request = format!("GET {path} HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n");
    drop(stream.write_all(request.as_bytes()).and_then(|()| stream.read_to_string(&mut answer)));
    answer
}

fn replica(answer: &str) -> Option<String> {
    answer.lines().find(|line| line.starts_with("TOMBOLO_REPLICA=")).map(str::to_owned)
}

fn manifest(port: u16) -> String {
    format!(
        "[services.users]\ncommand = [\"{{service}}\"]\n[gateway]\nport = {port}\n[[gateway.route]]\npath = \"/users\"\n\
         strip = true\nservice = \"users\"\nbalance = \"round-robin\"\n"
    )
}

#[test]
fn the_gateway_follows_the_replicas_that_the_runner_runs() {
    let port = free_port();
    let stage = Stage::with(&manifest(port));
    stage.must(&["dev", ".", "--detach"]);
    until("the service answers", || replica(&asked(port, "/users/")).is_some());
    stage.must(&["scale", "users=3"]);
    let mut seen = BTreeSet::new();
    until("all three answer", || {
        seen.extend(replica(&asked(port, "/users/")));
        seen.len() == 3
    });
    stage.must(&["scale", "users=1"]);
    until("only the first answers", || {
        let answers: BTreeSet<_> = (0..6).map(|_| replica(&asked(port, "/users/"))).collect();
        answers == BTreeSet::from([Some("TOMBOLO_REPLICA=1".to_owned())])
    });
    stage.must(&["kill", "users"]);
    until("it answers again", || replica(&asked(port, "/users/")).is_some());
    let answer = asked(port, "/nothing");
    assert!(
        answer.starts_with("HTTP/1.1 404") && answer.contains("urn:tombolo:gateway:not-found"),
        "{answer}"
    );
    stage.must(&["kill", "gateway"]);
    until("the gateway itself is started again", || replica(&asked(port, "/users/")).is_some());
    stage.must(&["down"]);
    assert_eq!(asked(port, "/users/"), "");
}

#[test]
fn what_is_said_to_be_ready_is_reached_through_the_gateway_at_once() {
    let port = free_port();
    let stage = Stage::with(&manifest(port));
    for _ in 0..3 {
        stage.must(&["dev", ".", "--detach"]);
        assert!(replica(&asked(port, "/users/")).is_some(), "{}", asked(port, "/users/"));
        stage.must(&["scale", "users=3"]);
        let answers: BTreeSet<_> = (0..3).map(|_| replica(&asked(port, "/users/")).unwrap()).collect();
        assert_eq!(answers.len(), 3, "{answers:?}");
        stage.must(&["scale", "users=1"]);
        stage.must(&["stop", "users"]);
        stage.must(&["start", "users"]);
        assert!(replica(&asked(port, "/users/")).is_some(), "{}", asked(port, "/users/"));
        stage.must(&["stop", "gateway"]);
        stage.must(&["scale", "users=2"]);
        stage.must(&["start", "gateway"]);
        let answers: BTreeSet<_> = (0..2).map(|_| replica(&asked(port, "/users/")).unwrap()).collect();
        assert_eq!(answers.len(), 2, "{answers:?}");
        stage.must(&["down"]);
    }
}

#[test]
fn a_changed_manifest_changes_the_routes() {
    let port = free_port();
    let stage = Stage::with(&manifest(port));
    stage.must(&["dev", ".", "--detach"]);
    until("the service answers", || replica(&asked(port, "/users/")).is_some());
    let path = stage.path("tombolo.toml");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("path = \"/users\"", "path = \"/people\"")).unwrap();
    until("the new route is there", || replica(&asked(port, "/people/")).is_some());
    assert!(asked(port, "/users/").starts_with("HTTP/1.1 404"));
    fs::write(&path, text.replace("service = \"users\"", "servise = \"users\"")).unwrap();
    signal(stage.pid("gateway"), Signal::SIGHUP);
    until("the mistake is said", || stage.must(&["logs", "gateway"]).contains("did you mean `service`?"));
    assert!(replica(&asked(port, "/people/")).is_some(), "what was right before stays");
}

#[test]
fn a_mistake_is_shown_with_its_place_by_both_commands() {
    let stage = Stage::with(
        "[services.users]\ncommand = [\"{service}\"]\n[gateway]\n[[gateway.route]]\nservise = \"users\"\n",
    );
    for arguments in [&["gateway"][..], &["dev", "."]] {
        let said = stage.refused(arguments, 2);
        assert!(said.contains("tombolo.toml:5:1: unknown key `servise`"), "{said}");
        assert!(said.contains("did you mean `service`?"), "{said}");
    }
    let stage = Stage::with_users();
    assert!(stage.refused(&["gateway"], 2).contains("has no table [gateway]"));
}
