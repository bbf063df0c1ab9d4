//! Comparing two builds of a view, for operators.
//!
//! Invariant: nothing is changed by it, and what is compared is one moment of both.

use axum::Json;
use axum::extract::{Path, Query, State};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use tombolo_db::{Compared, Database, Sample, ViewState};

use super::Builds;
use super::switching::{lacks, named};
use crate::problem::Problem;
use crate::{App, Result};

/// How many rows of each table are shown unless another number is asked for.
const ROWS_SHOWN: usize = 20;

/// Which builds, and which of their differences.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Asked {
    old: Option<String>,
    new: Option<String>,
    rows: Option<usize>,
    seed: Option<u64>,
}

/// Two builds of a view beside each other.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Comparison {
    /// The view.
    pub view: String,
    /// The old build: the live one, unless another was asked for.
    pub old: String,
    /// The new build: the newest other one, unless another was asked for.
    pub new: String,
    /// How many events of the old one the new one lacked when they were compared; none if it had not begun.
    pub new_lacks_events: Option<u64>,
    /// How many events of the new one the old one lacked.
    pub old_lacks_events: Option<u64>,
    /// Their tables.
    pub tables: Vec<Compared>,
}

/// `GET /tombolo/views/{view}/compare`.
pub(crate) async fn compare<D: Database>(
    State(app): State<App<D>>,
    Path(view): Path<String>,
    Query(asked): Query<Asked>,
) -> std::result::Result<Json<Comparison>, Problem> {
    let builds = app.builds();
    let views = builds.refresh().await?;
    let not_found = |why: String| Problem::new(StatusCode::NOT_FOUND, why);
    let state = views.iter().find(|state| state.view == view).ok_or_else(|| {
        let names: Vec<&str> = builds.names().collect();
        not_found(format!("service {} has no view {view:?}; it has: {}", app.service(), names.join(", ")))
    })?;
    let [old, new] = chosen(state, &asked).map_err(not_found)?;
    let sample = Sample { rows: asked.rows.unwrap_or(ROWS_SHOWN), seed: asked.seed.unwrap_or_default() };
    Ok(Json(builds.compare(state, [old, new], sample).await?))
}

/// The builds that are meant: the live one and the newest other one, unless they are named.
fn chosen<'s>(
    state: &'s ViewState,
    asked: &Asked,
) -> std::result::Result<[&'s tombolo_db::Build; 2], String> {
    let old = asked.old.as_deref().map_or(Ok(state.live), |name| named(state, name))?;
    let new = match asked.new.as_deref() {
        Some(name) => named(state, name)?,
        None => {
            let others = state.builds.iter().filter(|build| build.id != old);
            let newest = others.max_by_key(|build| build.made_at);
            newest.map(|build| build.id).ok_or_else(|| {
                format!(
                    "view {0:?} has no build but {old}; make one with `tombolo views rebuild {0}`",
                    state.view
                )
            })?
        }
    };
    let build = |id| state.build(id).ok_or_else(|| format!("build {id} was dropped just now"));
    Ok([build(old)?, build(new)?])
}

impl<D: Database> Builds<D> {
    async fn compare(
        &self,
        state: &ViewState,
        [old, new]: [&tombolo_db::Build; 2],
        sample: Sample,
    ) -> Result<Comparison> {
        let cursors = self.database.cursors().await?;
        Ok(Comparison {
            view: state.view.clone(),
            old: old.id.to_string(),
            new: new.id.to_string(),
            new_lacks_events: lacks(&cursors, new, old),
            old_lacks_events: lacks(&cursors, old, new),
            tables: self.database.compare(old, new, sample).await?,
        })
    }
}
