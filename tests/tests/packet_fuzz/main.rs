//! Frames of every kind, whole and broken, through every program, judged from outside: no frame leaves without a decision that
//! allows it. What leaves is a well-formed frame of its sender's own, goes to whom it names, and policy (or a flow that policy allowed)
//! lets it through at each port that it passes. Everything else is dropped for one reason, answered, handed up, or on the wire
//! side passed untouched.
//!
//! Frames are drawn from a seed, so that a run can be had again: `NCM_SEED`. `cargo xtask test long` goes on for minutes, or for as many
//! seconds as `NCM_FUZZ_SECONDS` says.

mod frames;
mod judge;
mod mutate;
mod parse;
mod random;

use std::net::IpAddr;
use std::time::{Duration, Instant};

use judge::Judge;
use ncm_common::counters::PathCounter;
use ncm_dataplane::{Hook, TestRun};
use ncm_tests::packet::{HOST_1, HOST_1_V6, Seen, Verdict, World, tunnel_from};
use random::Random;

/// Frames that are put in under one policy.
const ROUND: u32 = 250;

/// A frame from a guest (by its place in [`ncm_tests::packet::GUESTS`]), or from another host.
pub(crate) enum Input {
    /// From a guest, at XDP or tc; size of its segments, if it stands for several.
    Guest(ncm_tests::packet::Guest, Vec<u8>, u32),
    /// From the wire: VNI and outer source, and the frame in the tunnel.
    Inner(u32, IpAddr, Vec<u8>),
    /// From the wire, as it is.
    Wire(Vec<u8>),
}

/// What a kernel takes as a test frame at tc: a whole IP header, if it names one.
fn is_whole(frame: &[u8]) -> bool {
    let least = match frame.get(12..14) {
        Some([8, 0]) => 34,
        Some([0x86, 0xdd]) => 54,
        _ => 14,
    };
    frame.len() >= least
}

fn at_guest(world: &World, hook: Hook, interface: &str, frame: &[u8], gso_size: u32) -> Seen {
    world.run(hook, TestRun { gso_size, ..TestRun::new(frame.to_vec(), world.ifindex(interface)) })
}

fn at_relay(judge: &mut Judge, vni: u32, source: IpAddr, inner: &[u8]) {
    if is_whole(inner) {
        let seen = judge.world().from_relay(vni, source, inner.to_vec());
        judge.came_by_relay(vni, source, &seen);
    }
}

/// Puts a frame in wherever it may come from, and has each outcome judged.
fn put_in(judge: &mut Judge, random: &mut Random, input: &Input) {
    match input {
        Input::Guest(guest, frame, gso_size) => {
            let mut at_tc = is_whole(frame);
            if *gso_size == 0 && frame.len() <= 3_000 && random.one_in(2) {
                let seen = at_guest(judge.world(), Hook::GuestXdp, guest.interface, frame, 0);
                judge.sent_by_guest(*guest, &seen, 0);
                at_tc &= seen.verdict == Verdict::Passed;
            }
            if at_tc {
                let seen = at_guest(judge.world(), Hook::GuestTc, guest.interface, frame, *gso_size);
                judge.sent_by_guest(*guest, &seen, *gso_size);
            }
        }
        Input::Inner(vni, source, inner) => {
            if random.one_in(2) {
                // Host 1 may take either way.
                let other = *source == IpAddr::from(HOST_1) && random.one_in(3);
                let source = if other { HOST_1_V6.into() } else { *source };
                put_in(judge, random, &Input::Wire(tunnel_from(source, *vni, inner)));
            } else {
                at_relay(judge, *vni, *source, inner);
            }
        }
        Input::Wire(frame) => {
            if frame.len() <= 3_000 {
                let seen = judge.world().from_wire(Hook::WireXdp, frame.clone());
                judge.came_by_wire(&seen);
                // The kernel takes it out of the tunnel then.
                if seen.counters.contains(&(PathCounter::Relayed, 1)) {
                    let udp = if frame[12..14] == [8, 0] { 34 } else { 54 };
                    let vni = u32::from_be_bytes([0, frame[udp + 12], frame[udp + 13], frame[udp + 14]]);
                    let source = if udp == 34 {
                        IpAddr::from([frame[26], frame[27], frame[28], frame[29]])
                    } else {
                        let mut source = [0; 16];
                        source.copy_from_slice(&frame[22..38]);
                        IpAddr::from(source)
                    };
                    at_relay(judge, vni, source, &frame[udp + 16..]);
                }
            }
            if is_whole(frame) && random.one_in(3) {
                let seen = judge.world().from_wire(Hook::WireTc, frame.clone());
                judge.came_by_wire(&seen);
            }
        }
    }
}

/// Goes on until the time is over; at least one round.
fn fuzz(least: u32, duration: Duration) {
    let seed = std::env::var("NCM_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    let mut random = Random::new(seed);
    let mut judge = Judge::new();
    let start = Instant::now();
    let mut frames = 0;
    while frames < least || start.elapsed() < duration {
        judge.new_policy(&mut random);
        let mut sources = frames::Sources::default();
        for number in 0..ROUND {
            let mut input = sources.next(&mut random);
            if random.one_in(2) {
                mutate::mutate(&mut input, &mut random);
            }
            judge.says(&format!("NCM_SEED={seed}: frame {}", frames + number));
            put_in(&mut judge, &mut random, &input);
            sources.remember(&input);
        }
        frames += ROUND;
    }
    judge.assert_of_use(frames);
}

#[test]
fn no_frame_leaves_without_a_decision_that_allows_it() {
    fuzz(6_000, Duration::ZERO);
}

#[test]
#[ignore = "goes on for minutes"]
fn no_frame_leaves_without_a_decision_that_allows_it_for_longer() {
    let seconds = std::env::var("NCM_FUZZ_SECONDS").ok().and_then(|seconds| seconds.parse().ok());
    fuzz(0, Duration::from_secs(seconds.unwrap_or(300)));
}
