//! Frames of every kind that may come along, as they should be.

use std::net::IpAddr;

use ncm_tests::packet::{
    A2, Arp, C1, GUESTS, Guest, HERE_V6, HOST_1_V6, Ip, Ip6, Outer, OuterV6, PAIR, REMOTES, Station, Talk,
    arp_request, echo_request, ethernet, fragment_header, icmp, icmp6, link_local, solicitation, tcp, tunnel,
    tunnel_v6, udp, udp6,
};

use super::Input;
use super::random::Random;

const PORTS: [u16; 6] = [22, 53, 80, 443, 1_000, 40_000];
const FLAGS: [u8; 9] = [2, 2, 18, 16, 24, 17, 4, 20, 0];

/// What was sent lately: what answers and errors are about.
#[derive(Default)]
pub(crate) struct Sources {
    past: Vec<(Station, Station, Talk, bool)>,
    frames: Vec<Vec<u8>>,
}

/// An answer to what was said.
fn answer(talk: Talk) -> Talk {
    match talk {
        Talk::Tcp(2, from, to) => Talk::Tcp(18, to, from),
        Talk::Tcp(flags, from, to) => Talk::Tcp(flags, to, from),
        Talk::Udp(from, to) => Talk::Udp(to, from),
        Talk::Icmp(8, code, id) => Talk::Icmp(0, code, id),
        Talk::Icmp(128, code, id) => Talk::Icmp(129, code, id),
        other => other,
    }
}

fn any_talk(random: &mut Random) -> Talk {
    match random.below(8) {
        0..=2 => Talk::Tcp(random.pick(&FLAGS), random.pick(&PORTS), random.pick(&PORTS)),
        3..=5 => Talk::Udp(random.pick(&PORTS), random.pick(&PORTS)),
        6 => Talk::Icmp(
            random.pick(&[0, 3, 8, 8, 11, 128, 128, 129, 1, 2]),
            random.pick(&[0, 0, 0, 1]),
            random.word() & 3,
        ),
        _ => Talk::Other(random.pick(&[47, 50, 59, 132, 0, 44])),
    }
}

/// Two stations of one tenant, of which one is here.
fn any_pair(random: &mut Random) -> (Station, Station) {
    loop {
        let one = Station::from(random.pick(&GUESTS));
        let other = if random.one_in(2) {
            Station::from(random.pick(&GUESTS))
        } else {
            Station::from(random.pick(&REMOTES))
        };
        let tenant = |station: &Station| station.subnet.vni == C1.subnet.vni;
        if tenant(&one) == tenant(&other) && (one.mac, one.subnet.vni) != (other.mac, other.subnet.vni) {
            return if random.one_in(2) { (one, other) } else { (other, one) };
        }
    }
}

/// The frame, from where it comes.
fn from(from: &Station, to: &Station, frame: Vec<u8>) -> Input {
    match from.guest {
        Some(guest) => Input::Guest(guest, frame, 0),
        None => Input::Inner(to.subnet.vni, from.host, frame),
    }
}

impl Sources {
    pub(crate) fn remember(&mut self, input: &Input) {
        let (Input::Guest(_, frame, _) | Input::Inner(_, _, frame)) = input else { return };
        self.frames.push(frame.clone());
        if self.frames.len() > 30 {
            self.frames.remove(0);
        }
    }

    pub(crate) fn next(&mut self, random: &mut Random) -> Input {
        match random.below(24) {
            0..=6 => {
                let (from, to) = any_pair(random);
                let talk = any_talk(random);
                self.said(from, to, talk, random.one_in(2))
            }
            7..=10 => match self.past(random) {
                Some((from, to, talk, v6)) => self.said(to, from, answer(talk), v6),
                None => self.next(random),
            },
            11 => match self.past(random) {
                Some((from, to, talk, v6)) => self.said(from, to, talk, v6),
                None => self.next(random),
            },
            12..=13 => fragment(random),
            14 => extended(random),
            15 => options(random),
            16..=17 => self.error(random),
            18 => asked(random),
            19 => dhcp(random),
            20 => gateway(random),
            21 => large(random),
            22 => wire(random),
            _ => odd(random),
        }
    }

    fn past(&self, random: &mut Random) -> Option<(Station, Station, Talk, bool)> {
        if self.past.is_empty() { None } else { Some(self.past[random.below(self.past.len())]) }
    }

