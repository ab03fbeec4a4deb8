//! Router advertisements (RFC 4861): what a subnet's gateway tells the guest behind a port, when asked and from time to time.
//!
//! Every port has a link of its own, so an advertisement goes to one guest, and may say what is so for that guest alone:
//! - **Managed** if there is a DHCPv6 binding for the port.
//! - **Autonomous** only if there is none and the address that the guest would make of the prefix and its MAC is the one that
//!   the port has: any other address it could not send from. So a guest without a binding either comes to its very address, or
//!   is configured by other means.
//! - A **default router** only while a router holds the subnet.

use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

use ncm_model::lease::options::domain_name;
use ncm_model::lease::{LeaseFacts, LinkV6, eui64, link_local, split_name};

use super::dhcpv6_options::{SEARCH, has_configuration};
use super::frame::{self, Side};
use super::{Answer, Ignored};

const SOLICITATION: u8 = 133;
const ADVERTISEMENT: u8 = 134;
const OPTION_SOURCE: u8 = 1;
const OPTION_PREFIX: u8 = 3;
const OPTION_MTU: u8 = 5;
const OPTION_DNS: u8 = 25;
const OPTION_SEARCH: u8 = 31;
const FLAG_MANAGED: u8 = 0x80;
const FLAG_OTHER: u8 = 0x40;
const FLAG_ON_LINK: u8 = 0x80;
const FLAG_AUTONOMOUS: u8 = 0x40;
const HOPS: u8 = 64;
/// Seconds that a guest keeps the router and the name servers: as long as the field can say (RFC 8319), because guests keep
/// what they have while no agent runs.
const ROUTER_LIFETIME: u16 = u16::MAX;
/// Seconds that a prefix is valid and preferred (RFC 4861, section 6.2.1).
const VALID: u32 = 2_592_000;
const PREFERRED: u32 = 604_800;
/// All nodes.
const EVERYBODY: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// The smallest MTU of IPv6.
const SMALLEST_MTU: u16 = 1_280;
/// Longest advertisement: what every IPv6 link takes, without the IP header.
const LONGEST: usize = 1_280 - 40;
/// Most name servers of a subnet that it tells of; guests keep fewer.
const MOST_SERVERS: usize = 16;

/// Answers a solicitation: to the guest itself, or where it has no address yet, by an advertisement to everybody.
pub(super) fn answer(frame: &[u8], partial: bool, facts: &LeaseFacts) -> Result<Answer, Ignored> {
    let received = frame::discovery(frame, partial).ok_or(Ignored::Malformed)?;
    if received.from.mac != facts.mac {
        return Err(Ignored::OtherClient);
    }
    let [SOLICITATION, 0, _, _, _, _, _, _, options @ ..] = received.payload else {
        return Err(Ignored::Malformed);
    };
    // RFC 4861, section 6.1.1.
    let source = has_source(options).ok_or(Ignored::Malformed)?;
    let unspecified = received.from.ip.is_unspecified();
    if unspecified && source {
        return Err(Ignored::Malformed);
    }
    if facts.v6.is_empty() {
        return Err(Ignored::NoBinding);
    }
    if unspecified || received.from.ip.is_multicast() {
        return Ok(Answer::Advertise);
    }
    Ok(Answer::Frames(build(facts, received.from)))
}

/// Whether a solicitation's options name its sender; `None` if one has no length.
fn has_source(mut options: &[u8]) -> Option<bool> {
    let mut source = false;
    while let [kind, units, ..] = options {
        let length = usize::from(*units) * 8;
        if length == 0 {
            return None;
        }
        source |= *kind == OPTION_SOURCE;
        options = options.get(length..)?;
    }
    options.is_empty().then_some(source)
}

/// The advertisements to everybody on a port's link: one from each gateway.
#[must_use]
pub fn advertisements(facts: &LeaseFacts) -> Vec<Vec<u8>> {
    build(facts, Side { mac: frame::multicast_mac(EVERYBODY), ip: EVERYBODY })
}

fn build(facts: &LeaseFacts, to: Side<Ipv6Addr>) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    for (at, link) in facts.v6.iter().enumerate() {
        let mac = link.gateway_mac;
        // Subnets that have a gateway's MAC in common are one router's: it says all in one.
        if facts.v6[..at].iter().any(|other| other.gateway_mac == mac) {
            continue;
        }
        let links: Vec<&LinkV6> = facts.v6[at..].iter().filter(|other| other.gateway_mac == mac).collect();
        let from = Side { mac, ip: link_local(mac) };
        frames.extend(frame::build_discovery(from, to, &message(facts, &links)));
    }
    frames
}

