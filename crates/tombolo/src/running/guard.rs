//! A service's routes behind the checks of who is asking, if there are any, and what it calls others with.
//!
//! Invariant: what a check has to know before it lets anybody in is read by a task of the service, which is ready once it is loaded.

use axum::Router;
use tokio::sync::watch;
use tombolo_db::Database;
#[cfg(feature = "auth")]
use {
    crate::auth::{Checks, InDatabase, Internal, Opened, Propagation, Signer},
    axum::Extension,
    std::sync::Arc,
};

use super::Starting;
use crate::life::Tasks;
use crate::{App, Error, Kind, Result, Service};
#[cfg(feature = "auth")]
use crate::{Clock, directory::Directory};
use tombolo_event::descriptor::Descriptor;

/// What the service is guarded by, before it is known who else there is.
pub(super) struct Prepared {
    #[cfg(feature = "auth")]
    opened: Option<Opened>,
    #[cfg(feature = "auth")]
    signer: Arc<Signer>,
}

#[cfg(feature = "auth")]
impl Prepared {
    pub(super) fn new<D: Database>(service: &mut Service<D>, descriptor: &Descriptor) -> Result<Self> {
        let opened = service.auth.take().map(|auth| auth.open(&service.clock)).transpose()?;
        let signer = Arc::new(Signer::new(descriptor.service.as_str())?);
        Ok(Self { opened, signer })
    }

    /// What is registered of this replica.
    pub(super) fn described(&self, descriptor: &Descriptor) -> Result<String> {
        let checks = self.opened.as_ref().map(|opened| opened.checks.way().to_string());
        described(descriptor, &[self.signer.jwk()], checks)
    }

    /// What calls are signed with, and verified.
    pub(super) fn internal(&self, directory: &Arc<Directory>, clock: &Clock) -> Arc<Internal> {
        let mutation = self.opened.as_ref().map(|opened| opened.mutation).unwrap_or_default();
        let (signer, directory) = (Arc::clone(&self.signer), Arc::clone(directory));
        Arc::new(Internal::new(signer, directory, clock.clone(), mutation))
    }
}

#[cfg(not(feature = "auth"))]
impl Prepared {
    pub(super) fn new<D: Database>(_service: &mut Service<D>, _descriptor: &Descriptor) -> Result<Self> {
        Ok(Self {})
    }

    #[expect(clippy::unused_self, reason = "the same call as with the feature")]
    pub(super) fn described(&self, descriptor: &Descriptor) -> Result<String> {
        described::<()>(descriptor, &[], None)
    }
}

fn described<K: serde::Serialize>(
    descriptor: &Descriptor,
    keys: &[K],
    checks: Option<String>,
) -> Result<String> {
    crate::directory::described(descriptor, keys, checks)
        .map_err(|error| Error::new(Kind::Wiring, error.to_string()))
}

/// What stands before the routes.
pub(super) struct Guard {
    #[cfg(feature = "auth")]
    checks: Option<Checks>,
    #[cfg(feature = "auth")]
    internal: Arc<Internal>,
    /// Whether what the checks need is loaded.
    pub(super) loaded: Option<watch::Receiver<bool>>,
}

impl Guard {
    /// The routes behind it.
    #[cfg(feature = "auth")]
    pub(super) fn over(self, routes: Router) -> Router {
        let routes = routes.layer(Extension(self.internal));
        match self.checks {
            Some(checks) => checks.over(routes),
            None => routes,
        }
    }

    #[cfg(not(feature = "auth"))]
    #[expect(clippy::unused_self, reason = "the same call as with the feature")]
    pub(super) fn over(self, routes: Router) -> Router {
        routes
    }
}

impl Starting {
    #[cfg(feature = "auth")]
    pub(super) fn guard<D: Database>(&self, prepared: Prepared, app: &App<D>, tasks: &mut Tasks) -> Guard {
        let Some(Opened { checks, feed, .. }) = prepared.opened else {
            return Guard { checks: None, internal: Arc::clone(&self.internal), loaded: None };
        };
        let propagation = Propagation {
            bus: Arc::clone(&self.bus),
            service: app.service().to_string(),
            replica: self.replica,
            way: checks.way(),
            heard: feed.as_ref().map(|feed| (feed.topic.clone(), Arc::clone(&feed.heard))),
        };
        tasks.spawn(propagation.run(self.stop.clone()));
        let loaded = feed.map(|feed| {
            let loaded = feed.heard.is_loaded();
            let (trail, changes) = (Box::new(InDatabase::new(app.clone())), self.directory.changes());
            tasks.spawn(feed.reading(trail, Arc::clone(&self.bus), changes).run(self.stop.clone()));
            loaded
        });
        Guard { checks: Some(checks), internal: Arc::clone(&self.internal), loaded }
    }

    #[cfg(not(feature = "auth"))]
    #[expect(clippy::unused_self, reason = "the same call as with the feature")]
    pub(super) fn guard<D: Database>(&self, _prepared: Prepared, _app: &App<D>, _tasks: &mut Tasks) -> Guard {
        Guard { loaded: None }
    }
}
