//! How many requests are let in: for each user, address or route.
//!
//! Invariant: a key's count is one number that ages by itself; keys that rest are forgotten.

use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};

use crate::config::{Rate, RateBy};

/// Who is counted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Counted {
    User(Arc<str>),
    Address(IpAddr),
    Route,
}

/// The limits of a route.
#[derive(Default)]
pub(crate) struct Rates {
    limits: Vec<(Rate, DefaultKeyedRateLimiter<Counted>)>,
}

impl Rates {
    pub(crate) fn new(rates: &[Rate]) -> Self {
        let limit = |rate: &Rate| {
            let number = |count| NonZeroU32::new(count).unwrap_or(NonZeroU32::MIN);
            let quota = Quota::per_second(number(rate.per_s)).allow_burst(number(rate.burst));
            (*rate, RateLimiter::keyed(quota))
        };
        Self { limits: rates.iter().map(limit).collect() }
    }

    /// Counts a request, or says how long to wait.
    pub(crate) fn count(&self, address: IpAddr, user: Option<&Arc<str>>) -> Result<(), Duration> {
        for (rate, limiter) in &self.limits {
            let counted = match (rate.by, user) {
                (RateBy::Route, _) => Counted::Route,
                (RateBy::User, Some(user)) => Counted::User(Arc::clone(user)),
                (RateBy::User, None) | (RateBy::Address, _) => Counted::Address(of_one_customer(address)),
            };
            limiter
                .check_key(&counted)
                .map_err(|until| until.wait_time_from(DefaultClock::default().now()))?;
        }
        Ok(())
    }

    /// Forgets who has not asked for long.
    pub(crate) fn forget(&self) {
        for (_, limiter) in &self.limits {
            limiter.retain_recent();
            limiter.shrink_to_fit();
        }
    }
}

/// An IPv6 customer has a whole /64 to ask from.
fn of_one_customer(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(by: RateBy, burst: u32) -> Rate {
        Rate { by, per_s: 1, burst }
    }

    #[test]
    fn each_address_and_each_user_is_counted_apart() {
        let rates = Rates::new(&[rate(RateBy::User, 2)]);
        let (one, other) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        let ada: Arc<str> = "ada".into();
        assert!(rates.count(one, None).is_ok() && rates.count(one, None).is_ok());
        assert!(rates.count(one, None).unwrap_err() <= Duration::from_secs(1));
        assert!(rates.count(other, None).is_ok());
        assert!(rates.count(one, Some(&ada)).is_ok() && rates.count(other, Some(&ada)).is_ok());
        assert!(rates.count(one, Some(&ada)).is_err());
    }

    #[test]
    fn a_route_is_counted_as_a_whole_and_a_network_as_one() {
        let rates = Rates::new(&[rate(RateBy::Route, 1)]);
        assert!(rates.count("10.0.0.1".parse().unwrap(), None).is_ok());
        assert!(rates.count("10.0.0.2".parse().unwrap(), None).is_err());
        let rates = Rates::new(&[rate(RateBy::Address, 1)]);
        assert!(rates.count("2001:db8::1".parse().unwrap(), None).is_ok());
        assert!(rates.count("2001:db8::2".parse().unwrap(), None).is_err());
        assert!(rates.count("2001:db8:0:1::2".parse().unwrap(), None).is_ok());
    }
}
