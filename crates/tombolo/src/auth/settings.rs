//! How a service finds out who is asking: in code, or from the environment, so that a line of the manifest can change it.
//!
//! Invariant: what is not said is as strict as it can be; only the issuer has no default.

use std::collections::BTreeMap;
use std::env;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use tombolo_event::ServiceName;

use super::central::Central;
use super::feed::{Feed, Heard};
use super::keys::{self, Keys};
use super::local::{Fallback, Local};
use super::mutant::Mutation;
use super::remembered::Remembered;
use super::token::{Algorithm, Expected, LEEWAY};
use super::{Check, Checks};
use crate::settings::Secret;
use crate::{Clock, Error, Kind, Result};

/// Which check: `local`, `central` or `gateway`.
const WAY: &str = "TOMBOLO_AUTH";
/// The issuer's name, which is an address that its discovery document lies under.
const ISSUER: &str = "TOMBOLO_AUTH_ISSUER";
const AUDIENCE: &str = "TOMBOLO_AUTH_AUDIENCE";
const CLIENT: &str = "TOMBOLO_AUTH_CLIENT";
const SECRET: &str = "TOMBOLO_AUTH_SECRET";
/// The topic of identity, and what the types of its events begin with; `none` for an issuer that has none.
const TOPIC: &str = "TOMBOLO_AUTH_TOPIC";
const TYPES: &str = "TOMBOLO_AUTH_TYPES";
const LIFE: &str = "TOMBOLO_AUTH_TOKEN_LIFE_S";
/// Which services vouch for users under [`Way::Gateway`], with commas between.
const DOORS: &str = "TOMBOLO_AUTH_DOORS";
/// After how many seconds without the bus local checks ask the issuer instead.
const CENTRAL_AFTER: &str = "TOMBOLO_AUTH_CENTRAL_AFTER_S";

/// After how many seconds without the bus `GET /health` says so.
const ALARM_AFTER: &str = "TOMBOLO_AUTH_ALARM_AFTER_S";
/// For how many seconds what the issuer said of a token is remembered.
const CENTRAL_CACHE: &str = "TOMBOLO_AUTH_CENTRAL_CACHE_S";

/// The audience unless another is said: the whole system.
pub(crate) const AUDIENCE_DEFAULT: &str = "tombolo";
const TOPIC_DEFAULT: &str = "identity";
const DOOR_DEFAULT: &str = "gateway";
const ALARM_AFTER_DEFAULT: Duration = Duration::from_secs(60);
const LIFE_DEFAULT: Duration = Duration::from_secs(15 * 60);
/// How much longer than a token lives a block is kept, for clocks that differ and events that are late.
const KEPT_LONGER: Duration = Duration::from_secs(60);

/// Where a token is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Way {
    /// In the service, by the issuer's keys. As axum's `Extension(Way::Local)` over routes it is for these alone.
    Local,
    /// At the issuer, for each request.
    Central,
    /// At the gateway, which vouches for the user by an internal token; nothing else is taken.
    Gateway,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Local => "local",
            Self::Central => "central",
            Self::Gateway => "gateway",
        })
    }
}

impl FromStr for Way {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "local" => Ok(Self::Local),
            "central" => Ok(Self::Central),
            "gateway" => Ok(Self::Gateway),
            _ => Err(Error::new(
                Kind::Settings,
                format!("{WAY} is {text:?}; expected \"local\", \"central\" or \"gateway\""),
            )),
        }
    }
}

/// Who issues the tokens.
#[derive(Debug, Clone)]
pub(crate) struct Issuer {
    pub(crate) name: String,
    pub(crate) keys_at: Option<String>,
    pub(crate) introspect_at: Option<String>,
}

/// How a service finds out who is asking.
#[derive(Debug, Clone)]
pub struct Auth {
    way: Way,
    issuer: Issuer,
    audience: String,
    algorithms: Vec<Algorithm>,
    client: Option<(String, Secret)>,
    blocks: Option<(String, String)>,
    life: Duration,
    central_after: Option<Duration>,
    central_cache: Option<Duration>,
    alarm_after: Duration,
    doors: Vec<String>,
    mutation: Mutation,
}

