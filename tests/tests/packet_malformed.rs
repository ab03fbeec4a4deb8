//! Frames cut short at every length and broken in every byte: never forwarded half understood, and no program ends
//! abnormally.

use std::net::IpAddr;

use ncm_dataplane::Hook;
use ncm_tests::packet::{
    A1, A2, B1, GATEWAY_A, Guest, HERE, HERE_V6, HOST_1, HOST_1_V6, Ip, Outer, OuterV6, RA, Seen, Verdict,
    World, arp_request, echo_request, fragment_header, icmp6, solicitation, tcp, tcp6, tunnel, tunnel_v6,
    udp, udp6,
};

/// The shortest frame that the kernel puts through a program at tc: an IPv4 header has to fit behind Ethernet.
const SHORTEST: usize = 34;

/// The shortest one of IPv6.
const SHORTEST_V6: usize = 54;

const GUEST: [Hook; 2] = [Hook::GuestTc, Hook::GuestXdp];

fn frames(from: Guest) -> Vec<(&'static str, Vec<u8>)> {
    let options = vec![7, 7, 4, 0, 0, 0, 0, 0];
    let gateway = from.subnet.gateway_v6();
    let extended = udp6((from.ip_v6(), 1), (RA.ip_v6(), 2), b"data")
        .behind(0, vec![0, 0, 5, 2, 0, 0, 1, 0])
        .behind(60, vec![0, 0, 1, 4, 0, 0, 0, 0])
        .behind(43, vec![0, 0, 2, 0, 0, 0, 0, 0])
        .behind(44, fragment_header(0, false, 7));
    vec![
        ("udp", udp((from.ip, 1), (A2.ip, 2), b"data").frame(A2.mac, from.mac)),
        ("tcp", tcp((from.ip, 1), (RA.ip, 2), b"data", false).frame(RA.mac, from.mac)),
        ("routed", udp((from.ip, 1), (B1.ip, 2), b"data").frame(GATEWAY_A.0, from.mac)),
        ("options", Ip { options, ..udp((from.ip, 1), (B1.ip, 2), b"data") }.frame(GATEWAY_A.0, from.mac)),
        ("ping", echo_request(from.ip, GATEWAY_A.1).frame(GATEWAY_A.0, from.mac)),
        ("arp", arp_request(from.pair(), GATEWAY_A.1)),
        ("udp6", udp6((from.ip_v6(), 1), (A2.ip_v6(), 2), b"data").frame(A2.mac, from.mac)),
        ("tcp6", tcp6((from.ip_v6(), 1), (RA.ip_v6(), 2), 2, b"data").frame(RA.mac, from.mac)),
        ("routed6", udp6((from.ip_v6(), 1), (B1.ip_v6(), 2), b"data").frame(gateway.0, from.mac)),
        ("extended", extended.frame(RA.mac, from.mac)),
        ("ping6", icmp6(from.ip_v6(), gateway.1, 128, 0, [1, 2, 0, 1], b"data").frame(gateway.0, from.mac)),
        ("solicitation", solicitation(from.pair_v6(), gateway.1)),
        ("expired", Ip { ttl: 1, ..udp((from.ip, 1), (B1.ip, 2), b"data") }.frame(GATEWAY_A.0, from.mac)),
    ]
}

#[test]
fn a_guests_frame_cut_at_any_length_is_dropped() {
    let world = World::new();
    for (name, frame) in frames(A1) {
        for len in 14..frame.len() {
            for hook in GUEST {
                let shortest = if frame[12..14] == [0x86, 0xdd] { SHORTEST_V6 } else { SHORTEST };
                if len < shortest && hook == Hook::GuestTc {
                    continue;
                }
                let seen = world.from_guest_at(hook, A1, frame[..len].to_vec());
                assert_eq!(seen.verdict, Verdict::Dropped, "{name} cut to {len}\n{seen}");
                assert_eq!(
                    seen.drops.iter().map(|(_, count)| count).sum::<u64>(),
                    1,
                    "{name} cut to {len}\n{seen}"
                );
            }
        }
    }
}

