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

/// A DISCOVER, with options in the old fields as well.
fn discover() -> Vec<u8> {
    let mut message = vec![1, 1, 6, 0, 1, 2, 3, 4];
    message.resize(28, 0);
    message.extend(GUEST);
    message.resize(44, 0);
    message.extend([12, 3, b'v', b'm', b'1', 255]);
    message.resize(108, 0);
    message.extend([60, 2, b'o', b'k', 255]);
    message.resize(236, 0);
    message.extend([
        99, 130, 83, 99, 53, 1, 1, 61, 3, 1, 2, 3, 55, 4, 1, 3, 6, 121, 57, 2, 5, 220, 52, 1, 3, 255,
    ]);
    message
}

/// A SOLICIT for one address.
fn solicit() -> Vec<u8> {
    let mut message = vec![1, 7, 8, 9, 0, 1, 0, 4, 1, 2, 3, 4, 0, 6, 0, 4, 0, 23, 0, 24];
    message.extend([0, 3, 0, 40, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5, 0, 24]);
    message.extend(v6("fd00:1::7").octets());
    message.extend([0; 8]);
    message
}

/// A router solicitation from its sender's link-layer address.
const SOLICITATION: [u8; 16] = [133, 0, 0, 0, 0, 0, 0, 0, 1, 1, 2, 0x11, 0x22, 0x33, 0x44, 0x55];

/// The frame of a message, whose lengths and checksums are right.
fn framed(question: Question, message: &[u8]) -> Vec<u8> {
    match question {
        Question::Dhcp => frame4(GUEST, Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST, message),
        Question::Dhcpv6 => {
            let length = (8 + message.len()) as u16;
            let udp = [&[2, 0x22, 2, 0x23][..], &length.to_be_bytes(), &[0, 0], message].concat();
            frame6(GUEST, v6("fe80::7"), v6("ff02::1:2"), (17, 1), 6, &udp)
        }
        Question::RouterSolicitation => frame6(GUEST, v6("fe80::7"), v6("ff02::2"), (58, 255), 2, message),
    }
}

fn messages() -> [Vec<u8>; 3] {
    [discover(), solicit(), SOLICITATION.to_vec()]
}

fn samples() -> Vec<Vec<u8>> {
    QUESTIONS.iter().zip(messages()).map(|(question, message)| framed(*question, &message)).collect()
}

/// Frames that are too large, or not of the answer's kind, would be a fault of ours.
fn check(question: Question, frame: &[u8], facts: &LeaseFacts) {
    let (Ok(Answer::Frame(answer)), question) = (answer(question, frame, true, facts), question) else {
        return;
    };
    assert!(answer.len() <= 14 + 1500 + 60, "{question:?} was answered with {} bytes", answer.len());
}

#[test]
fn whole_messages_are_answered() {
    for (question, frame) in QUESTIONS.into_iter().zip(samples()) {
        let outcome = answer(question, &frame, false, &facts());
        assert!(matches!(outcome, Ok(Answer::Frame(_) | Answer::Frames(_))), "{question:?}: {outcome:?}");
    }
}

#[test]
fn messages_that_are_cut_in_frames_that_fit_them_are_never_answered() {
    // What is left of them is whole: a SOLICIT with a client's identifier, with what it asks for too, and a solicitation from nobody.
    let whole = [&[][..], &[12, 20], &[8]];
    for ((question, message), whole) in QUESTIONS.into_iter().zip(messages()).zip(whole) {
        // ICMPv6's checksum is a part of the message.
        let least = if question == Question::RouterSolicitation { 4 } else { 0 };
        for length in least..message.len() {
            let outcome = answer(question, &framed(question, &message[..length]), false, &facts());
            if whole.contains(&length) {
                assert!(outcome.is_ok(), "{question:?} of {length} bytes: {outcome:?}");
            } else {
                assert_eq!(outcome, Err(Ignored::Malformed), "{question:?} cut to {length} bytes");
            }
        }
    }
}

/// The message with one byte less in the length at `at`, a byte or two.
fn shorter(message: &[u8], at: std::ops::Range<usize>) -> Vec<u8> {
    let mut message = message.to_vec();
    let last = at.end - 1;
    assert_ne!(message[last], 0, "a length at {at:?}");
    message[last] -= 1;
    message
}

#[test]
fn messages_with_a_length_too_short_by_one_are_never_answered() {
    let dhcp = discover();
    let length = |code: u8| {
        let mut at = 240;
        while dhcp[at] != code {
            at += 2 + usize::from(dhcp[at + 1]);
        }
        at + 1..at + 2
    };
    // One byte less, and what follows begins with the last byte of the option's data. Of the client's identifier and the list of
    // parameters this one is no length of anything there.
    let cases: Vec<(Question, Vec<u8>)> = [53, 61, 55, 57, 52]
        .into_iter()
        .map(|code| (Question::Dhcp, shorter(&dhcp, length(code))))
        // Hardware addresses of five bytes are not Ethernet's.
        .chain([(Question::Dhcp, shorter(&dhcp, 2..3))])
        .chain(
            [4..8, 12..16, 20..24, 36..40]
                .map(|option| (Question::Dhcpv6, shorter(&solicit(), option.start + 2..option.end))),
        )
        .chain([(Question::RouterSolicitation, shorter(&SOLICITATION, 9..10))])
        .collect();
    for (question, message) in cases {
        let outcome = answer(question, &framed(question, &message), false, &facts());
        assert_eq!(outcome, Err(Ignored::Malformed), "{question:?}: {message:x?}");
    }
    // The lengths of the headers in front of it.
    for (question, frame) in QUESTIONS.into_iter().zip(samples()) {
        let fields: &[(usize, u8)] = match question {
            // IPv4: its own length, that of its header, and UDP's.
            Question::Dhcp => &[(17, 1), (14, 1), (39, 1)],
            Question::Dhcpv6 => &[(19, 1), (59, 1)],
            Question::RouterSolicitation => &[(19, 1)],
        };
        for (at, less) in fields {
            let mut frame = frame.clone();
            frame[*at] -= less;
            for partial in [false, true] {
                let outcome = answer(question, &frame, partial, &facts());
                assert_eq!(outcome, Err(Ignored::Malformed), "{question:?}: the length at {at}");
            }
        }
    }
}

#[test]
fn options_in_the_old_fields_that_are_cut_are_never_answered() {
    // `file` is full of an option that goes on beyond it; `sname` has no end.
    for (at, field) in [(108, vec![60, 127]), (44, vec![0; 64])] {
        let mut message = discover();
        message[at..at + field.len()].copy_from_slice(&field);
        let outcome = answer(Question::Dhcp, &framed(Question::Dhcp, &message), false, &facts());
        assert_eq!(outcome, Err(Ignored::Malformed), "at {at}");
    }
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
