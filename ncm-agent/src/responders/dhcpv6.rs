//! DHCPv6 (RFC 8415): the server's side of every message that a client sends. The server is the gateway of the subnet: its
//! identifier is made of the gateway's MAC, so that it is the same on every host that a guest moves to.

use std::net::Ipv6Addr;

use dhcproto::v6::{
    DhcpOption, DhcpOptions, Encodable, IAAddr, IANA, IAPD, IATA, Message, MessageType, Status, StatusCode,
};
use ncm_model::lease::{LeaseFacts, LinkV6, link_local};

use super::dhcp_options::LEASE;
use super::dhcpv6_options::{
    Asked, Association, IA_NA, IA_PD, RAPID_COMMIT, add_configuration, in_order, raw,
};
use super::frame::{self, Side};
use super::{Answer, Ignored};

const CLIENT_PORT: u16 = 546;
const SERVER_PORT: u16 = 547;
/// Bytes of a message before its options.
const HEADER: usize = 4;
/// Longest message: what every IPv6 link takes, without the IP and UDP headers.
const LONGEST: usize = 1_280 - 40 - 8;
/// A server that no other is to be waited for (RFC 8415, section 18.2.1).
const PREFERENCE: u8 = 255;
const PREFERENCE_CODE: u16 = 7;

/// The server's identifier: of the link-layer address alone (RFC 8415, section 11.4), as that outlives this host.
fn server_id(link: &LinkV6) -> Vec<u8> {
    let mut id = vec![0, 3, 0, 1];
    id.extend(link.gateway_mac);
    id
}

/// The subnet that a guest is served in: the first with a lease, else the first.
fn link_of(facts: &LeaseFacts) -> Option<&LinkV6> {
    facts.v6.iter().find(|link| link.lease.is_some()).or(facts.v6.first())
}

pub(super) fn answer(frame: &[u8], partial: bool, facts: &LeaseFacts) -> Result<Answer, Ignored> {
    let received = frame::udp6(frame, CLIENT_PORT, SERVER_PORT, partial).ok_or(Ignored::Malformed)?;
    if received.from.mac != facts.mac {
        return Err(Ignored::OtherClient);
    }
    let (header, options) = received.payload.split_at_checked(HEADER).ok_or(Ignored::Malformed)?;
    let kind = MessageType::from(header[0]);
    let xid = [header[1], header[2], header[3]];
    let asked = Asked::read(options).ok_or(Ignored::Malformed)?;
    let link = link_of(facts).ok_or(Ignored::NoBinding)?;
    check(kind, &asked, &server_id(link))?;
    let leased: Vec<Ipv6Addr> = facts.v6.iter().filter_map(|link| link.lease).collect();
    if leased.is_empty() && kind != MessageType::InformationRequest {
        return Err(Ignored::NoBinding);
    }
    let rapid = kind == MessageType::Solicit && asked.rapid;
    let answer =
        if kind == MessageType::Solicit && !rapid { MessageType::Advertise } else { MessageType::Reply };
    let mut options = vec![DhcpOption::ServerId(server_id(link))];
    options.extend(asked.client.clone().map(DhcpOption::ClientId));
    match kind {
        MessageType::Solicit | MessageType::Request | MessageType::Renew | MessageType::Rebind => {
            if answer == MessageType::Advertise && link.extras.v6(PREFERENCE_CODE).is_none() {
                options.push(DhcpOption::Preference(PREFERENCE));
            }
            if rapid {
                options.push(raw(RAPID_COMMIT, Vec::new()));
            }
            let new = matches!(kind, MessageType::Solicit | MessageType::Request);
            lease(&mut options, &asked, &leased, link, new);
            add_configuration(&mut options, asked.requested.as_deref(), link);
        }
        MessageType::Confirm => {
            let mut addresses = asked.associations.iter().flat_map(|held| &held.addresses).peekable();
            // RFC 8415, section 18.3.3: without an address there is nothing to confirm.
            if addresses.peek().is_none() {
                return Err(Ignored::Malformed);
            }
            let here = |ip: &Ipv6Addr| facts.v6.iter().any(|link| link.net.contains(ip));
            let status = if addresses.all(here) { Status::Success } else { Status::NotOnLink };
            options.push(status_option(status));
        }
        MessageType::InformationRequest => add_configuration(&mut options, asked.requested.as_deref(), link),
        // The binding stays what the controller made it.
        MessageType::Release | MessageType::Decline => {
            options.push(status_option(Status::Success));
        }
        _ => return Err(Ignored::Malformed),
    }
    let payload = write(answer, xid, options).ok_or(Ignored::Malformed)?;
    let from = Side { mac: link.gateway_mac, ip: link_local(link.gateway_mac) };
    let ports = (SERVER_PORT, CLIENT_PORT);
    frame::build_udp6(from, received.from, ports, &payload).map(Answer::Frame).ok_or(Ignored::Malformed)
}

