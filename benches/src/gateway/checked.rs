//! The gateway's check of tokens, beside its own plain rate and beside HAProxy's `jwt_verify`: ES256, the same tokens, the same
//! backend, by turns.
//!
//! In it, as users have it: the issuer is found by its discovery document, blocks are heard over a bus (Tombolo's own, behind a
//! Unix socket) and every request is held against them, HAProxy looks at the claims that its documentation says to look at: `alg`,
//! `iss`, `aud`, `exp`. Not in it: TLS, and traffic on the bus. The route that is measured against HAProxy says nothing to the
//! service of who asks, because HAProxy says nothing either; what that costs besides is shown by a row of its own. Every request
//! has a token, those of the plain rate too, so that all of them are as long.
//!
//! Invariant: each door has refused what must be refused before it is measured, and ours has refused a user who was blocked.

use std::fs;
use std::path::{Path, PathBuf};

use tokio::time::{Duration, interval, timeout};

use super::issuer::{AUDIENCE, Issuer, Signer};
use super::proxies::{PRESSED_S, START_MAX, Started, backend, gateway, haproxy, in_path};
use crate::error::{Error, Result};
use crate::rounds::{Round, Rounds, Turns};
use crate::scratch::Scratch;
use crate::server;
use crate::table::{Bar, Row, rate};

const ROUNDS: usize = 5;
/// How many users ask, each with one token.
const USERS: usize = 1_000;
/// A user of whom no token is measured.
const BLOCKED: usize = USERS;
/// By how much more tokens are made than requests are expected: of a file that ends too early, none would be left to show.
const TOKENS_SPARE: f64 = 1.5;

const OWN: &str = "requests with a checked token (ES256, 1,000 users), beside the gateway without checks";
const TOLD: &str = "the same, and the service is told who asks by a token of the gateway's own";
const BESIDE: &str = "requests with a checked token (ES256, 1,000 users), beside HAProxy's jwt_verify";
const FRESH: &str = "requests with a token never seen before (ES256), beside HAProxy's jwt_verify";

/// The routes of one gateway.
const PLAIN: &str = "/plain";
const CHECKED: &str = "/checked";
const VOUCHED: &str = "/vouched";

/// The figures, or why there are none.
pub(super) async fn measure(scratch: &Scratch, runner: &Path) -> Result<Vec<Row>> {
    if in_path("haproxy").is_none() {
        let why = "not measured: there is no haproxy; `apt-get install haproxy` installs it".to_owned();
        return Ok(vec![Row::absent(BESIDE, why, Bar::AtLeast(1.5))]);
    }
    let socket = scratch.path("gateway.sock");
    let bus = server::start(&scratch.path("gateway-log"), &socket, None).await?;
    let issuer = Issuer::start(scratch, &server::url(&socket)).await?;
    let measured = beside(scratch, runner, &issuer, &server::url(&socket)).await;
    issuer.end().await;
    bus.end().await?;
    measured
}

async fn beside(scratch: &Scratch, runner: &Path, issuer: &Issuer, bus: &str) -> Result<Vec<Row>> {
    let signer = &issuer.signer;
    let backend = backend(scratch, "checked-backend").await?;
    let own = gateway(scratch, runner, "checked", &tables(signer, backend.port), Some(bus)).await?;
    let other = haproxy(scratch, &rules(signer, &signer.public_key(scratch)?), backend.port).await?;
    refuse_alike(signer, &own, &other).await?;
    hears_blocks(issuer, &own).await?;
    let known = Known::measure(scratch, signer, &own, &other).await?;
    let most = known.beside.yardstick().max(known.beside.subject());
    let fresh = fresh(scratch, signer, &own, &other, most).await?;
    Ok(vec![
        Row::of(OWN, &known.own, Bar::AtLeast(0.85), rate),
        Row::of(TOLD, &known.told, Bar::None, rate),
        Row::of(BESIDE, &known.beside, Bar::AtLeast(1.5), rate),
        Row::of(FRESH, &fresh, Bar::AtLeast(0.8), rate),
    ])
}

