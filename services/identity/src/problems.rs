//! What is refused, and how it is said.
//!
//! Invariant: no refusal tells whether an account exists.

use std::time::Duration;

use axum::Json;
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::de::DeserializeOwned;
use tombolo::Problem;

/// Something about the request itself is wrong.
pub(crate) fn wrong(detail: impl Into<String>) -> Problem {
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail).of_type("urn:tombolo:identity:wrong-input")
}

/// A body of JSON; what is none is refused by a problem document.
pub(crate) struct Body<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let read = Json::from_request(request, state).await;
        read.map(|Json(body)| Self(body)).map_err(|rejection| {
            let problem = wrong(rejection.body_text());
            Problem { status: rejection.status(), ..problem }
        })
    }
}

/// The address or the password is not right, or there is no such account: nobody is told which.
pub(crate) fn not_signed_in() -> Problem {
    let detail = "address and password do not belong together; try again, or register";
    Problem::new(StatusCode::UNAUTHORIZED, detail).of_type("urn:tombolo:identity:sign-in-refused")
}

/// Said only to somebody who knows the password.
pub(crate) fn is_blocked() -> Problem {
    let detail = "the account is blocked; ask an administrator";
    Problem::new(StatusCode::FORBIDDEN, detail).of_type("urn:tombolo:identity:blocked")
}

pub(crate) fn no_user(id: &str) -> Problem {
    let detail = format!("there is no user {id:?}; GET /users lists them");
    Problem::new(StatusCode::NOT_FOUND, detail).of_type("urn:tombolo:identity:no-user")
}

/// A refusal that may say when to come back.
pub(crate) enum Refusal {
    Problem(Problem),
    TooMany(Duration),
}

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        Self::Problem(problem)
    }
}

impl From<tombolo::Error> for Refusal {
    fn from(error: tombolo::Error) -> Self {
        Self::Problem(error.into())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        match self {
            Self::Problem(problem) => problem.into_response(),
            Self::TooMany(wait) => {
                let seconds = wait.as_secs().max(1);
                let detail = format!("too many guesses; try again in {seconds} s");
                let problem = Problem::new(StatusCode::TOO_MANY_REQUESTS, detail);
                let mut response = problem.of_type("urn:tombolo:identity:too-many-guesses").into_response();
                response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
                response
            }
        }
    }
}
