//! Problem documents (RFC 9457): how a route says what went wrong.
//!
//! Source: <https://www.rfc-editor.org/rfc/rfc9457>.

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde::{Deserialize, Serialize};

use crate::{Error, Kind};

/// An error of a route: a status and a sentence. Database errors and Tombolo's own become one through `?`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The HTTP status.
    pub status: StatusCode,
    /// What was found, what was expected, what to do.
    pub detail: String,
}

#[derive(Serialize, Deserialize)]
struct Document {
    title: String,
    status: u16,
    detail: String,
}

impl Problem {
    /// A problem with its status and what to say.
    pub fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self { status, detail: detail.into() }
    }

    /// The detail in a document that another service answered with, or the text as it is.
    pub(crate) fn detail_of(body: &str) -> String {
        serde_json::from_str::<Document>(body)
            .map_or_else(|_| body.trim().to_owned(), |document| document.detail)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let title = self.status.canonical_reason().unwrap_or("Error").to_owned();
        let document = Document { title, status: self.status.as_u16(), detail: self.detail };
        let mut response = (self.status, Json(document)).into_response();
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        response
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let status = match error.kind() {
            Kind::Token => StatusCode::BAD_REQUEST,
            Kind::DatabaseAway | Kind::BusAway | Kind::Unreachable | Kind::Unknown => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Kind::Undecided => StatusCode::CONFLICT,
            Kind::Deadline => StatusCode::GATEWAY_TIMEOUT,
            Kind::Loop => StatusCode::LOOP_DETECTED,
            Kind::Failed => StatusCode::BAD_GATEWAY,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, error.to_string())
    }
}

impl From<tombolo_db::Error> for Problem {
    fn from(error: tombolo_db::Error) -> Self {
        Error::from(error).into()
    }
}

impl From<sqlx::Error> for Problem {
    fn from(error: sqlx::Error) -> Self {
        Error::from(error).into()
    }
}

impl From<Problem> for Response {
    fn from(problem: Problem) -> Self {
        problem.into_response()
    }
}
