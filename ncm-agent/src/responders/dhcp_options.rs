//! The options of a DHCP answer: what each is for this guest, and which have room.

use std::net::Ipv4Addr;

use dhcproto::v4::{Encoder, OptionCode, encode_long_opt_bytes};
use ipnet::Ipv4Net;
use ncm_model::lease::options::route;
use ncm_model::lease::{LeaseFacts, LeaseV4, split_name};

/// Seconds of a lease, unless the subnet says otherwise.
pub(super) const LEASE: u32 = 86_400;
/// A lease without end (RFC 2131, section 3.3).
const INFINITE: u32 = u32::MAX;

pub(super) const MASK: u8 = 1;
pub(super) const ROUTER: u8 = 3;
pub(super) const DNS: u8 = 6;
pub(super) const HOST_NAME: u8 = 12;
pub(super) const DOMAIN_NAME: u8 = 15;
pub(super) const MTU: u8 = 26;
pub(super) const BROADCAST: u8 = 28;
pub(super) const REQUESTED: u8 = 50;
pub(super) const LEASE_TIME: u8 = 51;
pub(super) const OVERLOAD: u8 = 52;
pub(super) const MESSAGE_TYPE: u8 = 53;
pub(super) const SERVER: u8 = 54;
pub(super) const PARAMETERS: u8 = 55;
pub(super) const MESSAGE: u8 = 56;
pub(super) const MAX_SIZE: u8 = 57;
pub(super) const RENEWAL: u8 = 58;
pub(super) const REBINDING: u8 = 59;
pub(super) const CLIENT: u8 = 61;
pub(super) const BOOT_FILE: u8 = 67;
pub(super) const RAPID_COMMIT: u8 = 80;
pub(super) const ROUTES: u8 = 121;
/// Classless static routes as Windows asked for them before RFC 3442.
pub(super) const ROUTES_MS: u8 = 249;

/// What a guest needs for its network to work: it gets these also where it does not ask.
const NEEDED: [u8; 4] = [MASK, ROUTER, DNS, MTU];

/// Bytes of the fields `file` and `sname`, which take options that the others have no room for.
pub(super) const FILE: usize = 128;
pub(super) const SNAME: usize = 64;
/// No option, between others.
pub(super) const PAD: u8 = 0;
/// The last one.
pub(super) const END: u8 = 255;

/// Lease, renewal and rebinding times in seconds; the latter two not where there is no end.
pub(super) fn times(lease: &LeaseV4) -> (u32, Option<(u32, u32)>) {
    let given = |code| lease.extras.v4(code).and_then(|data| data.try_into().ok()).map(u32::from_be_bytes);
    let time = given(LEASE_TIME).unwrap_or(LEASE);
    if time == INFINITE {
        return (time, None);
    }
    // RFC 2131, section 4.4.5.
    let rebinding = given(REBINDING).filter(|rebinding| *rebinding < time).unwrap_or(time - time / 8);
    let renewal = given(RENEWAL).filter(|renewal| *renewal < rebinding).unwrap_or((time / 2).min(rebinding));
    (time, Some((renewal, rebinding)))
}

/// An option's value, in parts: where not all have room, the first that have are sent.
fn parts(code: u8, facts: &LeaseFacts, lease: &LeaseV4) -> Vec<Vec<u8>> {
    if let Some(data) = lease.extras.v4(code) {
        return whole(data.to_vec());
    }
    match code {
        MASK => whole(lease.net.netmask().octets().to_vec()),
        ROUTER => lease.gateway.map_or_else(Vec::new, |gateway| whole(gateway.ip.octets().to_vec())),
        DNS => lease.dns.iter().map(|server| server.octets().to_vec()).collect(),
        HOST_NAME => whole(split_name(&lease.host_name).0.as_bytes().to_vec()),
        DOMAIN_NAME => whole(split_name(&lease.host_name).1.as_bytes().to_vec()),
        MTU if facts.mtu >= 68 => whole(facts.mtu.to_be_bytes().to_vec()),
        BROADCAST if lease.net.prefix_len() < 31 => whole(lease.net.broadcast().octets().to_vec()),
        ROUTES => routes(lease),
        ROUTES_MS => parts(ROUTES, facts, lease),
        _ => Vec::new(),
    }
}

fn whole(data: Vec<u8>) -> Vec<Vec<u8>> {
    if data.is_empty() { Vec::new() } else { vec![data] }
}