/// What may become of a guest's frame whatever is in it: it never goes on to the host's stack (from XDP only to tc).
fn assert_closed(what: &str, seen: &Seen) {
    let sound = match seen.verdict {
        Verdict::Dropped => !seen.drops.is_empty(),
        Verdict::Redirected | Verdict::Returned => seen.drops.is_empty(),
        Verdict::Passed => seen.hook == Hook::GuestXdp && seen.frame == seen.before,
        _ => false,
    };
    assert!(sound, "{what}\n{seen}");
}

#[test]
fn a_guests_frame_with_any_byte_changed_never_reaches_the_host() {
    let world = World::new();
    for (name, frame) in frames(A1) {
        for at in 0..frame.len().min(54) {
            for value in [0, 0xff, frame[at] ^ 1, frame[at] ^ 0x40] {
                let mut broken = frame.clone();
                broken[at] = value;
                for hook in GUEST {
                    let seen = world.from_guest_at(hook, A1, broken.clone());
                    assert_closed(&format!("{name}: byte {at} = {value:#x}"), &seen);
                }
            }
        }
    }
}

/// A tunnel frame over IPv4 and one over IPv6, the bytes of their outer headers, and the host that they are from.
fn tunnels(inner: &[u8]) -> [(Vec<u8>, usize, IpAddr); 2] {
    [
        (tunnel(&Outer::new(HOST_1, HERE, 100), inner), 50, HOST_1.into()),
        (tunnel_v6(&OuterV6::new(HOST_1_V6, HERE_V6, 100), inner), 70, HOST_1_V6.into()),
    ]
}

#[test]
fn a_tunnel_frame_cut_at_any_length_is_dropped_or_not_ours() {
    let world = World::new();
    let inner = udp((RA.ip, 1), (A1.ip, 2), b"data").frame(A1.mac, RA.mac);
    for (frame, outer, host) in tunnels(&inner) {
        for len in 14..frame.len() {
            let seen = world.from_wire(Hook::WireXdp, frame[..len].to_vec());
            if seen.verdict == Verdict::Passed {
                assert!(len < outer, "a whole tunnel header is ours, cut to {len}\n{seen}");
                seen.assert_untouched();
            } else {
                assert_eq!(seen.verdict, Verdict::Dropped, "cut to {len}\n{seen}");
            }
            if len < outer - 16 {
                continue;
            }
            let seen = world.from_wire(Hook::WireTc, frame[..len].to_vec());
            assert_eq!(
                seen.verdict,
                Verdict::Passed,
                "the kernel decapsulates, or it is not ours: cut to {len}\n{seen}"
            );
        }
        for len in SHORTEST..inner.len() {
            let seen = world.from_relay(100, host, inner[..len].to_vec());
            assert_eq!(seen.verdict, Verdict::Dropped, "cut to {len}\n{seen}");
        }
    }
}

#[test]
fn a_tunnel_frame_with_any_byte_changed_goes_to_its_guest_or_nowhere() {
    let world = World::new();
    let inner = udp((RA.ip, 1), (A1.ip, 2), b"data").frame(A1.mac, RA.mac);
    for (frame, outer, host) in tunnels(&inner) {
        for at in 0..frame.len() {
            for value in [0, 0xff, frame[at] ^ 1, frame[at] ^ 0x40] {
                let mut broken = frame.clone();
                broken[at] = value;
                let what = format!("byte {at} = {value:#x}");
                let seen = world.from_wire(Hook::WireXdp, broken.clone());
                match seen.verdict {
                    Verdict::Dropped => assert!(!seen.drops.is_empty(), "{what}\n{seen}"),
                    Verdict::Redirected => assert_eq!(seen.received, [A1.port], "{what}\n{seen}"),
                    Verdict::Passed => assert!(at < outer, "ours by its outer headers: {what}\n{seen}"),
                    _ => panic!("{what}\n{seen}"),
                }
                if at >= outer {
                    let seen = world.from_relay(100, host, broken[outer..].to_vec());
                    let sound = match seen.verdict {
                        Verdict::Dropped => !seen.drops.is_empty(),
                        Verdict::Redirected => seen.received == [A1.port],
                        _ => false,
                    };
                    assert!(sound, "{what}\n{seen}");
                }
            }
        }
    }
}
