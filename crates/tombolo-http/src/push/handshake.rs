//! The abuse-protection handshake of CloudEvents webhooks: a target says that it wants to be sent to before it is.
//!
//! Invariant: a target that is not the operator's own gets no delivery before it has allowed this origin.
//!
//! Source: <https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/http-webhook.md#4-abuse-protection>.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use tokio::time::Instant;

use super::event::{Writing, empty};
use super::lane::Lane;

const REQUEST_ORIGIN: HeaderName = HeaderName::from_static("webhook-request-origin");
const ALLOWED_ORIGIN: HeaderName = HeaderName::from_static("webhook-allowed-origin");
const ALLOWED_RATE: HeaderName = HeaderName::from_static("webhook-allowed-rate");

/// Whether a target may be sent to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Permission {
    /// It was asked for, or does not need to be.
    Given {
        /// The least time between two deliveries.
        pace: Option<Duration>,
        /// When the next one may start.
        next: Option<Instant>,
    },
    /// It has to be asked for.
    Missing { origin: String, is_asked: bool },
}

impl Permission {
    /// What is needed for `origin`, when this one was allowed before, as [`Permission::kept`] wrote it.
    pub(crate) fn needed(origin: Option<String>, allowed: Option<&str>) -> Self {
        let Some(origin) = origin else { return Self::Given { pace: None, next: None } };
        let before = allowed.and_then(|it| it.rsplit_once(' '));
        match before {
            Some((before, pace_ms)) if before == origin => {
                let pace = pace_ms.parse().ok().filter(|it| *it > 0).map(Duration::from_millis);
                Self::Given { pace, next: None }
            }
            _ => Self::Missing { origin, is_asked: false },
        }
    }

    /// What is kept of a permission: the origin and the pace.
    pub(crate) fn kept(&self, origin: &str) -> String {
        match self {
            Self::Given { pace, .. } => format!("{origin} {}", pace.unwrap_or_default().as_millis()),
            Self::Missing { .. } => String::new(),
        }
    }

    /// Whether the target has not allowed anything yet.
    pub(crate) fn is_asked_for(&self) -> bool {
        matches!(self, Self::Missing { .. })
    }

    pub(crate) fn is_missing(&self) -> bool {
        matches!(self, Self::Missing { is_asked: false, .. })
    }

    /// Whether the next delivery has to wait.
    pub(crate) fn is_paced(&self) -> bool {
        matches!(self, Self::Given { next: Some(_), .. } | Self::Missing { is_asked: true, .. })
    }

    /// It is being asked for; gives the origin.
    pub(crate) fn asking(&mut self) -> String {
        match self {
            Self::Missing { is_asked, .. } => *is_asked = true,
            Self::Given { .. } => {}
        }
        self.origin()
    }

    /// The origin that is asked for.
    pub(crate) fn origin(&self) -> String {
        match self {
            Self::Missing { origin, .. } => origin.clone(),
            Self::Given { .. } => String::new(),
        }
    }

    /// It was not given; it is asked for again.
    pub(crate) fn refused(&mut self) {
        if let Self::Missing { is_asked, .. } = self {
            *is_asked = false;
        }
    }

    /// A delivery starts now.
    pub(crate) fn started(&mut self) {
        if let Self::Given { pace: Some(pace), next } = self {
            *next = Some(Instant::now() + *pace);
        }
    }

    pub(crate) fn wakes_at(&self) -> Option<Instant> {
        match self {
            Self::Given { next, .. } => *next,
            Self::Missing { .. } => None,
        }
    }

    pub(crate) fn wake(&mut self, now: Instant) {
        if let Self::Given { next, .. } = self {
            *next = next.filter(|at| *at > now);
        }
    }
}

/// Asks a target whether `origin` may send to it.
pub(crate) async fn ask(
    lane: &mut Lane,
    writing: &Writing,
    origin: &str,
    patience: Duration,
) -> Result<Permission, String> {
    let mut request = empty(writing, Method::OPTIONS);
    let value = HeaderValue::from_str(origin).map_err(|error| error.to_string())?;
    request.headers_mut().insert(REQUEST_ORIGIN, value);
    let (status, headers) = lane.ask(request, patience).await?;
    if !status.is_success() {
        return Err(format!("the target answered {status} to the handshake (OPTIONS, {REQUEST_ORIGIN})"));
    }
    allowed(origin, &headers)
}

/// What the answer to the handshake allows.
fn allowed(origin: &str, headers: &HeaderMap) -> Result<Permission, String> {
    let text = |name: &HeaderName| headers.get(name).and_then(|it| it.to_str().ok()).map(str::trim);
    match text(&ALLOWED_ORIGIN) {
        Some(allowed) if allowed == "*" || allowed.eq_ignore_ascii_case(origin) => {}
        found => {
            let found = found.unwrap_or("none");
            return Err(format!(
                "the target's answer to the handshake has the {ALLOWED_ORIGIN} {found}; expected {origin} or *"
            ));
        }
    }
    // Per minute; an asterisk is no limit.
    let rate = text(&ALLOWED_RATE).and_then(|it| it.parse::<u32>().ok()).filter(|rate| *rate > 0);
    Ok(Permission::Given { pace: rate.map(|rate| Duration::from_secs(60) / rate), next: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(headers: &[(&'static str, &'static str)]) -> Result<Permission, String> {
        let headers = headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
        allowed("bus.example", &headers.collect())
    }

    #[test]
    fn only_an_answer_that_names_the_origin_or_all_allows() {
        assert!(answered(&[]).is_err());
        assert!(answered(&[("webhook-allowed-origin", "other.example")]).is_err());
        assert!(answered(&[("webhook-allowed-origin", "BUS.example")]).is_ok());
        assert!(answered(&[("webhook-allowed-origin", "*")]).is_ok());
    }

    #[test]
    fn a_rate_paces_deliveries_also_after_a_restart() {
        let given = answered(&[("webhook-allowed-origin", "*"), ("webhook-allowed-rate", "120")]).unwrap();
        let kept = given.kept("bus.example");
        let again = Permission::needed(Some("bus.example".into()), Some(&kept));
        assert_eq!(again, Permission::Given { pace: Some(Duration::from_millis(500)), next: None });
        assert!(Permission::needed(Some("other.example".into()), Some(&kept)).is_missing());
    }
}