fn message(facts: &LeaseFacts, links: &[&LinkV6]) -> Vec<u8> {
    let managed = links.iter().any(|link| link.lease.is_some());
    let other = managed || links.iter().any(|link| has_configuration(link));
    let flags = if managed { FLAG_MANAGED } else { 0 } | if other { FLAG_OTHER } else { 0 };
    let lifetime = if links.iter().any(|link| link.routed) { ROUTER_LIFETIME } else { 0 };
    let mut message = vec![ADVERTISEMENT, 0, 0, 0, HOPS, flags];
    message.extend(lifetime.to_be_bytes());
    // Reachable time and retransmission timer: unspecified.
    message.extend([0; 8]);
    if let Some(link) = links.first() {
        message.extend([OPTION_SOURCE, 1]);
        message.extend(link.gateway_mac);
    }
    let mtu = links.iter().find_map(|link| link.extras.mtu).unwrap_or(facts.mtu);
    if mtu >= SMALLEST_MTU {
        message.extend([OPTION_MTU, 1, 0, 0]);
        message.extend(u32::from(mtu).to_be_bytes());
    }
    let options = links.iter().map(|link| prefix(facts, link));
    for option in options.chain(links.iter().flat_map(|link| [name_servers(link), search(link)])) {
        if message.len() + option.len() <= LONGEST {
            message.extend(option);
        }
    }
    message
}

fn prefix(facts: &LeaseFacts, link: &LinkV6) -> Vec<u8> {
    let network = link.net.network();
    let autonomous = link.lease.is_none()
        && link.net.prefix_len() == 64
        && link.fixed.contains(&eui64(network, facts.mac));
    let flags = FLAG_ON_LINK | if autonomous { FLAG_AUTONOMOUS } else { 0 };
    let mut option = vec![OPTION_PREFIX, 4, link.net.prefix_len(), flags];
    option.extend(VALID.to_be_bytes());
    option.extend(PREFERRED.to_be_bytes());
    option.extend([0; 4]);
    option.extend(network.octets());
    option
}

/// Name servers (RFC 8106, section 5.1).
fn name_servers(link: &LinkV6) -> Vec<u8> {
    if link.dns.is_empty() {
        return Vec::new();
    }
    let servers = &link.dns[..link.dns.len().min(MOST_SERVERS)];
    let mut option = vec![OPTION_DNS, 1 + 2 * servers.len() as u8, 0, 0];
    option.extend(u32::from(ROUTER_LIFETIME).to_be_bytes());
    option.extend(servers.iter().flat_map(Ipv6Addr::octets));
    option
}

/// Domains to search (RFC 8106, section 5.2).
fn search(link: &LinkV6) -> Vec<u8> {
    let domains = match link.extras.v6(SEARCH) {
        Some(domains) => domains.to_vec(),
        None => domain_name(split_name(&link.host_name).1).unwrap_or_default(),
    };
    if domains.is_empty() {
        return Vec::new();
    }
    let units = 1 + domains.len().div_ceil(8);
    let mut option = vec![OPTION_SEARCH, units as u8, 0, 0];
    option.extend(u32::from(ROUTER_LIFETIME).to_be_bytes());
    option.extend(domains);
    option.resize(units * 8, 0);
    option
}

/// Seconds between unsolicited advertisements, at least and at most (RFC 4861, section 6.2.1: a third of the longest).
const INTERVAL: (u64, u64) = (200, 600);
/// How many advertisements of something new come faster, and how fast (RFC 4861, section 10).
const INITIAL: u8 = 3;
const INITIAL_INTERVAL: Duration = Duration::from_secs(16);
/// Shortest time between two advertisements to everybody.
const SHORTEST: Duration = Duration::from_secs(3);

/// When a port's guest is to get its next advertisement to everybody.
#[derive(Clone, Debug)]
pub struct Schedule {
    next: Instant,
    last: Option<Instant>,
    initial: u8,
}

impl Schedule {
    /// Begins with something new to tell, at once.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self { next: now, last: None, initial: INITIAL }
    }

    /// When the next is due.
    #[must_use]
    pub fn next(&self) -> Instant {
        self.next
    }

    /// The guest has asked, or there is something new to tell.
    pub fn ask(&mut self, now: Instant) {
        let allowed = self.last.map_or(now, |last| last + SHORTEST);
        self.next = self.next.min(allowed.max(now));
    }

    /// What there is to tell has changed: it is told at once, and a few times more.
    pub fn changed(&mut self, now: Instant) {
        self.initial = INITIAL;
        self.ask(now);
    }

    /// An advertisement has gone out; `random` is any number, by which routers keep from speaking all at once.
    pub fn sent(&mut self, now: Instant, random: u64) {
        self.last = Some(now);
        self.initial = self.initial.saturating_sub(1);
        let (least, most) = INTERVAL;
        let interval = if self.initial > 0 {
            INITIAL_INTERVAL
        } else {
            Duration::from_millis(least * 1_000 + random % ((most - least) * 1_000))
        };
        self.next = now + interval;
    }
}
