//! How often a password may be guessed: for each account, for each address, and for the two together.
//!
//! Invariant: a guess counts before it is checked, so many at once are no way around; and what is counted is bounded, whoever
//! makes names up. Counts are of one replica, in memory: a restart forgets them.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How many of these may be counted at once; beyond, what is forgiven is forgotten first, and then nobody new is let in.
const COUNTED_MAX: usize = 100_000;

/// So many at once, and one more after each pause.
#[derive(Clone, Copy)]
struct Allowed {
    most: u32,
    pause: Duration,
}

const OF_PAIR: Allowed = Allowed { most: 10, pause: Duration::from_secs(60) };
const OF_ACCOUNT: Allowed = Allowed { most: 100, pause: Duration::from_secs(30) };
const OF_ADDRESS: Allowed = Allowed { most: 100, pause: Duration::from_secs(6) };

#[derive(PartialEq, Eq, Hash, Clone)]
enum Counted {
    Pair(String, IpAddr),
    Account(String),
    Address(IpAddr),
}

/// Counts guesses.
#[derive(Default)]
pub(crate) struct Guesses(Mutex<HashMap<Counted, Instant>>);

impl Guesses {
    /// Counts a guess at `account` from `address`.
    ///
    /// # Errors
    /// How long to wait, if it is one too many.
    pub(crate) fn count(&self, account: &str, address: IpAddr, now: Instant) -> Result<(), Duration> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.len() >= COUNTED_MAX {
            counts.retain(|_, free_at| *free_at > now);
        }
        let all = counted(account, address);
        for (counted, allowed) in &all {
            let free_at = counts.get(counted).copied().unwrap_or(now).max(now);
            let wait =
                (free_at + allowed.pause).saturating_duration_since(now + allowed.pause * allowed.most);
            if !wait.is_zero() {
                return Err(wait);
            }
        }
        if counts.len() >= COUNTED_MAX {
            return Err(OF_ADDRESS.pause);
        }
        for (counted, allowed) in all {
            let free_at = counts.entry(counted).or_insert(now);
            *free_at = (*free_at).max(now) + allowed.pause;
        }
        Ok(())
    }

    /// Takes a guess back that was none: the password was right.
    pub(crate) fn forgive(&self, account: &str, address: IpAddr) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (counted, allowed) in counted(account, address) {
            if let Some(free_at) = counts.get_mut(&counted) {
                *free_at = free_at.checked_sub(allowed.pause).unwrap_or(*free_at);
            }
        }
    }
}

fn counted(account: &str, address: IpAddr) -> [(Counted, Allowed); 3] {
    let address = network(address);
    [
        (Counted::Pair(account.to_owned(), address), OF_PAIR),
        (Counted::Account(account.to_owned()), OF_ACCOUNT),
        (Counted::Address(address), OF_ADDRESS),
    ]
}

/// Whoever has one IPv6 address has 2^64 of them.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));

    #[test]
    fn guesses_at_one_account_end_soon_and_come_back_slowly() {
        let (guesses, now) = (Guesses::default(), Instant::now());
        assert_eq!((0..100).filter(|_| guesses.count("ada", HERE, now).is_ok()).count(), 10);
        let wait = guesses.count("ada", HERE, now).unwrap_err();
        assert!(guesses.count("ada", HERE, now + wait).is_ok());
        assert!(guesses.count("ada", HERE, now + wait).is_err());
        assert!(guesses.count("bob", HERE, now).is_ok(), "another account is another matter");
    }

    #[test]
    fn many_accounts_from_one_address_and_one_account_from_many_end_too() {
        let (guesses, now) = (Guesses::default(), Instant::now());
        let spray = (0..1_000).filter(|n| guesses.count(&format!("user{n}"), HERE, now).is_ok()).count();
        assert_eq!(spray, 100);
        let guesses = Guesses::default();
        let from = |n: u8| IpAddr::V4(std::net::Ipv4Addr::new(10, 1, 1, n));
        assert_eq!((0..=255).filter(|n| guesses.count("ada", from(*n), now).is_ok()).count(), 100);
    }

    #[test]
    fn who_signs_in_rightly_is_never_locked_out() {
        let (guesses, now) = (Guesses::default(), Instant::now());
        for _ in 0..1_000 {
            guesses.count("ada", HERE, now).unwrap();
            guesses.forgive("ada", HERE);
        }
    }

    #[test]
    fn the_addresses_of_one_ipv6_network_are_one() {
        let (guesses, now) = (Guesses::default(), Instant::now());
        let from = |n: u16| IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, n));
        assert_eq!((0..100).filter(|n| guesses.count("ada", from(*n), now).is_ok()).count(), 10);
    }
}
