//! Which addresses a subscription may send to that is not the operator's own. Pure.
//!
//! Invariant: an address that is not public, in whatever notation it hides, is refused unless the operator allows its network.
//!
//! Source: the IANA registries of special-purpose addresses,
//! <https://www.iana.org/assignments/iana-ipv4-special-registry>, <https://www.iana.org/assignments/iana-ipv6-special-registry>.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// Where somebody's deliveries may go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reach {
    /// Anywhere: the target is in the operator's own configuration.
    Anywhere,
    /// To public addresses, and to these networks.
    Public(Vec<IpNet>),
}

impl Reach {
    /// Whether a connection may be made to `address`.
    pub(crate) fn allows(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        match self {
            Self::Anywhere => true,
            Self::Public(allowed) => {
                is_public(address) || allowed.iter().any(|network| network.contains(&address))
            }
        }
    }
}

fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let is_special = matches!(
        (a, b, c),
        (0 | 10 | 127 | 224.., _, _)
            | (169, 254, _)
            | (192, 168, _)
            | (100, 64..=127, _)
            | (172, 16..=31, _)
            | (198, 18 | 19, _)
            | (192, 0, 0 | 2)
            | (192, 88, 99)
            | (198, 51, 100)
            | (203, 0, 113)
    );
    !is_special
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let segments = address.segments();
    let [.., high, low] = segments;
    let [a, b] = high.to_be_bytes();
    let [c, d] = low.to_be_bytes();
    match segments {
        // An IPv4 address in another notation is judged as what it is: translated, compatible, 6to4.
        [0x64, 0xff9b, 0, 0, 0, 0, _, _] => is_public_v4(Ipv4Addr::new(a, b, c, d)),
        [0, 0, 0, 0, 0, 0, _, _] | [0, 0, 0, 0, 0, 0xffff, _, _] => false,
        [0x2002, high, low, ..] => {
            let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
            is_public_v4(Ipv4Addr::new(a, b, c, d))
        }
        [0x2001, 0x0db8 | 0..=0x01ff, ..] | [0x3fff, 0..=0x0fff, ..] | [0x64, 0xff9b, 1, ..] => false,
        // Only 2000::/3 is given out.
        [first, ..] => (0x2000..0x4000).contains(&first),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REFUSED: [&str; 26] = [
        "127.0.0.1",
        "127.255.0.9",
        "0.0.0.0",
        "10.1.2.3",
        "172.16.0.1",
        "172.31.255.255",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "192.0.0.8",
        "198.18.0.1",
        "224.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "fe80::1",
        "fec0::1",
        "fc00::1",
        "fd12:3456::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "::7f00:1",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
        "2001:db8::1",
    ];

    #[test]
    fn what_is_not_public_is_refused_in_every_notation() {
        for text in REFUSED {
            assert!(!Reach::Public(Vec::new()).allows(text.parse().unwrap()), "{text}");
            assert!(Reach::Anywhere.allows(text.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn what_is_public_is_reached() {
        for text in
            ["1.1.1.1", "172.32.0.1", "100.128.0.1", "2606:4700::1", "64:ff9b::101:101", "2002:101:101::"]
        {
            assert!(Reach::Public(Vec::new()).allows(text.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn an_allowed_network_is_reached_in_every_notation_and_its_neighbour_is_not() {
        let reach = Reach::Public(vec!["127.0.0.0/8".parse().unwrap()]);
        assert!(reach.allows("127.0.0.1".parse().unwrap()));
        assert!(reach.allows("::ffff:127.0.0.1".parse().unwrap()));
        assert!(!reach.allows("10.0.0.1".parse().unwrap()));
    }
}