impl Auth {
    fn new(way: Way, issuer: &str) -> Self {
        Self {
            way,
            issuer: Issuer { name: issuer.to_owned(), keys_at: None, introspect_at: None },
            audience: AUDIENCE_DEFAULT.to_owned(),
            algorithms: vec![Algorithm::ES256, Algorithm::EdDSA],
            client: None,
            blocks: Some((TOPIC_DEFAULT.to_owned(), TOPIC_DEFAULT.to_owned())),
            life: LIFE_DEFAULT,
            central_after: None,
            central_cache: None,
            alarm_after: ALARM_AFTER_DEFAULT,
            doors: vec![DOOR_DEFAULT.to_owned()],
            mutation: Mutation::default(),
        }
    }

    /// Tokens of `issuer` are verified in the service, by its published keys and the blocks in the topic `identity`.
    #[must_use]
    pub fn local(issuer: &str) -> Self {
        Self::new(Way::Local, issuer)
    }

    /// `issuer` is asked for each request (RFC 7662), as `client` with its secret.
    #[must_use]
    pub fn central(issuer: &str, client: &str, secret: &str) -> Self {
        Self::new(Way::Central, issuer).client(client, secret)
    }

    /// The service `gateway` checks tokens, and vouches for users by internal ones. Blocks are heard here all the same.
    #[must_use]
    pub fn gateway() -> Self {
        Self::new(Way::Gateway, "")
    }

    /// Which services vouch for users under [`Way::Gateway`]; `gateway` unless said.
    #[must_use]
    pub fn doors(mut self, services: &[&str]) -> Self {
        self.doors = services.iter().map(|service| (*service).to_owned()).collect();
        self
    }

    /// With these the issuer can be asked: for routes with `Extension(Way::Central)`, and while the bus is away.
    #[must_use]
    pub fn client(mut self, client: &str, secret: &str) -> Self {
        self.client = Some((client.to_owned(), Secret(secret.to_owned())));
        self
    }

    /// Whom tokens have to be for; `tombolo` unless said.
    #[must_use]
    pub fn audience(mut self, audience: &str) -> Self {
        audience.clone_into(&mut self.audience);
        self
    }

    /// The topic that says who was blocked, and what its types begin with; `identity` for both unless said.
    #[must_use]
    pub fn blocks_in(mut self, topic: &str, types: &str) -> Self {
        self.blocks = Some((topic.to_owned(), types.to_owned()));
        self
    }

    /// For an issuer that publishes no events: with local checks a block takes as long as a token lives.
    #[must_use]
    pub fn without_blocks(mut self) -> Self {
        self.blocks = None;
        self
    }

    /// How long the issuer's tokens live at most, which is how long blocks are kept; 15 minutes unless said.
    #[must_use]
    pub fn token_life(mut self, life: Duration) -> Self {
        self.life = life;
        self
    }

    /// How tokens may be signed; ES256 and `EdDSA` unless said.
    #[must_use]
    pub fn algorithms(mut self, algorithms: &[Algorithm]) -> Self {
        self.algorithms = algorithms.to_vec();
        self
    }

    /// Local checks ask the issuer instead once the bus has been away for so long. Needs [`Auth::client`].
    #[must_use]
    pub fn central_after(mut self, away: Duration) -> Self {
        self.central_after = Some(away);
        self
    }

    /// Remembers for so long what the issuer said of a token that it lets in, so that it is not asked for each request; a block then
    /// takes as long. Nothing is remembered unless this is said.
    #[must_use]
    pub fn central_cache(mut self, kept: Duration) -> Self {
        self.central_cache = Some(kept).filter(|kept| !kept.is_zero());
        self
    }

    /// `GET /health` says that nothing is heard of blocks once the bus has been away for so long; a minute unless said.
    #[must_use]
    pub fn alarm_after(mut self, away: Duration) -> Self {
        self.alarm_after = away;
        self
    }

    /// Where the issuer's keys are, instead of where its discovery document says.
    #[must_use]
    pub fn keys_at(mut self, address: &str) -> Self {
        self.issuer.keys_at = Some(address.to_owned());
        self
    }

    /// Where the issuer is asked, instead of `/introspect` under its name.
    #[must_use]
    pub fn introspect_at(mut self, address: &str) -> Self {
        self.issuer.introspect_at = Some(address.to_owned());
        self
    }

