//! Problem documents (RFC 9457): how a route says what went wrong.
//!
//! A problem has a `type` by which programs tell it from others; one that says none is what its status says.
//!
//! Source: <https://www.rfc-editor.org/rfc/rfc9457>.

use std::borrow::Cow;

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde::{Deserialize, Serialize};

use crate::{Error, Kind};

/// What RFC 9457 calls a problem that is no more than its status.
const BLANK: &str = "about:blank";

/// An error of a route: a status and a sentence. Database errors and Tombolo's own become one through `?`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The HTTP status.
    pub status: StatusCode,
    /// What was found, what was expected, what to do.
    pub detail: String,
    /// What kind of problem it is, as a stable URI.
    pub type_uri: Cow<'static, str>,
}

#[derive(Serialize, Deserialize)]
struct Document {
    #[serde(rename = "type", default = "blank", skip_serializing_if = "is_blank")]
    type_uri: Cow<'static, str>,
    title: String,
    status: u16,
    detail: String,
}

impl Problem {
    /// A problem with its status and what to say.
    pub fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self { status, detail: detail.into(), type_uri: blank() }
    }

    /// The same, of a kind that programs can tell from others.
    #[must_use]
    pub fn of_type(mut self, type_uri: impl Into<Cow<'static, str>>) -> Self {
        self.type_uri = type_uri.into();
        self
    }

    /// The detail in a document that another service answered with, or the text as it is.
    pub(crate) fn detail_of(body: &str) -> String {
        serde_json::from_str::<Document>(body)
            .map_or_else(|_| body.trim().to_owned(), |document| document.detail)
    }
}

fn blank() -> Cow<'static, str> {
    Cow::Borrowed(BLANK)
}

fn is_blank(type_uri: &str) -> bool {
    type_uri == BLANK
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let title = self.status.canonical_reason().unwrap_or("Error").to_owned();
        let document =
            Document { type_uri: self.type_uri, title, status: self.status.as_u16(), detail: self.detail };
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

#[cfg(feature = "mongodb")]
impl From<tombolo_db::mongodb::driver::error::Error> for Problem {
    fn from(error: tombolo_db::mongodb::driver::error::Error) -> Self {
        Error::from(error).into()
    }
}

impl From<Problem> for Response {
    fn from(problem: Problem) -> Self {
        problem.into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_problem_of_a_kind_says_which_and_another_says_nothing() {
        let problem = Problem::new(StatusCode::CONFLICT, "taken").of_type("urn:tombolo:test:taken");
        for (problem, expected) in [
            (
                problem,
                r#"{"type":"urn:tombolo:test:taken","title":"Conflict","status":409,"detail":"taken"}"#,
            ),
            (Problem::new(StatusCode::GONE, "gone"), r#"{"title":"Gone","status":410,"detail":"gone"}"#),
        ] {
            let body = axum::body::to_bytes(problem.into_response().into_body(), 1_000).await.unwrap();
            assert_eq!(body, expected);
            assert!(!Problem::detail_of(expected).contains('{'));
        }
    }
}
