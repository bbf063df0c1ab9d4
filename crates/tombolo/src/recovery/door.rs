//! Where operators look and decide: `GET` and `POST /tombolo/recovery`.
//!
//! Invariant: behind the operators' door only.

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use tombolo_db::Database;

use super::{Decide, Decided, RecoveryReport};
use crate::App;
use crate::problem::Problem;

/// The routes, for the door that lets operators in.
pub(crate) fn routes<D: Database>() -> Router<App<D>> {
    Router::new().route("/tombolo/recovery", get(look::<D>).post(decide::<D>))
}

async fn look<D: Database>(State(app): State<App<D>>) -> Result<Json<RecoveryReport>, Problem> {
    Ok(Json(app.recovery().report().await?))
}

async fn decide<D: Database>(
    State(app): State<App<D>>,
    Json(decide): Json<Decide>,
) -> Result<Json<Decided>, Problem> {
    Ok(Json(app.recovery().decide(decide).await?))
}
