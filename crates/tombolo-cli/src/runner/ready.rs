//! Asking a process whether it is ready.
//!
//! Invariant: asked often at first, because people wait for it, then ever less; each question has a bound.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpStream;

use crate::plan::Probe;

/// How long between the first two questions.
const ASK_FIRST: Duration = Duration::from_millis(10);
/// How long between two questions at the most.
const ASK_SLOWEST: Duration = Duration::from_millis(250);
/// How long an answer may take.
const ANSWER_BOUND: Duration = Duration::from_secs(2);

/// Returns once the process that listens on `listen` is ready.
pub(crate) async fn until_ready(client: reqwest::Client, probe: Probe, listen: SocketAddr) {
    let mut pause = ASK_FIRST;
    while !is_ready(&client, probe, listen).await {
        tokio::time::sleep(pause).await;
        pause = pause.mul_f32(1.2).min(ASK_SLOWEST);
    }
}

/// Whether it is ready now.
pub(crate) async fn is_ready(client: &reqwest::Client, probe: Probe, listen: SocketAddr) -> bool {
    let ask = async {
        match probe {
            Probe::Connect => TcpStream::connect(listen).await.is_ok(),
            Probe::Http => match client.get(format!("http://{listen}/ready")).send().await {
                Ok(answer) => answer.status() == reqwest::StatusCode::OK,
                Err(_) => false,
            },
        }
    };
    tokio::time::timeout(ANSWER_BOUND, ask).await.unwrap_or(false)
}
