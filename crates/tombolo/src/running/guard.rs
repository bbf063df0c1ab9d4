//! The user's routes behind the checks of who is asking, if there are any.
//!
//! Invariant: what a check has to know before it lets anybody in is read by a task of the service, which is ready once it is loaded.

use axum::Router;
#[cfg(feature = "auth")]
use std::sync::Arc;
use tokio::sync::watch;
use tombolo_db::Database;

use super::{Prepared, Starting};
use crate::App;
use crate::life::Tasks;

/// The routes, and whether what their checks need is loaded.
pub(super) type Guarded<D> = (Router<App<D>>, Option<watch::Receiver<bool>>);

impl Starting {
    #[cfg(feature = "auth")]
    pub(super) fn guard<D: Database>(
        &self,
        prepared: &mut Prepared<D>,
        app: &App<D>,
        routes: Router<App<D>>,
        tasks: &mut Tasks,
    ) -> Guarded<D> {
        let Some(opened) = prepared.auth.take() else { return (routes, None) };
        let loaded = opened.feed.map(|feed| {
            let loaded = feed.heard.is_loaded();
            let reading = feed.reading(app.clone(), Arc::clone(&self.bus), self.directory.changes());
            tasks.spawn(reading.run(self.stop.clone()));
            loaded
        });
        (opened.checks.over(routes), loaded)
    }

    #[cfg(not(feature = "auth"))]
    #[expect(clippy::unused_self, reason = "the same call as with the feature")]
    pub(super) fn guard<D: Database>(
        &self,
        _prepared: &mut Prepared<D>,
        _app: &App<D>,
        routes: Router<App<D>>,
        _tasks: &mut Tasks,
    ) -> Guarded<D> {
        (routes, None)
    }
}