    /// The same checks with a fault.
    #[cfg(feature = "mutants")]
    #[must_use]
    pub fn with_mutant(mut self, mutant: super::mutant::Mutant) -> Self {
        self.mutation = Mutation(Some(mutant));
        self
    }

    /// What the environment says: `TOMBOLO_AUTH_ISSUER` at least, but for `TOMBOLO_AUTH=gateway`; `TOMBOLO_AUTH` is `local` unless
    /// it says `central` or `gateway`.
    ///
    /// # Errors
    /// `Settings` for what is missing or cannot be meant.
    pub fn from_env() -> Result<Self> {
        Self::local("").with_env()
    }

    /// The same, but for what the environment says.
    ///
    /// # Errors
    /// As [`Auth::from_env`].
    pub fn with_env(self) -> Result<Self> {
        self.with_variables(&env::vars().filter(|(name, _)| name.starts_with(WAY)).collect())
    }

    fn with_variables(self, variables: &BTreeMap<String, String>) -> Result<Self> {
        let mut auth = self.reached_by(variables)?;
        let value = |name: &str| given(variables, name);
        if let Some(doors) = value(DOORS) {
            auth = auth.doors(&doors.split(',').map(str::trim).collect::<Vec<_>>());
        }
        if let Some(audience) = value(AUDIENCE) {
            auth = auth.audience(audience);
        }
        match value(TOPIC) {
            Some("none") => auth = auth.without_blocks(),
            Some(topic) => auth = auth.blocks_in(topic, value(TYPES).unwrap_or(topic)),
            None => {}
        }
        if let Some(life) = seconds(LIFE, value(LIFE))? {
            auth = auth.token_life(life);
        }
        if let Some(after) = seconds(CENTRAL_AFTER, value(CENTRAL_AFTER))? {
            auth = auth.central_after(after);
        }
        if let Some(kept) = seconds(CENTRAL_CACHE, value(CENTRAL_CACHE))? {
            auth = auth.central_cache(kept);
        }
        if let Some(away) = seconds(ALARM_AFTER, value(ALARM_AFTER))? {
            auth = auth.alarm_after(away);
        }
        Ok(auth)
    }

    /// Which way, which issuer, and as whom that is asked.
    fn reached_by(mut self, variables: &BTreeMap<String, String>) -> Result<Self> {
        if let Some(way) = given(variables, WAY) {
            self.way = way.parse()?;
        }
        if let Some(issuer) = given(variables, ISSUER) {
            issuer.clone_into(&mut self.issuer.name);
        }
        if self.issuer.name.is_empty() && self.way != Way::Gateway {
            let message = format!(
                "{ISSUER} is not set; expected the address of the identity service or of another issuer"
            );
            return Err(Error::new(Kind::Settings, message));
        }
        if let (Some(client), Some(secret)) = (given(variables, CLIENT), given(variables, SECRET)) {
            self = self.client(client, secret);
        }
        Ok(self)
    }

    fn expected(&self) -> Expected {
        Expected {
            issuer: self.issuer.name.clone(),
            audience: self.audience.clone(),
            algorithms: self.algorithms.clone(),
        }
    }

    /// Makes the checks, and what has to run beside them.
    pub(crate) fn open(self, clock: &Clock) -> Result<Opened> {
        let hears = self.way != Way::Central;
        self.open_with(clock, hears)
    }

    /// The same for a program whose routes may each have another way.
    pub(crate) fn open_everywhere(self, clock: &Clock) -> Result<Opened> {
        self.open_with(clock, true)
    }

    fn open_with(self, clock: &Clock, hears: bool) -> Result<Opened> {
        let http = keys::client()?;
        let central = self.asks_issuer(&http, clock)?;
        let feed = if hears { self.feed(clock)? } else { None };
        let heard = feed.as_ref().map(|feed| Arc::clone(&feed.heard));
        let local = self.verifies(http, central.clone(), heard.clone(), clock);
        let checks = Checks {
            way: self.way,
            local,
            central,
            heard,
            doors: self.doors.into(),
            alarm_after: self.alarm_after,
        };
        Ok(Opened { checks, feed, mutation: self.mutation })
    }

