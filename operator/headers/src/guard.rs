//! Which addresses a source may lead to: the public internet, and what an administrator names.
//!
//! A model's source is written by whoever may create an AtlasModel, and it is the operator that connects: without this
//! guard a source would be a way to reach the cloud's metadata service or the cluster's own Services.
//! Addresses are checked where the connection is made, after the name was resolved, so that neither a redirect nor a
//! name that changes its address in between gets around it.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    str::FromStr,
    sync::Arc,
};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// A range of addresses, such as `10.0.0.0/8`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddressRange {
    address: IpAddr,
    prefix: u8,
}

/// A range that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no range of addresses: write for example 10.0.0.0/8, 192.0.2.7 or fd00::/8")]
pub struct RangeError {
    text: String,
}

impl FromStr for AddressRange {
    type Err = RangeError;

    fn from_str(text: &str) -> Result<Self, RangeError> {
        let bad = || RangeError { text: text.to_owned() };
        let (address, prefix) = text.split_once('/').map_or((text, None), |(a, p)| (a, Some(p)));
        let address: IpAddr = address.parse().map_err(|_| bad())?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.map_or(Ok(longest), str::parse).map_err(|_| bad())?;
        if prefix > longest { Err(bad()) } else { Ok(Self { address, prefix }) }
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl AddressRange {
    fn contains(&self, address: IpAddr) -> bool {
        let same = |own: u128, other: u128, bits: u32| {
            let shift = bits - u32::from(self.prefix);
            // A shift by the whole width is no shift: a prefix of 0 holds everything.
            own.checked_shr(shift).unwrap_or(0) == other.checked_shr(shift).unwrap_or(0)
        };
        match (self.address, address) {
            (IpAddr::V4(own), IpAddr::V4(other)) => same(own.to_bits().into(), other.to_bits().into(), 32),
            (IpAddr::V6(own), IpAddr::V6(other)) => same(own.to_bits(), other.to_bits(), 128),
            _ => false,
        }
    }
}

/// What may be connected to.
#[derive(Debug, Clone, Default)]
pub struct Guard {
    /// Ranges that are allowed besides public addresses.
    pub allowed: Arc<[AddressRange]>,
}

/// A host that may not be connected to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{host} is {address}, which is no public address")]
pub struct Forbidden {
    /// The host.
    pub host: String,
    /// Its address.
    pub address: IpAddr,
}

impl Guard {
    /// Whether an address may be connected to.
    #[must_use]
    pub fn allows(&self, address: IpAddr) -> bool {
        is_public(address) || self.allowed.iter().any(|range| range.contains(address))
    }

    /// Checks a host that is an address already, which no resolver is asked about.
    ///
    /// # Errors
    ///
    /// The address may not be connected to.
    pub fn check_literal(&self, host: &str) -> Result<(), Forbidden> {
        let literal = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        match literal {
            Ok(address) if !self.allows(address) => Err(Forbidden { host: host.to_owned(), address }),
            _ => Ok(()),
        }
    }
}

impl Resolve for Guard {
    fn resolve(&self, name: Name) -> Resolving {
        let guard = self.clone();
        Box::pin(async move {
            let host = name.as_str().to_owned();
            let found: Vec<SocketAddr> = tokio::net::lookup_host((host.as_str(), 0)).await?.collect();
            // One forbidden address is enough: a name that has both is a trick or a mistake.
            if let Some(forbidden) = found.iter().find(|found| !guard.allows(found.ip())) {
                return Err(Forbidden { host, address: forbidden.ip() }.into());
            }
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

/// Whether an address belongs to the public internet (the special-purpose registries of IANA, RFC 6890).
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let special = matches!(
        (a, b, c),
        (0 | 10 | 127 | 224.., _, _)
            | (100, 64..=127, _)
            | (169, 254, _)
            | (172, 16..=31, _)
            | (192, 168, _)
            | (192, 0, 0 | 2)
            | (192, 88, 99)
            | (198, 18 | 19, _)
            | (198, 51, 100)
            | (203, 0, 113)
    );
    !special
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let segments = address.segments();
    // Forms that carry an IPv4 address lead where that leads.
    let embedded = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        is_public_v4(Ipv4Addr::new(a, b, c, d))
    };
    match segments {
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low] => embedded(high, low),
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => embedded(high, low),
        [0x2002, high, low, ..] => embedded(high, low),
        // Global unicast, less documentation and the other special blocks at its start.
        [0x2001, 0..=0x1ff | 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => false,
        [first, ..] => (0x2000..0x4000).contains(&first),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_public_addresses_pass() {
        let check = |address: &str, public: bool| {
            assert_eq!(is_public(address.parse().unwrap()), public, "{address}");
        };
        for address in
            ["8.8.8.8", "172.32.0.1", "100.128.0.1", "192.0.1.1", "2606:4700::1", "64:ff9b::808:808"]
        {
            check(address, true);
        }
        for address in [
            "0.0.0.0",
            "10.1.2.3",
            "127.0.0.1",
            "100.64.0.1",
            "169.254.169.254",
            "172.16.0.1",
            "192.168.1.1",
            "192.0.0.8",
            "198.18.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:10.0.0.1",
            "::127.0.0.1",
            "fe80::1",
            "fc00::1",
            "fd12::1",
            "ff02::1",
            "64:ff9b::a9fe:a9fe",
            "2002:a00:1::",
            "2001:db8::1",
            "2001::1",
            "fec0::1",
        ] {
            check(address, false);
        }
    }

    #[test]
    fn ranges_read_and_hold_what_they_name() {
        let check = |range: &str, address: &str, holds: bool| {
            let range: AddressRange = range.parse().unwrap();
            assert_eq!(range.contains(address.parse().unwrap()), holds, "{range} {address}");
        };
        check("10.0.0.0/8", "10.200.1.1", true);
        check("10.0.0.0/8", "11.0.0.1", false);
        check("127.0.0.1", "127.0.0.1", true);
        check("127.0.0.1", "127.0.0.2", false);
        check("0.0.0.0/0", "255.1.1.1", true);
        check("::/0", "fd00::1", true);
        check("::/0", "10.0.0.1", false);
        check("fd00::/8", "fdff::1", true);
        check("fd00::/8", "fe80::1", false);
        for bad in ["10.0.0.0/33", "10.0.0", "::/129", "", "a/8", "10.0.0.0/"] {
            assert!(bad.parse::<AddressRange>().is_err(), "{bad}");
        }
    }

    #[test]
    fn literal_hosts_are_checked_in_both_forms() {
        let guard = Guard { allowed: Arc::from(["127.0.0.1".parse().unwrap()]) };
        assert!(guard.check_literal("127.0.0.1").is_ok());
        assert!(guard.check_literal("models.example").is_ok());
        assert!(guard.check_literal("127.0.0.2").is_err());
        assert!(guard.check_literal("[::1]").is_err());
        assert_eq!(
            guard.check_literal("169.254.169.254").unwrap_err().to_string(),
            "169.254.169.254 is 169.254.169.254, which is no public address"
        );
    }
}
