//! The judge: knows who is in the world, what the rules say and which flows were allowed, and asks of each outcome whether it may be.

use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ncm_common::counters::PathCounter;
use ncm_model::reference;
use ncm_model::wire::security_group_configuration::SecurityGroupRule;
use ncm_tests::packet::{
    A2, C1, Compiled, GROUPS, GUESTS, Guest, HERE, HERE_V6, HOST_1, HOST_1_V6, HOST_2, Mac, PAIR, REMOTES,
    Seen, Station, UP0, Verdict, World, link_local,
};

use super::parse::{Fragment, Parsed, parse, quoted};
use super::random::Random;

/// How a frame may leave a guest's program other than by a drop or up to tc.
const EXITS: [PathCounter; 8] = [
    PathCounter::LocalDelivered,
    PathCounter::Encapsulated,
    PathCounter::ArpAnswered,
    PathCounter::NdAnswered,
    PathCounter::EchoAnswered,
    PathCounter::TimeExceededSent,
    PathCounter::PacketTooBigSent,
    PathCounter::HandedUp,
];

/// Port, addresses and ports from its guest's view, protocol.
type Flow = (u32, IpAddr, IpAddr, (u16, u16), u8);
/// Port, direction, addresses, identification and, for IPv4, protocol.
type Cut = (u32, bool, IpAddr, IpAddr, u32, u8);

/// A tunnel frame for us: where its UDP header is, its VNI, and whether its sender may send into that.
struct Ours {
    udp: usize,
    vni: u32,
    known: bool,
}

pub(crate) struct Judge {
    compiled: Compiled,
    flows: HashSet<Flow>,
    cuts: HashSet<Cut>,
    context: String,
    ways: BTreeMap<PathCounter, u32>,
    /// Frames that left in a tunnel over IPv6.
    over_v6: u32,
}

impl Judge {
    pub(crate) fn new() -> Self {
        Self {
            compiled: Compiled::new(),
            flows: HashSet::new(),
            cuts: HashSet::new(),
            context: String::new(),
            ways: BTreeMap::new(),
            over_v6: 0,
        }
    }

    pub(crate) fn world(&self) -> &World {
        self.compiled.world()
    }

    /// What to say beside a failure.
    pub(crate) fn says(&mut self, context: &str) {
        context.clone_into(&mut self.context);
    }