    fn said(&mut self, from: Station, to: Station, talk: Talk, v6: bool) -> Input {
        self.past.push((from, to, talk, v6));
        if self.past.len() > 20 {
            self.past.remove(0);
        }
        match from.guest {
            Some(guest) => Input::Guest(guest, talk.sent(&from, &to, v6), 0),
            None => Input::Inner(to.subnet.vni, from.host, talk.arriving(&from, &to, v6)),
        }
    }

    /// An ICMP error about one of the last frames, from whom it was for or from somebody else.
    fn error(&self, random: &mut Random) -> Input {
        let Some((source, destination, talk, v6)) = self.past(random) else { return gateway(random) };
        let teller = if random.one_in(4) { any_pair(random).0 } else { destination };
        let (macs, packet);
        if v6 {
            let mut quoted = talk.v6(source.ip_v6, destination.ip_v6);
            if random.one_in(3) {
                quoted = quoted.behind(60, vec![0, 0, 1, 4, 0, 0, 0, 0]);
            }
            if random.one_in(4) {
                quoted = quoted.behind(44, fragment_header(random.pick(&[0, 8]), true, 7));
            }
            let mut bytes = quoted.bytes();
            bytes.truncate(random.pick(&[40, 48, 56, 100]));
            let error =
                icmp6(teller.ip_v6, source.ip_v6, random.pick(&[1, 2, 3, 4]), 0, [0, 0, 5, 0], &bytes);
            (macs, packet) = (arriving_macs(&teller, &source, v6), error.bytes());
        } else {
            let mut bytes = talk.v4(source.ip, destination.ip).bytes();
            bytes.truncate(random.pick(&[20, 24, 28, 40]));
            let error = icmp(
                teller.ip,
                source.ip,
                random.pick(&[3, 11, 12]),
                random.pick(&[0, 3, 4]),
                [0, 0, 5, 0],
                &bytes,
            );
            (macs, packet) = (arriving_macs(&teller, &source, v6), error.bytes());
        }
        let frame = ethernet(macs.0, macs.1, if v6 { 0x86dd } else { 0x0800 }, &packet);
        from(&teller, &source, frame)
    }
}

/// MACs of a frame from one to the other, as it is where it is put in.
fn arriving_macs(from: &Station, to: &Station, v6: bool) -> ([u8; 6], [u8; 6]) {
    let frame = if from.guest.is_some() {
        Talk::Udp(1, 2).sent(from, to, v6)
    } else {
        Talk::Udp(1, 2).arriving(from, to, v6)
    };
    let mac =
        |at: usize| [frame[at], frame[at + 1], frame[at + 2], frame[at + 3], frame[at + 4], frame[at + 5]];
    (mac(0), mac(6))
}

/// A fragment of one of few packets.
fn fragment(random: &mut Random) -> Input {
    let (one, other) = any_pair(random);
    let talk = match random.below(3) {
        0 => Talk::Udp(random.pick(&PORTS), random.pick(&PORTS)),
        1 => Talk::Tcp(random.pick(&FLAGS), random.pick(&PORTS), random.pick(&PORTS)),
        _ => Talk::Icmp(random.pick(&[8, 128, 3]), 0, 1),
    };
    let (offset, more) = random.pick(&[
        (0_u16, true),
        (0, true),
        (8, true),
        (16, true),
        (24, false),
        (64, false),
        (1_400, false),
    ]);
    if random.one_in(2) {
        let macs = arriving_macs(&one, &other, true);
        let mut packet = talk.v6(one.ip_v6, other.ip_v6);
        packet.payload.resize(packet.payload.len().max(32), 0);
        if random.one_in(3) {
            packet = packet.behind(60, vec![0, 0, 1, 4, 0, 0, 0, 0]);
        }
        packet = packet.behind(44, fragment_header(offset, more, random.pick(&[1, 2])));
        return from(&one, &other, packet.frame(macs.0, macs.1));
    }
    let macs = arriving_macs(&one, &other, false);
    let mut packet = talk.v4(one.ip, other.ip);
    packet.payload.resize(packet.payload.len().max(32), 0);
    packet.fragment = (offset / 8) | if more { 0x2000 } else { 0 };
    from(&one, &other, packet.frame(macs.0, macs.1))
}

