//! Follows a name: its addresses are asked for again when their life ends.
//!
//! Invariant: a name that cannot be resolved for a moment leaves the replicas as they were.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::RData;
use http::Uri;

use super::Upstream;
use crate::config::Target;

/// The shortest time between two questions, whatever life an answer says it has.
const LIFE_MIN: Duration = Duration::from_millis(500);
/// The longest: a name is to be followed.
const LIFE_MAX: Duration = Duration::from_secs(30);

/// Follows the name until it is dropped.
pub(super) async fn follow(upstream: Arc<Upstream>, name: Uri, servers: Vec<SocketAddr>) {
    let resolver = match resolver(&servers) {
        Ok(resolver) => resolver,
        Err(error) => {
            tracing::error!(%name, %error, "names cannot be resolved");
            return;
        }
    };
    loop {
        let life = match resolve(&resolver, &name).await {
            Ok((targets, life)) => {
                upstream.set(targets);
                life
            }
            Err(error) => {
                tracing::warn!(%name, %error, "the name cannot be resolved; its replicas stay as they were");
                LIFE_MIN
            }
        };
        tokio::time::sleep(life.clamp(LIFE_MIN, LIFE_MAX)).await;
    }
}

type Failure = hickory_resolver::net::NetError;

fn resolver(servers: &[SocketAddr]) -> Result<TokioResolver, Failure> {
    let mut builder = if servers.is_empty() {
        TokioResolver::builder_tokio()?
    } else {
        let server = |address: &SocketAddr| {
            let mut udp = ConnectionConfig::udp();
            let mut tcp = ConnectionConfig::tcp();
            (udp.port, tcp.port) = (address.port(), address.port());
            NameServerConfig::new(address.ip(), true, vec![udp, tcp])
        };
        let servers = servers.iter().map(server).collect();
        let config = ResolverConfig::from_parts(None, Vec::new(), servers);
        TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
    };
    // What is remembered here would be followed too late.
    builder.options_mut().cache_size = 0;
    builder.build()
}

/// The replicas under a name, and for how long that holds.
async fn resolve(resolver: &TokioResolver, name: &Uri) -> Result<(Vec<Target>, Duration), Failure> {
    let scheme = name.scheme_str().unwrap_or("http");
    let host = name.host().unwrap_or_default();
    let absolute = |host: &str| if host.ends_with('.') { host.to_owned() } else { format!("{host}.") };
    let mut targets = Vec::new();
    let life = match scheme.strip_prefix("srv+") {
        None => {
            let port = name.port_u16().unwrap_or(if scheme == "https" { 443 } else { 80 });
            add(resolver, &absolute(host), scheme, port, 1, &mut targets).await?
        }
        Some(scheme) => {
            let found = resolver.srv_lookup(absolute(host)).await?;
            let mut life = left(found.valid_until());
            for record in found.answers() {
                let RData::SRV(srv) = &record.data else { continue };
                let weight = u32::from(srv.weight).max(1);
                let target = srv.target.to_utf8();
                life = life.min(add(resolver, &target, scheme, srv.port, weight, &mut targets).await?);
            }
            life
        }
    };
    targets.sort_by_key(|target| target.url.to_string());
    Ok((targets, life))
}

async fn add(
    resolver: &TokioResolver,
    host: &str,
    scheme: &str,
    port: u16,
    weight: u32,
    targets: &mut Vec<Target>,
) -> Result<Duration, Failure> {
    let found = resolver.lookup_ip(host).await?;
    for ip in found.iter() {
        if let Ok(url) = format!("{scheme}://{}", SocketAddr::new(ip, port)).parse() {
            let name = Some(host.trim_end_matches('.').to_owned());
            targets.push(Target { url, weight, name });
        }
    }
    Ok(left(found.valid_until()))
}

fn left(until: Instant) -> Duration {
    until.saturating_duration_since(Instant::now())
}