    /// Other rules and groups; all flows are forgotten.
    pub(crate) fn new_policy(&mut self, random: &mut Random) {
        let rule =
            |direction, v6: bool, protocol, ports: (u32, u32), prefix: &str, group: &str| SecurityGroupRule {
                direction,
                ethertype: i32::from(v6),
                protocol,
                port_range_min: ports.0,
                port_range_max: ports.1,
                remote_ip_prefix: prefix.to_owned(),
                remote_group_id: group.to_owned(),
                ..SecurityGroupRule::default()
            };
        let mut rules = |count: usize| -> Vec<SecurityGroupRule> {
            let mut rules = Vec::new();
            for _ in 0..count {
                let v6 = random.one_in(2);
                let prefix =
                    if random.one_in(3) { if v6 { "fd0a:0:0:1::/64" } else { "10.0.1.0/24" } } else { "" };
                let group = if prefix.is_empty() && random.one_in(3) { random.pick(&GROUPS) } else { "" };
                let protocol = random.pick(&[0, 0, 1, 1, 2, 1000]);
                let ports = match protocol {
                    0 | 1 => random.pick(&[(0, 0), (22, 80), (53, 53), (80, 443), (1_000, 40_000)]),
                    2 => random.pick(&[(0, 0), (8, 0), (128, 0), (3, 4)]),
                    _ => (0, 0),
                };
                let rule = rule(i32::from(random.one_in(2)), v6, protocol, ports, prefix, group);
                if !rules.contains(&rule) {
                    rules.push(rule);
                }
            }
            rules
        };
        let all = [rules(6), rules(3), rules(1), Vec::new()];
        for (group, rules) in GROUPS.into_iter().zip(all) {
            self.compiled.set_rules(group, rules);
        }
        let groups = |random: &mut Random| -> Vec<&'static str> {
            if random.one_in(4) {
                return Vec::new();
            }
            GROUPS.into_iter().filter(|_| random.one_in(2)).collect()
        };
        for guest in GUESTS {
            let groups = groups(random);
            self.compiled.put_into(guest, &groups);
        }
        for remote in REMOTES {
            let groups = groups(random);
            self.compiled.join(remote, &groups);
        }
        self.compiled.forget();
        self.flows.clear();
        self.cuts.clear();
    }

    /// The run was worth its while: each way out was gone.
    pub(crate) fn assert_of_use(&self, frames: u32) {
        for exit in EXITS.into_iter().chain([
            PathCounter::DecapsulatedXdp,
            PathCounter::DecapsulatedRelay,
            PathCounter::Relayed,
            PathCounter::WirePassed,
            PathCounter::PassedToTc,
            PathCounter::ErrorRelated,
            PathCounter::FlowEstablished,
        ]) {
            assert!(
                self.ways.contains_key(&exit),
                "no {} among {frames} frames: {:?}",
                exit.name(),
                self.ways
            );
        }
        assert!(self.over_v6 > 0, "no tunnel over IPv6 among {frames} frames: {:?}", self.ways);
    }

    #[track_caller]
    fn hold(&self, right: bool, what: &str, seen: &Seen) {
        assert!(right, "{}: {what}\n{seen}", self.context);
    }

    fn note(&mut self, seen: &Seen) {
        for (counter, _) in &seen.counters {
            *self.ways.entry(*counter).or_default() += 1;
        }
    }

    /// A drop counts once, for one reason, and nothing leaves with it.
    fn dropped(&self, seen: &Seen) {
        let once = matches!(&seen.drops[..], [(_, 1)]) && seen.port_drops.len() == 1;
        self.hold(once, "a drop has one reason", seen);
        let left = seen.counters.iter().any(|(counter, _)| {
            EXITS.contains(counter)
                || matches!(
                    counter,
                    PathCounter::DecapsulatedRelay
                        | PathCounter::DecapsulatedXdp
                        | PathCounter::Relayed
                        | PathCounter::WirePassed
                        | PathCounter::PassedToTc
                )
        });
        self.hold(!left && seen.received.is_empty(), "a dropped frame has not left", seen);
    }

    pub(crate) fn sent_by_guest(&mut self, guest: Guest, seen: &Seen, gso_size: u32) {
        self.note(seen);
        match seen.verdict {
            Verdict::Dropped => {
                self.dropped(seen);
                return self.began(guest, seen);
            }
            Verdict::Passed => {
                let untouched = seen.hook.is_xdp() && seen.frame == seen.before && seen.drops.is_empty();
                self.hold(untouched, "only XDP passes a guest's frame up, as it is", seen);
                return self.hold(
                    seen.counters.contains(&(PathCounter::PassedToTc, 1)),
                    "what is passed up is counted",
                    seen,
                );
            }
            Verdict::Redirected => {}
            _ => self.hold(false, "a guest's frame is sent, dropped or passed up", seen),
        }
        self.hold(seen.drops.is_empty(), "what leaves is not dropped", seen);
        let exits: Vec<PathCounter> = seen
            .counters
            .iter()
            .map(|(counter, _)| *counter)
            .filter(|counter| EXITS.contains(counter))
            .collect();
        let [exit] = exits[..] else { return self.hold(false, "a frame leaves one way", seen) };
        match exit {
            PathCounter::LocalDelivered | PathCounter::Encapsulated => {
                self.forwarded(guest, seen, exit, gso_size)
            }
            PathCounter::HandedUp => {
                self.hold(seen.frame == seen.before, "what is handed up is as it came", seen);
                let asks = parse(&seen.before).is_some_and(|packet| {
                    packet.from == guest.mac
                        && (packet.icmp.is_some_and(|(kind, _)| kind == 133)
                            || matches!(packet.ports, Some((68, 67) | (546, 547))))
                });
                self.hold(asks, "only questions to the agent are handed up", seen);
            }
            _ => {
                let (to, from) = seen.macs();
                let all_nodes = exit == PathCounter::NdAnswered && to == [0x33, 0x33, 0, 0, 0, 1];
                self.hold(to == guest.mac || all_nodes, "an answer goes back to who asked", seen);
                self.hold(from != guest.mac, "an answer comes from another", seen);
                self.hold(seen.received == [guest.port], "an answer counts as received", seen);
                self.began(guest, seen);
                if exit != PathCounter::ArpAnswered {
                    self.hold(parse(&seen.frame).is_some(), "an answer is well-formed", seen);
                }
            }
        }
    }

    /// Whether the address is one that the guest may send from.
    fn may_send(guest: Guest, source: IpAddr) -> bool {
        match source {
            IpAddr::V4(ip) => {
                let pair = ip == Ipv4Addr::from(PAIR) || ip.octets()[..3] == [10, 77, 0];
                ip == Ipv4Addr::from(guest.ip) || guest.port == A2.port && pair
            }
            IpAddr::V6(ip) => {
                ip == Ipv6Addr::from(guest.ip_v6()) || ip == Ipv6Addr::from(link_local(guest.mac))
            }
        }
    }

    fn stations() -> impl Iterator<Item = Station> {
        GUESTS.into_iter().map(Station::from).chain(REMOTES.into_iter().map(Station::from))
    }

    /// Whom the frame is for, and whether it is routed there.
    fn whom(guest: Guest, packet: &Parsed) -> Option<(Station, bool)> {
        let v6 = packet.source.is_ipv6();
        let subnet = guest.subnet;
        let gateways: [Mac; 2] = [subnet.gateway.0, subnet.gateway_v6().0];
        if gateways.contains(&packet.to) {
            let tenant =
                |station: &Station| (station.subnet.vni == C1.subnet.vni) == (subnet.vni == C1.subnet.vni);
            let found =
                Self::stations().find(|station| tenant(station) && station.address(v6) == packet.destination);
            return found.map(|station| (station, true));
        }
        Self::stations()
            .find(|station| station.subnet.vni == subnet.vni && station.mac == packet.to)
            .map(|station| (station, false))
    }

    /// A guest's packet did not leave, but may have begun a flow where policy allows it: it was refused further on.
    fn began(&mut self, guest: Guest, seen: &Seen) {
        let Some(packet) = parse(&seen.before) else { return };
        let Some((other, _)) = Self::whom(guest, &packet) else { return };
        if packet.from == guest.mac
            && Self::may_send(guest, packet.source)
            && self.is_allowed(guest, false, &packet, &other)
        {
            self.admit(guest, false, &packet);
            // Also at the receiver's: too large a packet is refused last.
            if let Some(receiver) = other.guest
                && self.is_allowed(receiver, true, &packet, &Station::from(guest))
            {
                self.admit(receiver, true, &packet);
            }
        }
    }

    /// A guest's packet left for another guest or into the tunnel.
    fn forwarded(&mut self, guest: Guest, seen: &Seen, exit: PathCounter, gso_size: u32) {
        let Some(packet) = parse(&seen.before) else {
            return self.hold(false, "what is forwarded is a well-formed packet", seen);
        };
        self.hold(packet.from == guest.mac, "the source MAC is the guest's", seen);
        self.hold(Self::may_send(guest, packet.source), "the source address is the guest's", seen);
        let Some((to, routed)) = Self::whom(guest, &packet) else {
            return self.hold(false, "the destination is known", seen);
        };
        self.hold(to.guest.is_none_or(|to| to.port != guest.port), "nobody sends to himself", seen);
        let control = packet.protocol == 17
            && packet.ports.is_some_and(|(from, to)| {
                let ports: [u16; 2] = if packet.source.is_ipv6() { [546, 547] } else { [67, 68] };
                to == ports[0] || to == ports[1] || from == if packet.source.is_ipv6() { 547 } else { 67 }
            });
        let discovery =
            packet.source.is_ipv6() && packet.icmp.is_some_and(|(kind, _)| (133..=137).contains(&kind));
        self.hold(!control && !discovery, "what a network says to its own is not forwarded", seen);
        let out = match to.guest {
            Some(receiver) => {
                self.hold(exit == PathCounter::LocalDelivered, "it is for a guest of this host", seen);
                self.hold(seen.received == [receiver.port], "it goes to whom it is for", seen);
                seen.frame.clone()
            }
            None => {
                self.hold(exit == PathCounter::Encapsulated, "it is for another host", seen);
                let outer = self.wrapped(&to, seen, gso_size);
                self.over_v6 += u32::from(outer == 70);
                seen.frame[outer..].to_vec()
            }
        };
        self.same(&packet, &out, to.mac, routed, seen);
        self.justify(guest, false, &packet, &to, seen);
        if let Some(receiver) = to.guest {
            self.justify(receiver, true, &packet, &Station::from(guest), seen);
        }
    }

    /// The tunnel leads to the host of whom the packet is for. Gives the bytes of its headers.
    fn wrapped(&self, to: &Station, seen: &Seen, gso_size: u32) -> usize {
        // The kernel writes the lengths of segments.
        if gso_size == 0 {
            let came = if to.host.is_ipv4() {
                let tunnel = seen.tunnelled(0);
                (IpAddr::from(tunnel.source), IpAddr::from(tunnel.destination), tunnel.vni, tunnel.port)
            } else {
                let tunnel = seen.tunnelled_v6(0);
                (IpAddr::from(tunnel.source), IpAddr::from(tunnel.destination), tunnel.vni, tunnel.port)
            };
            let here = if to.host.is_ipv4() { IpAddr::from(HERE) } else { IpAddr::from(HERE_V6) };
            let right = came == (here, to.host, to.subnet.vni, 4789);
            self.hold(right, "the tunnel leads to the other's host, in its VNI", seen);
        }
        if to.host.is_ipv4() { 50 } else { 70 }
    }

    /// What left is what came, but for MACs and TTL.
    fn same(&self, packet: &Parsed, out: &[u8], to: Mac, routed: bool, seen: &Seen) {
        let Some(left) = parse(out) else {
            return self.hold(false, "what leaves is well-formed", seen);
        };
        self.hold(left.to == to, "it has the other's MAC", seen);
        self.hold(out.len() == seen.before.len(), "it is as long as it was", seen);
        let ttl = if routed { packet.ttl.saturating_sub(1) } else { packet.ttl };
        self.hold(left.ttl == ttl && (!routed || ttl > 0), "a router takes one off the TTL", seen);
        let rest = |frame: &[u8]| {
            let mut bytes = frame[12..].to_vec();
            let (ttl, sum) = if bytes[0] == 8 { (10, 12..14) } else { (9, 9..9) };
            bytes[ttl] = 0;
            bytes[sum].fill(0);
            bytes
        };
        self.hold(rest(out) == rest(&seen.before), "nothing else has changed", seen);
    }

    /// Policy, or a flow that it allowed, lets the packet through at the port of that guest.
    fn justify(&mut self, guest: Guest, to_guest: bool, packet: &Parsed, other: &Station, seen: &Seen) {
        if let Fragment::Later(_) = packet.fragment {
            // Who sends decides about fragments; between guests of one host they are one decision.
            let known = [to_guest, false].into_iter().any(|way| {
                let Some(of) = Self::cut(guest, way, packet) else { return false };
                self.cuts.contains(&of)
                    || to_guest && self.cuts.iter().any(|cut| (cut.2, cut.3, cut.4) == (of.2, of.3, of.4))
            });
            return self.hold(known, "a later fragment follows a first one", seen);
        }
        let allowed = self.is_allowed(guest, to_guest, packet, other);
        let known = Self::flow(guest, to_guest, packet).is_some_and(|flow| self.flows.contains(&flow));
        let related = packet.is_error() && self.is_related(guest, to_guest, packet);
        self.hold(allowed || known || related, "policy or a flow allows it", seen);
        self.admit(guest, to_guest, packet);
    }

    /// The flow that the packet is of, at the port of that guest.
    fn flow(guest: Guest, to_guest: bool, packet: &Parsed) -> Option<Flow> {
        let (from, to) = packet.ports?;
        Some(if to_guest {
            (guest.port, packet.destination, packet.source, (to, from), packet.protocol)
        } else {
            (guest.port, packet.source, packet.destination, (from, to), packet.protocol)
        })
    }

    /// What all fragments of the packet have in common.
    fn cut(guest: Guest, to_guest: bool, packet: &Parsed) -> Option<Cut> {
        let (Fragment::First(id) | Fragment::Later(id)) = packet.fragment else { return None };
        let protocol = if packet.source.is_ipv6() { 44 } else { packet.protocol };
        Some((guest.port, to_guest, packet.source, packet.destination, id, protocol))
    }

    /// Notes what the packet, which was let through, opens the way for.
    fn admit(&mut self, guest: Guest, to_guest: bool, packet: &Parsed) {
        if let Some(flow) = Self::flow(guest, to_guest, packet).filter(|_| packet.may_begin()) {
            self.flows.insert(flow);
        }
        if let Some(cut) = Self::cut(guest, to_guest, packet) {
            self.cuts.insert(cut);
        }
    }

    /// What the rules say.
    fn is_allowed(&self, guest: Guest, to_guest: bool, packet: &Parsed, other: &Station) -> bool {
        let remote = if to_guest { packet.source } else { packet.destination };
        let members = if other.address(remote.is_ipv6()) == remote {
            self.compiled.members(other.mac, other.subnet)
        } else {
            Vec::new()
        };
        let port = match (packet.icmp, packet.ports) {
            (Some((kind, code)), _) => u16::from_be_bytes([kind, code]),
            (None, Some((_, to))) => to,
            (None, None) => 0,
        };
        let question = reference::Packet { to_guest, remote, members, protocol: packet.protocol, port };
        self.compiled.allows(guest, &question)
    }

    /// The error quotes a packet of a flow that the guest sent (or, from the guest, was sent).
    fn is_related(&self, guest: Guest, to_guest: bool, error: &Parsed) -> bool {
        let Some(packet) = error.body.get(8..).and_then(|body| quoted(body, error.source.is_ipv6())) else {
            return false;
        };
        let Some((from, to)) = packet.ports else { return false };
        let flow = if to_guest {
            (guest.port, packet.source, packet.destination, (from, to), packet.protocol)
        } else {
            (guest.port, packet.destination, packet.source, (to, from), packet.protocol)
        };
        packet.source == error.destination && self.flows.contains(&flow)
    }

    /// What a frame on the wire says of its tunnel, if it is one for us.
    fn ours(frame: &[u8]) -> Option<Ours> {
        let is = |at: usize, bytes: &[u8]| frame.get(at..at + bytes.len()) == Some(bytes);
        let v4 = is(12, &[8, 0, 0x45])
            && is(23, &[17])
            && is(30, &HERE)
            && frame[20] & 0x3f == 0
            && frame[21] == 0;
        let v6 = is(12, &[0x86, 0xdd]) && frame.get(14)? >> 4 == 6 && is(20, &[17]) && is(38, &HERE_V6);
        let udp = if v4 { 34 } else { 54 };
        if !(v4 || v6) || !is(0, &UP0) || !is(udp + 2, &4789_u16.to_be_bytes()) || frame.len() < udp + 16 {
            return None;
        }
        let vni = u32::from_be_bytes([0, frame[udp + 12], frame[udp + 13], frame[udp + 14]]);
        let of_one = (v4 && is(26, &HOST_1)) || (v6 && is(22, &HOST_1_V6));
        let of_two = v4 && is(26, &HOST_2);
        let known = if vni == C1.subnet.vni { of_two } else { of_one };
        (frame[udp + 8] & 8 != 0 && [100, 200, 300].contains(&vni)).then_some(Ours { udp, vni, known })
    }

    pub(crate) fn came_by_wire(&mut self, seen: &Seen) {
        self.note(seen);
        let ours = Self::ours(&seen.before);
        match seen.verdict {
            Verdict::Dropped => {
                self.dropped(seen);
                self.hold(ours.is_some(), "only what is ours is ours to drop", seen);
                if let Some(Ours { udp, vni, .. }) = ours {
                    self.arrived(vni, &seen.before[udp + 16..]);
                }
            }
            Verdict::Passed if seen.counters.iter().any(|(counter, _)| *counter == PathCounter::Relayed) => {
                let Some(Ours { udp, known: true, .. }) = ours else {
                    return self.hold(false, "only what is ours is readdressed", seen);
                };
                let mut before = seen.before.clone();
                before[udp + 2..udp + 4].copy_from_slice(&47890_u16.to_be_bytes());
                before[udp + 6..udp + 8].copy_from_slice(&seen.frame[udp + 6..udp + 8]);
                self.hold(before == seen.frame && seen.drops.is_empty(), "nothing else changes", seen);
            }
            Verdict::Passed => {
                self.hold(ours.is_none(), "what is ours does not reach the host as it is", seen);
                self.hold(
                    seen.frame == seen.before && seen.drops.is_empty(),
                    "what is not ours is not touched",
                    seen,
                );
            }
            Verdict::Redirected => {
                let Some(Ours { udp, vni, known: true }) = ours else {
                    return self.hold(false, "only what is ours is delivered", seen);
                };
                self.hold(seen.hook.is_xdp(), "tc leaves tunnel frames to the kernel", seen);
                let inner = seen.before[udp + 16..].to_vec();
                self.delivered(vni, &Seen { before: inner, ..seen.clone() });
            }
            _ => self.hold(false, "a frame of the wire passes, is delivered or dropped", seen),
        }
    }

    pub(crate) fn came_by_relay(&mut self, vni: u32, source: IpAddr, seen: &Seen) {
        self.note(seen);
        match seen.verdict {
            Verdict::Dropped => {
                self.dropped(seen);
                self.arrived(vni, &seen.before);
            }
            Verdict::Redirected => {
                let host = if vni == C1.subnet.vni { HOST_2 } else { HOST_1 };
                let known =
                    source == IpAddr::from(host) || vni != C1.subnet.vni && source == IpAddr::from(HOST_1_V6);
                self.hold(known, "its sender may send into the VNI", seen);
                self.delivered(vni, seen);
            }
            _ => self.hold(false, "what the kernel decapsulated is delivered or dropped", seen),
        }
    }

    /// Whom a packet out of the tunnel is for, and from.
    fn arriving(vni: u32, packet: &Parsed) -> Option<(Guest, Station)> {
        let guest = GUESTS.into_iter().find(|guest| guest.subnet.vni == vni && guest.mac == packet.to)?;
        let tenant = |station: &Station| (station.subnet.vni == C1.subnet.vni) == (vni == C1.subnet.vni);
        let other = Self::stations()
            .filter(|station| tenant(station))
            .find(|station| station.address(packet.source.is_ipv6()) == packet.source);
        let unknown = Station { mac: packet.from, ..Station::from(REMOTES[0]) };
        Some((guest, other.unwrap_or(unknown)))
    }

    /// A packet out of the tunnel was dropped, but may have begun a flow: it was refused further on.
    fn arrived(&mut self, vni: u32, inner: &[u8]) {
        let Some(packet) = parse(inner) else { return };
        let Some((guest, other)) = Self::arriving(vni, &packet) else { return };
        if self.is_allowed(guest, true, &packet, &other) {
            self.admit(guest, true, &packet);
        }
    }

    /// A frame out of the tunnel was given to a guest.
    fn delivered(&mut self, vni: u32, seen: &Seen) {
        self.hold(seen.drops.is_empty(), "what is delivered is not dropped", seen);
        let Some(packet) = parse(&seen.before) else {
            return self.hold(false, "what is delivered is a well-formed packet", seen);
        };
        let Some((guest, other)) = Self::arriving(vni, &packet) else {
            return self.hold(false, "its guest is here", seen);
        };
        self.hold(seen.received == [guest.port], "it goes to whom it is for", seen);
        let (to, from) = seen.macs();
        let gateways = [guest.subnet.gateway.0, guest.subnet.gateway_v6().0];
        self.hold(to == guest.mac && seen.frame[12..] == seen.before[12..], "it is as it was sent", seen);
        self.hold(
            from == packet.from || gateways.contains(&from),
            "it comes from its sender or the gateway",
            seen,
        );
        let own = gateways[usize::from(packet.source.is_ipv6())];
        self.hold(packet.from[0] & 1 == 0 && packet.from != own, "its sender is a station", seen);
        self.hold(other.guest.is_none(), "nobody here speaks through the tunnel", seen);
        self.justify(guest, true, &packet, &other, seen);
    }
}