/// Behind extension headers.
fn extended(random: &mut Random) -> Input {
    let (one, other) = any_pair(random);
    let macs = arriving_macs(&one, &other, true);
    let mut packet = any_talk(random).v6(one.ip_v6, other.ip_v6);
    for _ in 0..=random.below(4) {
        let number = random.pick(&[0, 60, 60, 43, 44, 51, 135]);
        let header = if number == 44 {
            fragment_header(0, false, 3)
        } else {
            let words = random.pick(&[0_u8, 0, 1, 4, 31, 32, 63, 64, 70]);
            let mut header = vec![random.byte(); (usize::from(words) + 1) * 8];
            header[1] = words;
            header[2] = random.pick(&[0, 2, 4]);
            header
        };
        packet = packet.behind(number, header);
    }
    from(&one, &other, packet.frame(macs.0, macs.1))
}

/// Behind IPv4's options.
fn options(random: &mut Random) -> Input {
    let (one, other) = any_pair(random);
    let macs = arriving_macs(&one, &other, false);
    let words = 1 + random.below(10);
    let options = (0..words * 4).map(|_| random.pick(&[0, 1, 7, 131, 137, 148, 4, 11])).collect();
    let packet = Ip { options, ..any_talk(random).v4(one.ip, other.ip) };
    from(&one, &other, packet.frame(macs.0, macs.1))
}

/// What is asked of the network: who has an address, whether there is a router.
fn asked(random: &mut Random) -> Input {
    let guest = random.pick(&GUESTS);
    let other = any_pair(random).1;
    let all = [0x33, 0x33, 0, 0, 0, 2];
    let routers = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
    let hop = |packet: Ip6| Ip6 { hop_limit: 255, ..packet };
    let own = link_local(guest.mac);
    let frame = match random.below(9) {
        0 => arp_request(guest.pair(), other.ip),
        1 => arp_request(guest.pair(), guest.subnet.gateway.1),
        2 => arp_request((guest.mac, [0; 4]), other.ip),
        3 => Arp { operation: 2, sender: guest.pair(), target: (other.mac, other.ip) }
            .frame(other.mac, guest.mac),
        4 => solicitation(guest.pair_v6(), other.ip_v6),
        5 => solicitation((guest.mac, own), guest.subnet.gateway_v6().1),
        6 => hop(icmp6(own, routers, random.pick(&[133, 134, 135, 136, 137]), 0, [0; 4], &[0; 24]))
            .frame(all, guest.mac),
        7 => {
            icmp6(own, routers, random.pick(&[130, 131, 132, 143]), 0, [0; 4], &[0; 20]).frame(all, guest.mac)
        }
        _ => hop(icmp6(
            guest.ip_v6(),
            other.ip_v6,
            136,
            0,
            [0x60, 0, 0, 0],
            &[&guest.ip_v6()[..], &[2, 1], &guest.mac].concat(),
        ))
        .frame(other.mac, guest.mac),
    };
    if random.one_in(8) {
        Input::Inner(guest.subnet.vni, other.host, frame)
    } else {
        Input::Guest(guest, frame, 0)
    }
}

fn dhcp(random: &mut Random) -> Input {
    let guest = random.pick(&GUESTS);
    let ports = random.pick(&[(68, 67), (68, 67), (67, 68), (1_000, 67), (68, 1_000)]);
    let ports_v6 = random.pick(&[(546, 547), (546, 547), (547, 546), (1_000, 547)]);
    let servers = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 2];
    let frame = match random.below(3) {
        0 => udp(([0; 4], ports.0), ([255; 4], ports.1), &[1; 240]).frame([0xff; 6], guest.mac),
        1 => udp((guest.ip, ports.0), (guest.subnet.gateway.1, ports.1), &[1; 240])
            .frame(guest.subnet.gateway.0, guest.mac),
        _ => udp6((link_local(guest.mac), ports_v6.0), (servers, ports_v6.1), &[1; 60])
            .frame([0x33, 0x33, 0, 1, 0, 2], guest.mac),
    };
    Input::Guest(guest, frame, 0)
}

/// For a gateway itself, or with a TTL that runs out there.
fn gateway(random: &mut Random) -> Input {
    let guest = random.pick(&GUESTS);
    let (v4, v6) = (guest.subnet.gateway, guest.subnet.gateway_v6());
    let frame = match random.below(4) {
        0 => echo_request(guest.ip, v4.1).frame(v4.0, guest.mac),
        1 => icmp6(guest.ip_v6(), v6.1, 128, 0, [1, 2, 0, 1], b"data").frame(v6.0, guest.mac),
        2 => {
            let to = any_pair(random).1;
            Ip { ttl: random.pick(&[0, 1, 2]), ..any_talk(random).v4(guest.ip, to.ip) }.frame(v4.0, guest.mac)
        }
        _ => {
            let to = any_pair(random).1;
            Ip6 { hop_limit: random.pick(&[0, 1, 2]), ..any_talk(random).v6(guest.ip_v6(), to.ip_v6) }
                .frame(v6.0, guest.mac)
        }
    };
    Input::Guest(guest, frame, 0)
}

