//! No bytes of a guest's end the agent, whatever they are: cut, changed and random ones.

use std::time::Instant;

use super::*;
use ncm_model::lease::LeaseFacts;

/// A small generator of numbers, the same in every run.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

const QUESTIONS: [Question; 3] = [Question::Dhcp, Question::Dhcpv6, Question::RouterSolicitation];

fn samples() -> Vec<Vec<u8>> {
    let mut dhcp = vec![1, 1, 6, 0, 1, 2, 3, 4];
    dhcp.resize(28, 0);
    dhcp.extend(GUEST);
    dhcp.resize(236, 0);
    dhcp.extend([
        99, 130, 83, 99, 53, 1, 1, 61, 3, 1, 2, 3, 55, 4, 1, 3, 6, 121, 57, 2, 5, 220, 52, 1, 3, 255,
    ]);
    let mut udp = vec![2, 0x22, 2, 0x23, 0, 54, 0, 0, 1, 7, 8, 9, 0, 1, 0, 4, 1, 2, 3, 4];
    udp.extend([0, 3, 0, 12 + 4 + 24 - 4, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5, 0, 20]);
    udp.extend(v6("fd00:1::7").octets());
    let length = udp.len() as u16;
    udp[4..6].copy_from_slice(&length.to_be_bytes());
    let solicitation = [133, 0, 0, 0, 0, 0, 0, 0, 1, 1, 2, 0x11, 0x22, 0x33, 0x44, 0x55];
    vec![
        frame4(GUEST, Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST, &dhcp),
        frame6(GUEST, v6("fe80::7"), v6("ff02::1:2"), (17, 1), 6, &udp),
        frame6(GUEST, v6("fe80::7"), v6("ff02::2"), (58, 255), 2, &solicitation),
    ]
}

/// Frames that are too large, or not of the answer's kind, would be a fault of ours.
fn check(question: Question, frame: &[u8], facts: &LeaseFacts) {
    let (Ok(Answer::Frame(answer)), question) = (answer(question, frame, true, facts), question) else {
        return;
    };
    assert!(answer.len() <= 14 + 1500 + 60, "{question:?} was answered with {} bytes", answer.len());
}

#[test]
fn frames_that_are_cut_are_never_answered_and_never_fatal() {
    for (question, frame) in QUESTIONS.into_iter().zip(samples()) {
        for length in 0..frame.len() {
            // The checksum is not looked at: what is cut is noticed by its lengths.
            let outcome = answer(question, &frame[..length], true, &facts());
            assert_eq!(outcome, Err(Ignored::Malformed), "{question:?} cut to {length} bytes");
        }
    }
}

#[test]
fn changed_bytes_are_never_fatal() {
    let mut numbers = Numbers(0x2545_f491_4f6c_dd1d);
    for _ in 0..200_000 {
        let which = numbers.below(3);
        let mut frame = samples().swap_remove(which);
        for _ in 0..1 + numbers.below(6) {
            let at = numbers.below(frame.len());
            frame[at] = numbers.next() as u8;
        }
        if numbers.below(4) == 0 {
            frame.truncate(numbers.below(frame.len()));
        }
        check(QUESTIONS[which], &frame, &facts());
    }
}

#[test]
fn random_options_are_never_fatal() {
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
    for _ in 0..100_000 {
        let which = numbers.below(3);
        let mut frame = samples().swap_remove(which);
        // From where options begin, all is random, and the lengths fit.
        let begin = [14 + 28 + 240, 14 + 48 + 4, 14 + 40 + 8][which];
        frame.truncate(begin);
        let more = numbers.below(600);
        frame.extend((0..more).map(|_| {
            // Small numbers make more sense as codes and lengths.
            if numbers.below(2) == 0 { numbers.below(20) as u8 } else { numbers.next() as u8 }
        }));
        let length = frame.len() - 14;
        if which == 0 {
            frame[16..18].copy_from_slice(&(length as u16).to_be_bytes());
            frame[24..26].fill(0);
            let check = checksum(&[&frame[14..34]]).to_be_bytes();
            frame[24..26].copy_from_slice(&check);
            frame[38..40].copy_from_slice(&((length - 20) as u16).to_be_bytes());
        } else {
            frame[18..20].copy_from_slice(&((length - 40) as u16).to_be_bytes());
            if which == 1 {
                frame[58..60].copy_from_slice(&((length - 40) as u16).to_be_bytes());
            }
        }
        check(QUESTIONS[which], &frame, &facts());
    }
}

#[test]
fn deeply_nested_options_are_not_followed() {
    let mut inner = Vec::new();
    for _ in 0..4_000 {
        let mut outer = vec![0, 3];
        outer.extend(((12 + inner.len()) as u16).to_be_bytes());
        outer.extend([0; 12]);
        outer.extend(&inner);
        inner = outer;
    }
    let mut udp = vec![2, 0x22, 2, 0x23];
    udp.extend(((8 + 4 + 8 + inner.len()) as u16).to_be_bytes());
    udp.extend([0, 0, 1, 7, 8, 9, 0, 1, 0, 4, 1, 2, 3, 4]);
    udp.extend(inner);
    let frame = frame6(GUEST, v6("fe80::7"), v6("ff02::1:2"), (17, 1), 6, &udp);
    check(Question::Dhcpv6, &frame, &facts());
}

#[test]
fn discover_to_acknowledgement_takes_far_less_than_a_millisecond() {
    let frame = &samples()[0];
    let facts = facts();
    let rounds = 10_000;
    let begun = Instant::now();
    for _ in 0..rounds {
        let _ = std::hint::black_box(answer(Question::Dhcp, frame, false, &facts));
        let _ = std::hint::black_box(answer(Question::Dhcp, frame, false, &facts));
    }
    let each = begun.elapsed() / rounds;
    assert!(each.as_micros() < 200, "two answers take {each:?}");
}