/// Three routes to one backend: without checks, with them, and with them and a word to the service.
fn tables(signer: &Signer, backend: u16) -> String {
    let route = |path: &str, more: &str| {
        format!("[[gateway.route]]\npath = \"{path}\"\nupstreams = [\"http://127.0.0.1:{backend}\"]\n{more}")
    };
    let vouched = "auth = \"required\"\ncallee = \"bench\"\n";
    let routes = [route(PLAIN, ""), route(CHECKED, "auth = \"required\"\n"), route(VOUCHED, vouched)];
    format!("issuer = \"{}\"\n{}", signer.name, routes.concat())
}

/// What HAProxy's documentation says to look at: the algorithm, issuer, audience, signature and end.
fn rules(signer: &Signer, key: &Path) -> String {
    let name = &signer.name;
    let key = key.display();
    [
        "set-var(txn.alg) http_auth_bearer,jwt_header_query('$.alg')".to_owned(),
        "set-var(txn.iss) http_auth_bearer,jwt_payload_query('$.iss')".to_owned(),
        "set-var(txn.aud) http_auth_bearer,jwt_payload_query('$.aud')".to_owned(),
        "set-var(txn.exp) http_auth_bearer,jwt_payload_query('$.exp','int')".to_owned(),
        "deny deny_status 401 unless { var(txn.alg) -m str ES256 }".to_owned(),
        format!("deny deny_status 401 unless {{ var(txn.iss) -m str {name} }}"),
        format!("deny deny_status 401 unless {{ var(txn.aud) -m str {AUDIENCE} }}"),
        format!("deny deny_status 401 unless {{ http_auth_bearer,jwt_verify(txn.alg,\"{key}\") -m int 1 }}"),
        "set-var(txn.now) date()".to_owned(),
        "deny deny_status 401 if { var(txn.exp),sub(txn.now) -m int lt 0 }".to_owned(),
    ]
    .map(|rule| format!("  http-request {rule}\n"))
    .concat()
}

/// The status of one request with this token.
async fn status(door: &Started, path: &str, token: &str) -> Result<u16> {
    let url = format!("http://127.0.0.1:{}{path}", door.port);
    let client = reqwest::Client::builder().no_proxy().build()?;
    Ok(client.get(url).bearer_auth(token).send().await?.status().as_u16())
}

/// Holds both doors against what they must let in, and what not.
async fn refuse_alike(signer: &Signer, own: &Started, other: &Started) -> Result<()> {
    let good = signer.claims(0);
    let stranger = Signer::new(&signer.name)?;
    let aud = tombolo::auth::token::Audience::One("somebody".to_owned());
    let mut shown = vec![(200, "a good one", signer.sign(&good)?)];
    shown.push((401, "none", String::new()));
    shown.push((401, "of another key", stranger.sign(&good)?));
    shown.push((401, "of another issuer", signer.sign(&with(&good, |it| it.iss.push('x')))?));
    shown.push((401, "for another audience", signer.sign(&with(&good, |it| it.aud = aud))?));
    shown.push((401, "that has ended", signer.sign(&with(&good, |it| it.exp -= 7_200))?));
    for (door, path) in [(own, CHECKED), (own, VOUCHED), (other, "/")] {
        for (expected, what, token) in &shown {
            let found = status(door, path, token).await?;
            if found != *expected {
                return Err(Error::new(format!(
                    "a token, {what}: found status {found} at port {}{path}; expected {expected}",
                    door.port
                )));
            }
        }
    }
    Ok(())
}

fn with(
    claims: &tombolo::auth::token::Claims,
    change: impl FnOnce(&mut tombolo::auth::token::Claims),
) -> tombolo::auth::token::Claims {
    let mut changed = claims.clone();
    change(&mut changed);
    changed
}

