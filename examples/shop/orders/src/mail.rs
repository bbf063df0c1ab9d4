//! The confirmation e-mail of each order: an effect, so that nothing is sent inside a transaction, and what was sent is
//! not sent again because something else failed.
//!
//! A crash between sending and storing that it was sent sends once more, with the same Message-ID: the mail store keeps one.

use lettre::message::{Mailbox, Message};
use lettre::{AsyncSmtpTransport, AsyncTransport, Tokio1Executor};
use serde::Serialize;
use tombolo::{App, Attempt, Effect, Error, HandlerError, Kind, Service, State, reject};

use crate::{OrderPlaced, Store, catalog};

/// Where mail is handed in, as host:port. Without it the shop sends none.
const SMTP: &str = "SHOP_SMTP";
/// Whom confirmations are from.
const FROM: &str = "The shop <orders@shop.example>";

#[derive(Clone)]
struct Mailer(AsyncSmtpTransport<Tokio1Executor>);

/// What is kept of each confirmation.
#[derive(Serialize)]
struct Confirmed {
    to: String,
    /// What the mail server answered.
    answer: String,
}

/// Adds the confirmations, if `SHOP_SMTP` says where to hand them in.
///
/// # Errors
/// `Settings` if it says something else than a host and a port.
pub(crate) fn confirm_orders<D: Store>(service: Service<D>) -> tombolo::Result<Service<D>> {
    let Ok(place) = std::env::var(SMTP) else { return Ok(service) };
    let parts = place.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?)));
    let (host, port) = parts.ok_or_else(|| {
        Error::new(Kind::Settings, format!("{SMTP} is {place:?}; expected host:port, such as 127.0.0.1:7125"))
    })?;
    // Not encrypted: the sink is on this machine.
    let smtp = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(host).port(port).build();
    Ok(service.state(Mailer(smtp)).effect(Effect::from_now("confirmations").on(confirm::<D>)))
}

async fn confirm<D: Store>(
    order: OrderPlaced,
    app: App<D>,
    mailer: State<Mailer>,
    attempt: Attempt,
) -> Result<Confirmed, HandlerError> {
    let Some(to) = catalog::email(&app, &order.user_id).await? else {
        return Err(reject(format!("there is no user {:?} to write to", order.user_id)));
    };
    let letter = letter(&order, &to, attempt)?;
    let answer = mailer.0.0.send(letter).await?;
    Ok(Confirmed { to, answer: answer.message().collect() })
}

fn letter(order: &OrderPlaced, to: &str, attempt: Attempt) -> Result<Message, HandlerError> {
    let to: Mailbox = to.parse().map_err(|error| reject(format!("{to:?} is not an address: {error}")))?;
    let text = format!(
        "Thank you. You ordered {} pieces of {} at {} cents each.\n",
        order.quantity, order.product_id, order.price_cents
    );
    let letter = Message::builder()
        .message_id(Some(format!("<{}@orders.shop.example>", attempt.key)))
        .from(FROM.parse()?)
        .to(to)
        .subject(format!("Your order {}", order.order_id))
        .body(text)?;
    Ok(letter)
}