/// The router's routes. A client that takes them ignores the router option (RFC 3442), so that the default route is among
/// them. A next hop in the guest's own subnet is given as it is, any other is reached by the gateway.
fn routes(lease: &LeaseV4) -> Vec<Vec<u8>> {
    if lease.routes.is_empty() {
        return Vec::new();
    }
    let mut all: Vec<(Ipv4Net, Ipv4Addr)> = Vec::with_capacity(lease.routes.len() + 1);
    let gateway = lease.gateway.map(|gateway| gateway.ip);
    if !lease.routes.iter().any(|(net, _)| net.prefix_len() == 0)
        && let Some(gateway) = gateway
    {
        all.push((Ipv4Net::default(), gateway));
    }
    for (net, next_hop) in &lease.routes {
        // What the guest itself is the next hop of, it knows better.
        if *next_hop == lease.address {
            continue;
        }
        let direct = lease.net.contains(next_hop).then_some(*next_hop);
        all.extend(direct.or(gateway).map(|next_hop| (*net, next_hop)));
    }
    all.iter()
        .map(|(net, next_hop)| {
            let mut data = Vec::with_capacity(9);
            route(&mut data, *net, *next_hop);
            data
        })
        .collect()
}

/// Where an answer's options go: the field for them, and where that is full, `file` and `sname` (option overload).
pub(super) struct Options {
    options: Vec<u8>,
    room: usize,
    file: Option<Vec<u8>>,
    sname: Vec<u8>,
    given: [bool; 256],
}

/// The fields of an answer that options fill.
pub(super) struct Filled {
    /// The field for options, with its end.
    pub(super) options: Vec<u8>,
    /// `file`, if options are in it.
    pub(super) file: Option<Vec<u8>>,
    /// `sname`, likewise.
    pub(super) sname: Option<Vec<u8>>,
}

impl Options {
    /// For an answer of which `room` bytes are for options, and `file` too unless it is `taken`.
    pub(super) fn new(room: usize, taken: bool) -> Self {
        Self {
            options: Vec::with_capacity(room),
            // Of the overload option and of the end.
            room: room.saturating_sub(4),
            file: (!taken).then(Vec::new),
            sname: Vec::new(),
            given: [false; 256],
        }
    }

    /// Adds an option once, whole or not at all; says whether it is there.
    pub(super) fn add(&mut self, code: u8, data: &[u8]) -> bool {
        if self.given[usize::from(code)] {
            return true;
        }
        let mut encoded = Vec::with_capacity(data.len() + 2);
        if data.is_empty() {
            encoded.extend([code, 0]);
        } else if encode_long_opt_bytes(OptionCode::from(code), data, &mut Encoder::new(&mut encoded))
            .is_err()
        {
            return false;
        }
        let fits = |field: &Vec<u8>, room: usize| field.len() + encoded.len() <= room;
        let field = if fits(&self.options, self.room) {
            &mut self.options
        } else if let Some(file) = self.file.as_mut().filter(|file| fits(file, FILE - 1)) {
            file
        } else if fits(&self.sname, SNAME - 1) {
            &mut self.sname
        } else {
            return false;
        };
        field.extend(encoded);
        self.given[usize::from(code)] = true;
        true
    }

    /// Adds as many of an option's parts as have room.
    fn add_parts(&mut self, code: u8, parts: &[Vec<u8>]) {
        for count in (1..=parts.len()).rev() {
            if self.add(code, &parts[..count].concat()) {
                return;
            }
        }
    }

    /// Adds what the client asks for, in its order (RFC 2132, section 9.8), then what it needs, then what the subnet adds.
    pub(super) fn add_configuration(&mut self, requested: &[u8], facts: &LeaseFacts, lease: &LeaseV4) {
        // Times are the lease's, not the configuration's.
        for code in [LEASE_TIME, RENEWAL, REBINDING] {
            self.given[usize::from(code)] = true;
        }
        let extras = lease.extras.v4.iter().map(|(code, _)| code);
        for code in requested.iter().chain(&NEEDED).chain(extras) {
            if !self.given[usize::from(*code)] {
                self.add_parts(*code, &parts(*code, facts, lease));
            }
        }
    }

    /// Ends the fields.
    pub(super) fn finish(mut self) -> Filled {
        let filled = |mut field: Vec<u8>| {
            (!field.is_empty()).then(|| {
                field.push(END);
                field
            })
        };
        let file = self.file.take().and_then(filled);
        let sname = filled(self.sname);
        let overload = u8::from(file.is_some()) | u8::from(sname.is_some()) << 1;
        if overload != 0 {
            self.options.extend([OVERLOAD, 1, overload]);
        }
        self.options.push(END);
        Filled { options: self.options, file, sname }
    }
}