/// Near what fits the tunnel, or for a device to segment.
fn large(random: &mut Random) -> Input {
    let (one, other) = any_pair(random);
    let v6 = random.one_in(2);
    let macs = arriving_macs(&one, &other, v6);
    let bytes =
        vec![5; random.pick(&[1_300, 1_380, 1_382, 1_383, 1_400, 1_402, 1_422, 1_430, 1_472, 1_480, 2_900])];
    let frame = if v6 {
        udp6((one.ip_v6, 1_000), (other.ip_v6, 80), &bytes).frame(macs.0, macs.1)
    } else {
        tcp((one.ip, 1_000), (other.ip, 80), &bytes, false).frame(macs.0, macs.1)
    };
    match one.guest {
        Some(guest) => Input::Guest(guest, frame, random.pick(&[0, 0, 1_000, 1_400])),
        None => Input::Inner(other.subnet.vni, one.host, frame),
    }
}

/// A frame on the wire that may not be ours.
fn wire(random: &mut Random) -> Input {
    let (one, other) = any_pair(random);
    let inner = any_talk(random).arriving(&one, &other, random.one_in(2));
    let vni = random.pick(&[100, 200, 300, 77]);
    let IpAddr::V4(host) = one.host else { return Input::Wire(wire_v6(random, vni, &inner)) };
    let mut outer = Outer::new(host.octets(), [192, 0, 2, random.pick(&[1, 1, 1, 9])], vni);
    outer.flags = random.pick(&[8, 8, 8, 0, 0xff]);
    outer.checksum = random.one_in(2);
    outer.ports.1 = random.pick(&[4789, 4789, 4789, 4790]);
    outer.fragment = random.pick(&[0, 0, 0, 0x4000, 0x2000, 1]);
    if random.one_in(5) {
        outer.options = vec![1, 1, 1, 0];
    }
    Input::Wire(tunnel(&outer, &inner))
}

/// The same over IPv6.
fn wire_v6(random: &mut Random, vni: u32, inner: &[u8]) -> Vec<u8> {
    let to = if random.one_in(4) { HOST_1_V6 } else { HERE_V6 };
    let mut outer = OuterV6::new(HOST_1_V6, to, vni);
    outer.flags = random.pick(&[8, 8, 8, 0, 0xff]);
    outer.checksum = random.one_in(2);
    outer.ports.1 = random.pick(&[4789, 4789, 4789, 4790]);
    if random.one_in(5) {
        outer.extensions = vec![(random.pick(&[0, 60]), vec![0, 0, 1, 4, 0, 0, 0, 0])];
    }
    tunnel_v6(&outer, inner)
}

/// What nobody forwards, and what an allowed pair sends.
fn odd(random: &mut Random) -> Input {
    let (one, other) = any_pair(random);
    let macs = arriving_macs(&one, &other, false);
    match random.below(4) {
        0 => {
            let tagged = [&[0, 5, 8, 0][..], &any_talk(random).v4(one.ip, other.ip).bytes()].concat();
            from(&one, &other, ethernet(macs.0, macs.1, random.pick(&[0x8100, 0x88a8]), &tagged))
        }
        1 => from(
            &one,
            &other,
            ethernet(macs.0, macs.1, random.pick(&[0x88cc, 0x8847, 0x0000, 0x8035]), &[1; 60]),
        ),
        2 => {
            let source = random.pick(&[PAIR, [10, 77, 0, 9], [10, 78, 0, 9]]);
            let frame = any_talk(random).v4(source, other.ip).frame(other.mac, A2.mac);
            Input::Guest(A2, frame, 0)
        }
        _ => {
            let guest: Guest = random.pick(&GUESTS);
            let to = random.pick(&[
                [224, 0, 0, 1],
                [255; 4],
                [10, 0, 1, 255],
                [127, 0, 0, 1],
                [0; 4],
                [10, 9, 9, 9],
            ]);
            Input::Guest(guest, any_talk(random).v4(guest.ip, to).frame(other.mac, guest.mac), 0)
        }
    }
}
