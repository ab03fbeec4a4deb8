//! Numbered datagrams at a steady rate, counted by a program at the receiving guest's end: a socket would lose some by itself.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};

use super::guest::Guest;
use super::namespace::OnIngress;
use super::packets::{PacketSocket, ethernet, ipv4, udp};
use super::sys::{self, Instruction};

/// UDP ports of the datagrams.
const FROM: u16 = 4000;
const TO: u16 = 4001;

/// Where the number is in a frame: the first of a datagram over IPv4 without options.
const NUMBER: usize = 42;

/// Datagrams that are sent without a pause.
const BURST: u32 = 50;

/// So many bursts may be made up for after the sender had no processor.
const LATE: u32 = 50;

/// How long the last ones may take.
const SETTLED: Duration = Duration::from_millis(500);

/// Numbered datagrams from one guest to another.
#[derive(Debug)]
pub struct Sequence {
    socket: PacketSocket,
    sent: AtomicU32,
    seen: OwnedFd,
    most: u32,
    _counter: OnIngress,
    frame: Vec<u8>,
}

/// What came of the datagrams of some time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Round {
    /// In which time.
    pub time: Duration,
    /// How many were sent.
    pub sent: u32,
    /// How many did not arrive.
    pub lost: u32,
    /// How many arrived more than once.
    pub twice: u32,
}

const fn instruction(code: u8, to: u8, from: u8, offset: i16, number: i32) -> Instruction {
    let (offset, number) = (offset.to_le_bytes(), number.to_le_bytes());
    [code, to | from << 4, offset[0], offset[1], number[0], number[1], number[2], number[3]]
}

/// r1 = the map with that descriptor: two instructions.
fn load_map(map: &OwnedFd) -> [Instruction; 2] {
    [instruction(0x18, 1, 1, 0, map.as_raw_fd()), [0; 8]]
}

/// A tc program that counts numbered datagrams by their number, and takes them away; others go on.
fn counter(seen: &OwnedFd) -> Vec<Instruction> {
    let [map, map_rest] = load_map(seen);
    let network = |number: u16| i32::from(number.to_be());
    vec![
        instruction(0xb7, 2, 0, 0, 10), // from byte 10 on, so that the number is aligned
        instruction(0xbf, 3, 10, 0, 0), // to the stack's last 40 bytes
        instruction(0x07, 3, 0, 0, -40),
        instruction(0xb7, 4, 0, 0, 36),                 // 36 bytes
        instruction(0x85, 0, 0, 0, 26),                 // bpf_skb_load_bytes
        instruction(0x55, 0, 0, 16, 0),                 // too short: next
        instruction(0x69, 1, 10, -38, 0),               // ethertype
        instruction(0x55, 1, 0, 14, network(0x0800)),   //
        instruction(0x71, 1, 10, -27, 0),               // protocol
        instruction(0x55, 1, 0, 12, 17),                //
        instruction(0x69, 1, 10, -14, 0),               // destination port
        instruction(0x55, 1, 0, 10, network(TO)),       //
        instruction(0xbf, 2, 10, 0, 0),                 // r2 = &number
        instruction(0x07, 2, 0, 0, NUMBER as i32 - 50), //
        map,                                            // r1 = map
        map_rest,                                       //
        instruction(0x85, 0, 0, 0, 1),                  // r0 = look up
        instruction(0x15, 0, 0, 2, 0),                  // none: away
        instruction(0xb7, 1, 0, 0, 1),                  //
        instruction(0xdb, 0, 1, 0, 0),                  // *r0 += 1, at once
        instruction(0xb7, 0, 0, 0, 2),                  // away: TC_ACT_SHOT
        instruction(0x95, 0, 0, 0, 0),
        instruction(0xb7, 0, 0, 0, -1), // next: TCX_NEXT
        instruction(0x95, 0, 0, 0, 0),
    ]
}

impl Sequence {
    /// Prepares at most `most` datagrams of 64 bytes from a guest to another.
    ///
    /// # Errors
    /// If the kernel refuses one of the programs.
    pub fn between(from: &Guest, to: &Guest, most: u32) -> Result<Self> {
        let seen = sys::create_array(most)?;
        let program = sys::load_program(sys::BPF_PROG_TYPE_SCHED_CLS, &counter(&seen))?;
        let counter = to.ns.attach_ingress(&program, "eth0", false)?;
        let datagram = ipv4(from.ip(), to.ip(), 64, 17, &udp(FROM, TO, &[0; 22]));
        let frame = ethernet(to.mac(), from.mac(), 0x0800, &datagram);
        let (socket, sent) = (from.packets()?, AtomicU32::new(0));
        Ok(Self { socket, sent, seen, most, _counter: counter, frame })
    }

    /// Sends so many a second for as long as `during` takes, and says what came of them.
    ///
    /// # Errors
    /// What `during` fails with; or they cannot be sent, or are too many.
    pub fn steadily(&self, rate: u32, during: impl FnOnce() -> Result<()>) -> Result<Round> {
        let first = self.sent.load(Ordering::Relaxed);
        let (done, begun) = (AtomicBool::new(false), Instant::now());
        thread::scope(|threads| {
            let sending = threads.spawn(|| self.send(rate, &done));
            let outcome = during();
            done.store(true, Ordering::Relaxed);
            let sent = sending.join().map_err(|_| anyhow!("the sender panicked"))?;
            outcome.and(sent)
        })?;
        let (last, time) = (self.sent.load(Ordering::Relaxed), begun.elapsed());
        let deadline = Instant::now() + SETTLED;
        while last > 0 && sys::read_array(&self.seen, last - 1)? == 0 && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
        thread::sleep(SETTLED / 10);
        let mut round = Round { time, sent: last - first, lost: 0, twice: 0 };
        for number in first..last {
            match sys::read_array(&self.seen, number)? {
                0 => round.lost += 1,
                1 => {}
                _ => round.twice += 1,
            }
        }
        Ok(round)
    }

    fn send(&self, rate: u32, done: &AtomicBool) -> Result<()> {
        let pause = Duration::from_secs(1) * BURST / rate;
        let mut frame = self.frame.clone();
        let mut due = Instant::now();
        while !done.load(Ordering::Relaxed) {
            for _ in 0..BURST {
                let number = self.sent.load(Ordering::Relaxed);
                ensure!(number < self.most, "no room for more than {number} numbers");
                frame[NUMBER..NUMBER + 4].copy_from_slice(&number.to_ne_bytes());
                // What the sender's own queue has no room for was not sent.
                while !self.socket.try_send(&frame)? {}
                self.sent.store(number + 1, Ordering::Relaxed);
            }
            due += pause;
            let now = Instant::now();
            if due > now {
                thread::sleep(due - now);
            } else if now - due > pause * LATE {
                due = now;
            }
        }
        Ok(())
    }
}
