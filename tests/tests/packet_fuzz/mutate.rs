//! Ways to break a frame.

use ncm_tests::packet::{GUESTS, HOST_1, HOST_1_V6, HOST_2, Ipv6, Mac, REMOTES, Station, UNKNOWN_HOST};

use super::Input;
use super::random::Random;

/// Values that lengths, offsets and numbers trip over.
const WORDS: [u16; 14] = [0, 1, 2, 5, 7, 8, 19, 20, 39, 40, 0x1fff, 0x2000, 0x7fff, 0xffff];
const BYTES: [u8; 16] = [0, 1, 2, 6, 17, 43, 44, 51, 58, 59, 60, 63, 64, 128, 135, 255];

/// A host of nobody's, over IPv6.
const STRANGER_V6: Ipv6 = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 99];

pub(crate) fn mutate(input: &mut Input, random: &mut Random) {
    match input {
        Input::Guest(_, frame, _) | Input::Inner(_, _, frame) => {
            for _ in 0..=random.below(3) {
                once(frame, random);
            }
        }
        Input::Wire(frame) => once(frame, random),
    }
    if let Input::Inner(vni, source, _) = input
        && random.one_in(12)
    {
        *vni = random.pick(&[100, 200, 300, 400, 0, 0xff_ffff]);
        let hosts = [HOST_1.into(), HOST_2.into(), UNKNOWN_HOST.into(), HOST_1_V6.into(), STRANGER_V6.into()];
        *source = random.pick(&hosts);
    }
}

fn once(frame: &mut Vec<u8>, random: &mut Random) {
    if frame.len() < 15 {
        frame.resize(60, 0);
    }
    // Headers are at the front.
    let front = frame.len().min(if random.one_in(4) { 400 } else { 100 });
    let at = random.below(front);
    match random.below(12) {
        0 => frame[at] ^= 1 << random.below(8),
        1 => frame[at] = random.pick(&BYTES),
        2 => frame[at] = random.byte(),
        3 | 4 => {
            let word = if random.one_in(2) { random.pick(&WORDS) } else { near(frame.len(), random) };
            if at + 2 <= frame.len() {
                frame[at..at + 2].copy_from_slice(&word.to_be_bytes());
            }
        }
        5 => {
            frame.truncate(14.max(random.below(frame.len())));
        }
        6 => {
            let len = frame.len().saturating_sub(random.below(5)).max(14);
            frame.truncate(len);
        }
        7 => frame.extend((0..random.below(40)).map(|at| u8::try_from(at).unwrap_or(0))),
        8 => {
            // A stretch once more, as a header in front of itself.
            let end = (at + 8 * (1 + random.below(4))).min(frame.len());
            let stretch = frame[at..end].to_vec();
            frame.splice(at..at, stretch);
        }
        9 => {
            let end = (at + 4 * (1 + random.below(4))).min(frame.len());
            if frame.len() - (end - at) >= 14 {
                frame.drain(at..end);
            }
        }
        10 => {
            let tag = [0x81, 0, 0, random.byte()];
            frame.splice(12..12, tag);
        }
        _ => address(frame, random),
    }
}

/// About as long as the frame, without some of its headers.
fn near(len: usize, random: &mut Random) -> u16 {
    let less = random.pick(&[0, 14, 34, 42, 50, 54, 64, 84]);
    let near = (len + random.below(3)).saturating_sub(less + 1);
    u16::try_from(near).unwrap_or(u16::MAX)
}

/// Somebody else's MAC or address, in the place of what is there.
fn address(frame: &mut [u8], random: &mut Random) {
    let station = if random.one_in(2) {
        Station::from(random.pick(&GUESTS))
    } else {
        Station::from(random.pick(&REMOTES))
    };
    let gateways: [Mac; 3] =
        [station.subnet.gateway.0, station.subnet.gateway_v6().0, station.subnet.dvr_mac];
    let mac = if random.one_in(3) { random.pick(&gateways) } else { station.mac };
    let v6 = frame[12..14] == [0x86, 0xdd];
    let (at, bytes): (usize, Vec<u8>) = match random.below(4) {
        0 => (0, mac.to_vec()),
        1 => (6, mac.to_vec()),
        2 if v6 => (22, station.ip_v6.to_vec()),
        3 if v6 => (38, station.ip_v6.to_vec()),
        2 => (26, station.ip.to_vec()),
        _ => (30, station.ip.to_vec()),
    };
    if at + bytes.len() <= frame.len() {
        frame[at..at + bytes.len()].copy_from_slice(&bytes);
    }
}
