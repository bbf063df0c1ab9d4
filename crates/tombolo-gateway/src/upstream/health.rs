//! Looks after one replica: asks it whether it is well, or knocks when it has been away.
//!
//! Invariant: one look at a time, each with a bound; a replica comes back by a look that succeeded and by nothing else.

use std::sync::Arc;
use std::time::Duration;

use http::uri::PathAndQuery;
use http::{Request, header};
use tokio::net::TcpStream;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::Replica;
use crate::body::Upload;
use crate::config::Health;

/// How long a look may take.
const LOOK_MAX: Duration = Duration::from_secs(2);
/// How often one knocks at a replica that is away.
const KNOCK_EVERY: Duration = Duration::from_millis(200);
/// After how many bad looks in a row a replica is taken out.
const BAD_LOOKS_MAX: u32 = 2;

/// Looks after a replica until it is dropped.
pub(super) async fn look_after(replica: Arc<Replica>, health: Option<Health>) {
    match health {
        Some(health) => ask(&replica, &health).await,
        None => knock(&replica).await,
    }
}

async fn ask(replica: &Replica, health: &Health) {
    let Ok(path) = health.path.parse::<PathAndQuery>() else { return };
    let mut bad = 0;
    let mut clock = interval(health.every);
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        clock.tick().await;
        let well = is_well(replica, path.clone()).await;
        bad = if well { 0 } else { bad + 1 };
        if well || bad >= BAD_LOOKS_MAX {
            replica.looked_at(well);
        }
    }
}

async fn is_well(replica: &Replica, path: PathAndQuery) -> bool {
    let mut request = Request::new(Upload::empty());
    *request.uri_mut() = replica.uri(path);
    *request.version_mut() = replica.version();
    request.headers_mut().insert(header::USER_AGENT, http::HeaderValue::from_static("tombolo-gateway"));
    match timeout(LOOK_MAX, replica.look(request)).await {
        Ok(Ok(answer)) => answer.status().is_success(),
        _ => false,
    }
}

async fn knock(replica: &Replica) {
    let (host, port) = replica.address();
    loop {
        replica.away().await;
        let mut clock = interval(KNOCK_EVERY);
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !replica.is_well() {
            clock.tick().await;
            if let Ok(Ok(_)) = timeout(LOOK_MAX, TcpStream::connect((host.as_str(), port))).await {
                replica.looked_at(true);
            }
        }
    }
}
