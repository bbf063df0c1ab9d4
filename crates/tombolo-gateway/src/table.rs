//! The configuration in force: each route with its replicas, limits and counts.
//!
//! Invariant: a table never changes; a new configuration is a new table, and a request keeps the one that it began with. What did
//! not change is the same object in both: connections, health and counts live on.

use std::collections::HashMap;
use std::sync::Arc;

use http::{HeaderValue, Method};
use tower_http::cors::{AllowHeaders, AllowMethods, AllowOrigin, CorsLayer};

use crate::config::{Cors, Route, Settings, Source, Target};
use crate::limits::Rates;
use crate::metrics::{Counts, Metrics};
use crate::routes::{Found, Routes};
use crate::upstream::{Ground, Group, Upstream};

/// The replicas of services that others know.
pub(crate) type Known = HashMap<String, Vec<Target>>;

/// A route, ready for requests.
pub(crate) struct Lane {
    pub(crate) route: Route,
    pub(crate) name: Arc<str>,
    pub(crate) upstream: Arc<Upstream>,
    pub(crate) rates: Arc<Rates>,
    pub(crate) cors: Option<CorsLayer>,
    pub(crate) counts: Counts,
}

/// All routes.
pub(crate) struct Table {
    pub(crate) settings: Settings,
    routes: Routes,
    pub(crate) lanes: Vec<Arc<Lane>>,
}

impl Table {
    pub(crate) fn new(
        settings: Settings,
        before: Option<&Table>,
        ground: &Ground,
        metrics: &Metrics,
        known: &Known,
    ) -> Self {
        let mut upstreams: Vec<Arc<Upstream>> = before.map(Self::upstreams).unwrap_or_default();
        let lane = |route: &Route| {
            let earlier =
                before.and_then(|table| table.lanes.iter().find(|lane| lane.route.name == route.name));
            let rates = earlier.filter(|lane| lane.route.rates == route.rates).map(|lane| lane.rates.clone());
            let group = Group::of(route);
            let upstream = upstreams.iter().find(|upstream| upstream.group == group).cloned();
            let upstream = upstream.unwrap_or_else(|| {
                let upstream = Upstream::start(group, ground);
                if let Source::Service(name) = &route.source {
                    upstream.set(known.get(name).cloned().unwrap_or_default());
                }
                upstreams.push(upstream.clone());
                upstream
            });
            Arc::new(Lane {
                name: route.name.as_str().into(),
                upstream,
                rates: rates.unwrap_or_else(|| Arc::new(Rates::new(&route.rates))),
                cors: route.cors.as_ref().map(|cors| layer(cors, route)),
                counts: metrics.of_route(&route.name),
                route: route.clone(),
            })
        };
        let lanes = settings.routes.iter().map(lane).collect();
        Self { routes: Routes::new(&settings.routes), lanes, settings }
    }

    /// The route of a request.
    pub(crate) fn find(&self, host: &str, path: &str, method: &Method) -> Result<&Arc<Lane>, Vec<Method>> {
        match self.routes.find(host, path, method) {
            Found::Route(number) => Ok(&self.lanes[number]),
            Found::OtherMethods(methods) => Err(methods),
            Found::Nothing => Err(Vec::new()),
        }
    }

    /// Every group of replicas, once.
    pub(crate) fn upstreams(&self) -> Vec<Arc<Upstream>> {
        let mut all: Vec<Arc<Upstream>> = Vec::new();
        for lane in &self.lanes {
            if !all.iter().any(|upstream| Arc::ptr_eq(upstream, &lane.upstream)) {
                all.push(lane.upstream.clone());
            }
        }
        all
    }

    /// Ends what only this table needs, once `next` is in force.
    pub(crate) fn retire(&self, next: &Table) {
        let kept = next.upstreams();
        for upstream in self.upstreams() {
            if !kept.iter().any(|it| Arc::ptr_eq(it, &upstream)) {
                upstream.end();
            }
        }
    }
}

pub(crate) fn layer(cors: &Cors, route: &Route) -> CorsLayer {
    let any = cors.origins.iter().any(|origin| origin == "*");
    let origins = if any { AllowOrigin::any() } else { AllowOrigin::list(cors.origins.iter().cloned()) };
    // Whoever may send credentials may not be told `*`: what was asked for is mirrored instead.
    let methods = match route.methods.is_empty() {
        true => AllowMethods::mirror_request(),
        false => AllowMethods::list(route.methods.iter().cloned()),
    };
    let headers = match cors.headers.is_empty() {
        true => AllowHeaders::mirror_request(),
        false => AllowHeaders::list(cors.headers.iter().cloned()),
    };
    CorsLayer::new()
        .allow_origin(origins)
        .allow_methods(methods)
        .allow_headers(headers)
        .allow_credentials(cors.credentials)
        .expose_headers(cors.expose.clone())
        .max_age(cors.max_age)
}

/// What `Allow` says.
pub(crate) fn allow(methods: &[Method]) -> HeaderValue {
    let names: Vec<_> = methods.iter().map(Method::as_str).collect();
    HeaderValue::from_str(&names.join(", ")).unwrap_or(HeaderValue::from_static(""))
}