/// Writes the answer, with as many of its options as fit: those of the configuration are the last.
fn write(answer: MessageType, xid: [u8; 3], mut options: Vec<DhcpOption>) -> Option<Vec<u8>> {
    loop {
        let mut message = Message::new_with_id(answer, xid);
        message.set_opts(in_order(options.clone()));
        let payload = message.to_vec().ok()?;
        if payload.len() <= LONGEST || options.pop().is_none() {
            return Some(payload);
        }
    }
}

/// Which identifiers a message must have, and whose (RFC 8415, section 16).
fn check(kind: MessageType, asked: &Asked, server: &[u8]) -> Result<(), Ignored> {
    use MessageType as M;
    let needs_client = kind != M::InformationRequest;
    if needs_client && asked.client.is_none() {
        return Err(Ignored::Malformed);
    }
    match (kind, &asked.server) {
        (M::Solicit | M::Confirm | M::Rebind, Some(_)) => Err(Ignored::Malformed),
        (M::Request | M::Renew | M::Release | M::Decline, None) => Err(Ignored::Malformed),
        (M::InformationRequest, _) if !asked.associations.is_empty() => Err(Ignored::Malformed),
        (_, Some(other)) if other != server => Err(Ignored::OtherServer),
        _ => Ok(()),
    }
}

/// Adds what the client gets for each of its identity associations: the first for addresses gets all that there are, and what
/// is not the guest's is taken back. There are neither temporary addresses nor prefixes.
fn lease(options: &mut Vec<DhcpOption>, asked: &Asked, leased: &[Ipv6Addr], link: &LinkV6, new: bool) {
    let time = link.extras.lease_v6.unwrap_or(LEASE);
    let share = |part: u32, of: u32| {
        if time == u32::MAX { time } else { (u64::from(time) * u64::from(part) / u64::from(of)) as u32 }
    };
    let mut served = false;
    for held in &asked.associations {
        let mut inner = Vec::new();
        if held.code != IA_NA {
            let status = if held.code == IA_PD { Status::NoPrefixAvail } else { Status::NoAddrsAvail };
            inner.push(status_option(status));
            options.push(association(held, (0, 0), inner));
            continue;
        }
        if std::mem::replace(&mut served, true) {
            let status = if new { Status::NoAddrsAvail } else { Status::NoBinding };
            inner.push(status_option(status));
            options.push(association(held, (0, 0), inner));
            continue;
        }
        for addr in leased {
            inner.push(address(*addr, time));
        }
        for addr in held.addresses.iter().filter(|addr| !new && !leased.contains(addr)) {
            inner.push(address(*addr, 0));
        }
        // RFC 8415, section 21.4: T1 and T2 are 0.5 and 0.8 of the shortest preferred lifetime.
        options.push(association(held, (share(1, 2), share(4, 5)), inner));
    }
}

fn association(held: &Association, (t1, t2): (u32, u32), inner: Vec<DhcpOption>) -> DhcpOption {
    let (id, opts) = (held.id, in_order(inner));
    match held.code {
        IA_NA => DhcpOption::IANA(IANA { id, t1, t2, opts }),
        IA_PD => DhcpOption::IAPD(IAPD { id, t1, t2, opts }),
        _ => DhcpOption::IATA(IATA { id, opts }),
    }
}

fn address(addr: Ipv6Addr, time: u32) -> DhcpOption {
    DhcpOption::IAAddr(IAAddr { addr, preferred_life: time, valid_life: time, opts: DhcpOptions::new() })
}

fn status_option(status: Status) -> DhcpOption {
    DhcpOption::StatusCode(StatusCode { status, msg: String::new() })
}
