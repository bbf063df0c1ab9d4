//! The blog of `examples/blog`: four services in plain Node.js, each of which is killed, and the bus, while people write.
//!
//! Invariant of what is tested: whatever was answered is in the read model in the end, as it would be without any fault.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use reqwest::Client;
use serde_json::{Value, json};

use crate::stage::{Stage, until_within};

const WRITERS: usize = 4;
const POSTS_EACH: usize = 12;
const KILLS: usize = 15;
const BOUND: Duration = Duration::from_secs(120);
const SERVICES: [&str; 5] = ["posts", "comments", "query", "moderation", "bus"];

/// The blog on ports of its own.
struct Blog {
    stage: Stage,
    ports: BTreeMap<&'static str, u16>,
    client: Client,
}

impl Blog {
    fn start() -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/blog");
        let mut manifest = std::fs::read_to_string(folder.join("tombolo.toml")).unwrap();
        let names = [
            ("posts", "4000"),
            ("comments", "4001"),
            ("query", "4002"),
            ("moderation", "4003"),
            ("events", "4005"),
            ("http", "7200"),
        ];
        // All at once, so that no port is given twice; by way of marks, because a free port may look like one of the others.
        let free: Vec<_> =
            names.iter().map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let ports: BTreeMap<&str, u16> = names
            .iter()
            .zip(&free)
            .map(|((name, _), free)| (*name, free.local_addr().unwrap().port()))
            .collect();
        for (name, port) in names {
            manifest = manifest.replace(port, &format!("<{name}>"));
        }
        for (name, port) in &ports {
            manifest = manifest.replace(&format!("<{name}>"), &port.to_string());
        }
        drop(free);
        let events =
            format!("env = {{ BUS = \"http://127.0.0.1:{}/events\" }}\ndatabase = \"none\"", ports["events"]);
        let manifest = manifest.replace("database = \"none\"", &events);
        let stage = Stage::with(
            &manifest.replace(", \"[::1]:", "#").replace(&format!("#{}\"]", ports["events"]), "]"),
        );
        for file in ["service.js", "posts.js", "comments.js", "query.js", "moderation.js"] {
            std::fs::copy(folder.join(file), stage.path(file)).unwrap();
        }
        stage.must(&["dev", ".", "--detach"]);
        Self { stage, ports, client: Client::new() }
    }

    /// Posts something, again and again until it is taken.
    async fn post(&self, service: &str, path: &str, body: Value) {
        let url = format!("http://127.0.0.1:{}{path}", self.ports[service]);
        let is_taken = || async {
            let Ok(answer) = self.client.post(&url).body(body.to_string()).send().await else { return false };
            if !answer.status().is_success() {
                assert!(answer.status().is_server_error(), "{}", answer.text().await.unwrap());
                return false;
            }
            true
        };
        until_within(BOUND, "something posted is taken", is_taken).await;
    }

    async fn write(&self, writer: usize) {
        for number in 0..POSTS_EACH {
            let post = format!("{writer}-{number}");
            self.post("posts", "/posts", json!({"id": post, "title": format!("Post {post}")})).await;
            for (comment, content) in [("good", "fine"), ("bad", "an orange")] {
                let id = format!("{post}-{comment}");
                self.post(
                    "comments",
                    &format!("/posts/{post}/comments"),
                    json!({"id": id, "content": content}),
                )
                .await;
            }
        }
    }

    /// Kills one after the other, wherever the dice say.
    async fn kill(&self, mut dice: StdRng) {
        let mut killed = 0;
        while killed < KILLS {
            tokio::time::sleep(Duration::from_millis(dice.random_range(20..300))).await;
            let name = *SERVICES.choose(&mut dice).unwrap();
            let said = tokio::task::block_in_place(|| self.stage.run(&["kill", name]));
            let problem = String::from_utf8_lossy(&said.stderr);
            // One that has not been started again yet counts for nothing.
            assert!(said.status.success() || problem.contains("does not run"), "{name}: {problem}");
            killed += usize::from(said.status.success());
        }
    }

    /// The read model: posts by id, each with its comments by id.
    async fn read(&self) -> Option<BTreeMap<String, BTreeMap<String, String>>> {
        let url = format!("http://127.0.0.1:{}/posts", self.ports["query"]);
        let text = self.client.get(url).send().await.ok()?.text().await.ok()?;
        let posts: Vec<Value> = serde_json::from_str(&text).ok()?;
        let comments = |post: &Value| {
            let each = post["comments"].as_array().unwrap().iter();
            each.map(|it| (it["id"].as_str().unwrap().to_owned(), it["status"].as_str().unwrap().to_owned()))
                .collect()
        };
        let titled = posts.iter().filter(|post| post["title"].is_string());
        Some(titled.map(|post| (post["id"].as_str().unwrap().to_owned(), comments(post))).collect())
    }
}

fn expected() -> BTreeMap<String, BTreeMap<String, String>> {
    let posts =
        (0..WRITERS).flat_map(|writer| (0..POSTS_EACH).map(move |number| format!("{writer}-{number}")));
    let comments = |post: &str| {
        [("good", "approved"), ("bad", "rejected")]
            .map(|(name, status)| (format!("{post}-{name}"), status.to_owned()))
    };
    posts.map(|post| (post.clone(), comments(&post).into())).collect()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: four services in Node.js, killed fifteen times"]
async fn a_blog_whose_parts_are_killed_at_any_moment_misses_no_post_and_no_comment() {
    let seed = rand::random::<u64>();
    eprintln!("seed {seed}");
    let blog = Blog::start();
    let writing = futures_util::future::join_all((0..WRITERS).map(|writer| blog.write(writer)));
    let work = async { tokio::join!(writing, blog.kill(StdRng::seed_from_u64(seed))) };
    tokio::time::timeout(BOUND, work).await.unwrap();
    let mut looks = tokio::time::interval(Duration::from_millis(50));
    let settled = async {
        while blog.read().await != Some(expected()) {
            looks.tick().await;
        }
    };
    if tokio::time::timeout(BOUND, settled).await.is_err() {
        assert_eq!(blog.read().await, Some(expected()));
    }
}
