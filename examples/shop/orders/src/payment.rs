//! Payment: an order is open until it is paid, or until its time is over, which cancels it.
//!
//! That its time is over is an event like any other, only published later: kept in the transaction that places the order, it
//! comes back to `orders` itself when it is due, whatever was restarted meanwhile. A payment leaves it where it is; it will
//! find the order paid.
//!
//! Invariant: an order has at most one outcome, and only the transaction that writes it publishes it.

use std::time::Duration;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tombolo::{Error, Event, Handled, Kind, Reactor, Transaction};

use crate::Store;

/// How long an order may stay open, in seconds.
const PAYMENT_SECONDS: &str = "SHOP_PAYMENT_SECONDS";
const PAYMENT_SECONDS_DEFAULT: u64 = 900;
/// A year.
const PAYMENT_SECONDS_MAX: u64 = 365 * 86_400;

/// The state of an order without an outcome.
pub(crate) const OPEN: &str = "open";
const PAID: &str = "paid";
const CANCELLED: &str = "cancelled";

/// How long an order may stay open.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PaymentTime(pub(crate) Duration);

impl PaymentTime {
    /// What the environment says, or a quarter of an hour.
    pub(crate) fn from_env() -> tombolo::Result<Self> {
        let Ok(found) = std::env::var(PAYMENT_SECONDS) else {
            return Ok(Self(Duration::from_secs(PAYMENT_SECONDS_DEFAULT)));
        };
        Self::parse(&found).ok_or_else(|| {
            let message = format!(
                "{PAYMENT_SECONDS} is {found:?}; expected a whole number of seconds, from 1 to {PAYMENT_SECONDS_MAX}"
            );
            Error::new(Kind::Settings, message)
        })
    }

    fn parse(found: &str) -> Option<Self> {
        let seconds = found.parse().ok().filter(|seconds| (1..=PAYMENT_SECONDS_MAX).contains(seconds))?;
        Some(Self(Duration::from_secs(seconds)))
    }
}

/// The time of an order is over.
#[derive(Serialize, Deserialize, JsonSchema)]
pub(crate) struct PaymentDue {
    order_id: String,
}

impl Event for PaymentDue {
    const TYPE: &'static str = "orders.payment-due.v1";
    fn key(&self) -> String {
        self.order_id.clone()
    }
}

#[derive(Serialize, Deserialize, JsonSchema)]
pub(crate) struct OrderPaid {
    order_id: String,
}

impl Event for OrderPaid {
    const TYPE: &'static str = "orders.paid.v1";
    fn key(&self) -> String {
        self.order_id.clone()
    }
}

#[derive(Serialize, Deserialize, JsonSchema)]
pub(crate) struct OrderCancelled {
    order_id: String,
}

impl Event for OrderCancelled {
    const TYPE: &'static str = "orders.cancelled.v1";
    fn key(&self) -> String {
        self.order_id.clone()
    }
}

pub(crate) fn reactor<D: Store>() -> Reactor<D> {
    Reactor::from_start("payments").on(payment_due::<D>)
}

/// Gives a new order its time.
pub(crate) fn expect(tx: &mut impl Transaction, order_id: &str, until: Timestamp) -> tombolo::Result<()> {
    tx.publish_at(&PaymentDue { order_id: order_id.to_owned() }, until)?;
    Ok(())
}

/// Pays an order; `false` if it is not open.
pub(crate) async fn pay<D: Store>(tx: &mut D::Tx, order_id: &str) -> tombolo::Result<bool> {
    let is_first = D::decide(tx, order_id, PAID).await?;
    if is_first {
        tx.publish(&OrderPaid { order_id: order_id.to_owned() })?;
    }
    Ok(is_first)
}

/// Cancels an order; `false` if it is not open.
pub(crate) async fn cancel<D: Store>(tx: &mut D::Tx, order_id: &str) -> tombolo::Result<bool> {
    let is_first = D::decide(tx, order_id, CANCELLED).await?;
    if is_first {
        tx.publish(&OrderCancelled { order_id: order_id.to_owned() })?;
    }
    Ok(is_first)
}

async fn payment_due<D: Store>(event: PaymentDue, tx: &mut D::Tx) -> Handled {
    cancel::<D>(tx, &event.order_id).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_for_payment_is_a_number_of_seconds_up_to_a_year() {
        assert_eq!(PaymentTime::parse("900").map(|time| time.0), Some(Duration::from_secs(900)));
        for wrong in ["", "0", "-1", "1.5", "15m", "31536001"] {
            assert!(PaymentTime::parse(wrong).is_none(), "{wrong:?}");
        }
    }
}
