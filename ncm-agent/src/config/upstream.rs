//! `[upstream]`: who is asked for destinations that are not known, how often, and what may wait for the answer.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::reader::Section;

/// `[upstream]`
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Upstream {
    /// Who is asked; `None`: nobody.
    pub address: Option<UpstreamAddress>,
    /// How long a request may take, until what waits for it is dropped.
    pub request_timeout: Duration,
    /// How long what upstream has said to be reachable may take to become so.
    pub settle: Duration,
    /// How long nobody is asked again for what upstream does not know, or has not answered for.
    pub retry_after: Duration,
    /// Most requests in one message.
    pub batch: usize,
    /// Most packets that are held.
    pub hold_packets: usize,
    /// Most bytes of packets that are held.
    pub hold_bytes: usize,
    /// Most packets that are held of one port.
    pub port_hold_packets: usize,
    /// Most bytes of packets that are held of one port.
    pub port_hold_bytes: usize,
    /// For how many packets each port may ask in a second, in the long run.
    pub port_asks_per_second: u32,
    /// For how many at once.
    pub port_asks_at_once: u32,
    /// How long an entry that came because it was asked for stays without being used; `None`: for ever.
    pub learned_idle: Option<Duration>,
}

/// Where upstream is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UpstreamAddress {
    /// Name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

impl fmt::Display for UpstreamAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(formatter, "[{}]:{}", self.host, self.port)
        } else {
            write!(formatter, "{}:{}", self.host, self.port)
        }
    }
}

impl UpstreamAddress {
    /// `HOST:PORT`, possibly with `http://` in front.
    fn parse(text: &str) -> Option<Self> {
        let text = text.strip_prefix("http://").unwrap_or(text).trim_end_matches('/');
        if let Ok(address) = text.parse::<SocketAddr>() {
            let usable =
                address.port() != 0 && !address.ip().is_unspecified() && !address.ip().is_multicast();
            return usable.then(|| Self { host: address.ip().to_string(), port: address.port() });
        }
        let (host, port) = text.rsplit_once(':')?;
        let is_label = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
        };
        // What looks like an address and is none is no name either.
        let numeric = host.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
        let valid = host.len() <= 253 && !numeric && host.split('.').all(is_label);
        let port = port.parse().ok().filter(|port| *port != 0)?;
        valid.then(|| Self { host: host.to_owned(), port })
    }

    /// Whether what is said to it stays on this host.
    fn is_own(&self) -> bool {
        self.host == "localhost" || self.host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }
}

/// Reads the section.
pub(super) fn upstream(mut section: Section<'_, '_>, insecure: bool) -> Upstream {
    let expected = "HOST:PORT (an IPv6 address in brackets), without TLS, or \"\" for none";
    let address = section.parsed("address", expected, UpstreamAddress::parse);
    if let Some(address) = &address
        && !address.is_own()
        && !insecure
    {
        section.fault(
            "address",
            format!(
                "{address} is asked over the network without authentication: expected a loopback address, or \
                 api.insecure = true to accept that"
            ),
        );
    }
    let milliseconds = |section: &mut Section<'_, '_>, key, least, default| {
        Duration::from_millis(section.integer(key, least, 600_000, default))
    };
    let request_timeout = milliseconds(&mut section, "request_timeout_ms", 1, 3_000);
    let settle = milliseconds(&mut section, "settle_ms", 0, 1_000);
    let retry_after = milliseconds(&mut section, "retry_after_ms", 0, 2_000);
    let mut number = |key, most: u64, default: u64| section.integer(key, 1, most, default);
    let batch = number("batch", 10_000, 256);
    let hold_packets = number("hold_packets", 1 << 20, 16_384);
    let hold_bytes = number("hold_bytes", 1 << 32, 64 << 20);
    let port_hold_packets = number("port_hold_packets", 1 << 20, 1_024);
    let port_hold_bytes = number("port_hold_bytes", 1 << 32, 8 << 20);
    let port_asks_per_second = number("port_asks_per_second", 1_000_000, 10_000);
    let port_asks_at_once = number("port_asks_at_once", 1_000_000, 2_000);
    let idle = section.integer("learned_idle_seconds", 0, 31_536_000, 0);
    for (key, port, all) in [
        ("port_hold_packets", port_hold_packets, hold_packets),
        ("port_hold_bytes", port_hold_bytes, hold_bytes),
    ] {
        if port > all {
            let of_all = key.trim_start_matches("port_");
            section.fault(key, format!("expected at most upstream.{of_all} ({all}), found {port}"));
        }
    }
    section.finish();
    let size = |number| usize::try_from(number).unwrap_or(usize::MAX);
    Upstream {
        address,
        request_timeout,
        settle,
        retry_after,
        batch: size(batch),
        hold_packets: size(hold_packets),
        hold_bytes: size(hold_bytes),
        port_hold_packets: size(port_hold_packets),
        port_hold_bytes: size(port_hold_bytes),
        port_asks_per_second: u32::try_from(port_asks_per_second).unwrap_or(u32::MAX),
        port_asks_at_once: u32::try_from(port_asks_at_once).unwrap_or(u32::MAX),
        learned_idle: (idle > 0).then(|| Duration::from_secs(idle)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_names_or_numbers_with_a_port() {
        for (text, shown) in [
            ("192.0.2.1:9016", "192.0.2.1:9016"),
            ("http://192.0.2.1:9016/", "192.0.2.1:9016"),
            ("[2001:db8::1]:9016", "[2001:db8::1]:9016"),
            ("ncm.example.net:9016", "ncm.example.net:9016"),
        ] {
            assert_eq!(
                UpstreamAddress::parse(text).map(|address| address.to_string()).as_deref(),
                Some(shown)
            );
        }
        for text in [
            "192.0.2.1",
            "192.0.2.1:0",
            "0.0.0.0:9016",
            "192.0.2.256:9016",
            "https://192.0.2.1:9016",
            "a b:1",
            ":9016",
            "ncm.example.net:99999",
            "2001:db8::1:9016x",
        ] {
            assert_eq!(UpstreamAddress::parse(text), None, "{text}");
        }
    }
}