/// Waits until a user who is blocked is refused.
async fn hears_blocks(issuer: &Issuer, own: &Started) -> Result<()> {
    let token = issuer.signer.sign(&issuer.signer.claims(BLOCKED))?;
    if status(own, CHECKED, &token).await? != 200 {
        return Err(Error::new("a user who is not blocked yet was refused"));
    }
    issuer.block(BLOCKED).await?;
    let refused = async {
        let mut clock = interval(Duration::from_millis(20));
        while status(own, CHECKED, &token).await? != 401 {
            clock.tick().await;
        }
        Ok(())
    };
    timeout(START_MAX, refused).await.map_err(|_| Error::new("the gateway did not hear of a block"))?
}

/// With tokens that were seen before.
#[derive(Default)]
struct Known {
    own: Rounds,
    told: Rounds,
    beside: Rounds,
}

impl Known {
    async fn measure(scratch: &Scratch, signer: &Signer, own: &Started, other: &Started) -> Result<Self> {
        let tokens = scratch.path("known.tokens");
        signer.write(&tokens, USERS, USERS)?;
        let script = script(scratch, "known.lua", &round_and_round(&tokens))?;
        let (mut all, mut turns) = (Self::default(), Turns::new(ROUNDS));
        while turns.next() {
            let plain = own.press_at(PLAIN, Some(&script)).await?.rate;
            let checked = own.press_at(CHECKED, Some(&script)).await?.rate;
            let told = own.press_at(VOUCHED, Some(&script)).await?.rate;
            let theirs = other.press(Some(&script)).await?.rate;
            all.own.0.push(Round { yardstick: plain, subject: checked });
            all.told.0.push(Round { yardstick: plain, subject: told });
            all.beside.0.push(Round { yardstick: theirs, subject: checked });
        }
        Ok(all)
    }
}

/// With tokens that nobody has seen: other ones in each round, and more of them than requests at the `most` for one turn.
async fn fresh(
    scratch: &Scratch,
    signer: &Signer,
    own: &Started,
    other: &Started,
    most: f64,
) -> Result<Rounds> {
    let count = (most * f64::from(PRESSED_S) * TOKENS_SPARE) as usize;
    let tokens = scratch.path("fresh.tokens");
    let script = script(scratch, "fresh.lua", &once_each(&tokens))?;
    let (mut rounds, mut turns) = (Rounds::default(), Turns::new(ROUNDS));
    while turns.next() {
        signer.write(&tokens, count, USERS)?;
        let yardstick = other.press(Some(&script)).await?.rate;
        let subject = own.press_at(CHECKED, Some(&script)).await?.rate;
        rounds.0.push(Round { yardstick, subject });
    }
    Ok(rounds)
}

fn script(scratch: &Scratch, name: &str, text: &str) -> Result<PathBuf> {
    let file = scratch.path(name);
    fs::write(&file, text)?;
    Ok(file)
}

/// A script of `wrk` that shows the tokens of a file one after the other, again and again.
fn round_and_round(tokens: &Path) -> String {
    format!(
        "local requests, turn = {{}}, 0\n\
         function init()\n\
           for token in io.lines(\"{}\") do\n\
             requests[#requests + 1] = wrk.format(nil, nil, {{ [\"Authorization\"] = \"Bearer \" .. token }})\n\
           end\n\
         end\n\
         function request()\n\
           turn = turn % #requests + 1\n\
           return requests[turn]\n\
         end\n",
        tokens.display()
    )
}

/// A script of `wrk` that shows each token of a file once; when there are no more, one that nobody lets in.
fn once_each(tokens: &Path) -> String {
    format!(
        "local tokens, before, after\n\
         function init()\n\
           tokens = io.open(\"{}\")\n\
           local whole = wrk.format(nil, nil, {{ [\"Authorization\"] = \"Bearer TOKEN\" }})\n\
           before, after = whole:match(\"^(.*)TOKEN(.*)$\")\n\
         end\n\
         function request()\n\
           return before .. (tokens:read(\"*l\") or \"none-is-left\") .. after\n\
         end\n",
        tokens.display()
    )
}
