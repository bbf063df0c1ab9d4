//! The README's commands, as they are written there, against a shop of this test's own.
//!
//! Invariant: only addresses, the data folder and the place of the binary are replaced.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;

use crate::built;
use crate::running::Shop;
use crate::wait::BOUND;

/// What no command prints.
const END: &str = "=== end of this block ===";

/// The blocks of shell commands that follow `cargo shop`, up to the next chapter.
fn blocks() -> Vec<String> {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../README.md");
    let text = std::fs::read_to_string(readme).unwrap();
    let chapter = text.split("\n## ").find(|chapter| chapter.contains("```sh\ncargo shop\n```")).unwrap();
    let blocks = chapter.split("```sh\n").skip(1).map(|block| block.split("```").next().unwrap().to_owned());
    blocks.filter(|block| block != "cargo shop\n").collect()
}

/// A shell in which one block follows the other.
struct Shell {
    child: Child,
    said: Lines<BufReader<ChildStdout>>,
}

impl Shell {
    fn new() -> Self {
        let mut command = Command::new("bash");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let said = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, said }
    }

    /// Runs a block; returns what it printed.
    async fn run(&mut self, block: &str) -> String {
        let input = format!("{block}\necho; echo '{END}'\n");
        self.child.stdin.as_mut().unwrap().write_all(input.as_bytes()).await.unwrap();
        let mut printed = String::new();
        loop {
            let line = timeout(BOUND, self.said.next_line()).await;
            let line = line.unwrap_or_else(|_| panic!("waited for the end of: {block}"));
            match line.unwrap().expect("the shell goes on") {
                line if line == END => return printed,
                line => printed += &line.replace("}{", "}\n{"),
            }
            printed += "\n";
        }
    }
}

/// The JSON documents among the lines.
fn documents(printed: &str) -> Vec<Value> {
    printed.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

fn adapted(shop: &Shop, block: &str) -> String {
    let mut block = block.replace("examples/shop/.tombolo", shop.data().to_str().unwrap());
    for (port, service) in [(7101, "users"), (7102, "products"), (7103, "orders"), (7104, "order-history")] {
        block = block.replace(&format!("localhost:{port}"), shop.url(service).trim_start_matches("http://"));
    }
    block
}

#[tokio::test]
async fn the_readmes_commands_do_what_it_says() {
    if Command::new("curl").arg("--version").stdout(Stdio::null()).status().await.is_err() {
        eprintln!("skipped: the README's commands: curl is not installed; apt-get install curl");
        return;
    }
    let shop = Shop::start().await;
    let [order, ask, outage, rebuild] =
        <[String; 4]>::try_from(blocks()).unwrap().map(|block| adapted(&shop, &block));
    let mut shell = Shell::new();
    let tombolo = format!(
        "tombolo() {{ {} \"$@\" --data {} >&2; }}",
        built::binary("tombolo").display(),
        shop.data().display()
    );
    shell.run(&tombolo).await;

    let ordered = documents(&shell.run(&order).await);
    let order = ordered.last().unwrap();
    assert_eq!((&order["quantity"], &order["price_cents"]), (&2.into(), &2490.into()), "{ordered:?}");
    let user_id = order["user_id"].as_str().unwrap();
    shop.replica_of(user_id, 1).await;

    let [called, gathered, replica] = <[Value; 3]>::try_from(documents(&shell.run(&ask).await)).unwrap();
    assert_eq!(called["orders"][0]["title"], "Lantern", "{called}");
    assert_eq!((&called["orders"], &called["orders"]), (&gathered["orders"], &replica["orders"]));

    let without_alias: String =
        outage.lines().filter(|line| !line.starts_with("alias ")).collect::<Vec<_>>().join("\n");
    assert_ne!(without_alias, outage, "the alias stands in the README");
    let [called, gathered, replica] =
        <[Value; 3]>::try_from(documents(&shell.run(&without_alias).await)).unwrap();
    assert!(called["status"] == 503 && called["detail"].as_str().unwrap().contains("products"), "{called}");
    assert_eq!(
        (&gathered["orders"][0]["title"], &gathered["missing"][0]["service"]),
        (&Value::Null, &"products".into())
    );
    assert_eq!(replica["orders"][0]["title"], "Lantern", "{replica}");

    shell.run(&rebuild).await;
    shop.replica_of(user_id, 2).await;
    tokio::time::timeout(Duration::from_secs(5), shell.child.kill()).await.unwrap().unwrap();
    shop.end().await;
}
