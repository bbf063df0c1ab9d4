//! The shop's mail sink: takes mail over SMTP on this machine, sends none on, and shows what came.
//!
//! No service of Tombolo, only a program beside them: `tombolo dev` tells it where to serve (`TOMBOLO_LISTEN`) and asks
//! `GET /ready`; it takes mail at `SHOP_SMTP`. Like a real mail store it keeps one mail of each Message-ID.
//!
//! Invariant: a mail is acknowledged only once it is in the box.

mod mailbox;
mod smtp;

use axum::extract::State;
use axum::response::Html;
use axum::routing::get;
use axum::{Json, Router};
use tokio::net::TcpListener;

use mailbox::{Mailbox, Mails};

async fn mails(State(mailbox): State<Mailbox>) -> Json<Mails> {
    Json(mailbox.mails())
}

async fn page(State(mailbox): State<Mailbox>) -> Html<String> {
    Html(mailbox.mails().page())
}

async fn bind(variable: &str, default: &str) -> Result<TcpListener, String> {
    let place = std::env::var(variable).unwrap_or_else(|_| default.to_owned());
    let bound = TcpListener::bind(&place).await;
    bound.map_err(|error| format!("cannot listen on {place}: {error}; set {variable} to another address"))
}

async fn run() -> Result<(), String> {
    let (http, mail) =
        tokio::try_join!(bind("TOMBOLO_LISTEN", "127.0.0.1:7105"), bind("SHOP_SMTP", "127.0.0.1:7125"))?;
    let mailbox = Mailbox::default();
    let router = Router::new()
        .route("/", get(page))
        .route("/mails", get(mails))
        .route("/ready", get(async || "ready"))
        .with_state(mailbox.clone());
    tokio::select! {
        served = axum::serve(http, router) => served.map_err(|error| error.to_string()),
        taken = smtp::take(mail, mailbox) => taken.map_err(|error| format!("takes no mail any more: {error}")),
    }
}

#[tokio::main]
async fn main() -> std::process::ExitCode {
    match run().await {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("shop-mail: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}