    fn verifies(
        &self,
        http: reqwest::Client,
        central: Option<Arc<dyn Check>>,
        heard: Option<Arc<Heard>>,
        clock: &Clock,
    ) -> Option<Arc<dyn Check>> {
        if self.issuer.name.is_empty() {
            return None;
        }
        let fallback = self.central_after.zip(central);
        let (issuer, algorithms) = (self.issuer.clone(), self.algorithms.clone());
        Some(Arc::new(Local {
            expected: self.expected(),
            keys: Keys::new(issuer, algorithms, http, clock.clone(), self.mutation),
            heard,
            fallback: fallback.map(|(after, check)| Fallback { after, check }),
            remembered: Remembered::default(),
            clock: clock.clone(),
        }))
    }

    fn asks_issuer(&self, http: &reqwest::Client, clock: &Clock) -> Result<Option<Arc<dyn Check>>> {
        match &self.client {
            Some(client) if !self.issuer.name.is_empty() => {
                let central =
                    Central::new(&self.issuer, client, self.expected(), http.clone(), clock.clone());
                Ok(Some(Arc::new(central.remembering(self.central_cache))))
            }
            _ if self.way == Way::Central || self.central_after.is_some() => {
                let message = format!(
                    "central checks need an issuer, a client of it and its secret; set {ISSUER}, {CLIENT} and {SECRET}"
                );
                Err(Error::new(Kind::Settings, message))
            }
            _ => Ok(None),
        }
    }

    /// What reads the blocks, which central checks alone do not need.
    fn feed(&self, clock: &Clock) -> Result<Option<Feed>> {
        let Some((topic, types)) = self.blocks.clone() else { return Ok(None) };
        let kept = self.life + LEEWAY + KEPT_LONGER;
        Ok(Some(Feed {
            topic: ServiceName::new(topic)?,
            types,
            kept,
            heard: Arc::new(Heard::new(self.mutation)),
            clock: clock.clone(),
        }))
    }
}

/// What a variable says; one that is empty says nothing.
fn given<'v>(variables: &'v BTreeMap<String, String>, name: &str) -> Option<&'v str> {
    variables.get(name).map(String::as_str).filter(|value| !value.is_empty())
}

fn seconds(name: &str, value: Option<&str>) -> Result<Option<Duration>> {
    let Some(value) = value else { return Ok(None) };
    match value.parse() {
        Ok(seconds) => Ok(Some(Duration::from_secs(seconds))),
        Err(_) => {
            Err(Error::new(Kind::Settings, format!("{name} is {value:?}; expected a number of seconds")))
        }
    }
}

/// Checks that are ready to be asked, and what has to run beside them.
pub(crate) struct Opened {
    pub(crate) checks: Checks,
    pub(crate) feed: Option<Feed>,
    pub(crate) mutation: Mutation,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Auth> {
        let owned = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Auth::local("").with_variables(&owned.collect())
    }

    #[test]
    fn one_variable_changes_the_way() {
        let issuer = (ISSUER, "http://identity");
        assert_eq!(read(&[issuer]).unwrap().way, Way::Local);
        let central = [issuer, (WAY, "central"), (CLIENT, "orders"), (SECRET, "s")];
        assert_eq!(read(&central).unwrap().way, Way::Central);
        assert!(read(&central).unwrap().open(&Clock::default()).is_ok());
    }

    #[test]
    fn what_cannot_be_meant_is_named() {
        for (variables, named) in [
            (vec![], ISSUER),
            (vec![(ISSUER, "http://i"), (WAY, "cental")], "\"cental\""),
            (vec![(ISSUER, "http://i"), (LIFE, "ten")], LIFE),
        ] {
            let error = read(&variables).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
        let no_client = read(&[(ISSUER, "http://i"), (WAY, "central")]).unwrap();
        assert!(no_client.open(&Clock::default()).map(drop).unwrap_err().to_string().contains(CLIENT));
    }

    #[test]
    fn a_secret_is_not_in_the_debug_form() {
        let shown = format!("{:?}", Auth::central("http://i", "orders", "hush-hush"));
        assert!(shown.contains("orders") && !shown.contains("hush"), "{shown}");
    }
}
