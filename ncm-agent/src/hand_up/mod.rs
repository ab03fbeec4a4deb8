//! The hand-up: guests' questions that the packet path passes to the agent, and the answers back to them.
//!
//! The guest program marks such a frame with the port's index and what it asks, under the limit of the port's bucket, and
//! redirects it to the ingress of a private veth device. There a packet socket reads it, and a program ends it, so that it
//! never comes to the host's stack. An answer is sent by that socket with the mark of its port; the program on the device's
//! egress passes it to the guest's interface. While no agent runs, the program at the ingress ends everything.

mod device;
mod queue;
pub(crate) mod socket;

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;
use std::time::{Duration, Instant};

use ncm_common::marks;
use ncm_model::lease::LeaseFacts;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

pub use device::{device_names, ensure, remove_pair};

use crate::responders::{Answer, Ignored, Question, Schedule, advertisements, answer};
use crate::telemetry::own;
use queue::Queue;
use socket::{Received, Socket, Wanted};

/// How often it is looked whether there is something new to tell.
const LOOK: Duration = Duration::from_secs(1);
/// Frames that are read before one is answered, so that all ports' questions come to take turns.
const READ_AHEAD: usize = 256;
/// Shortest time between two logged complaints of guests.
const LOGGED_EVERY: Duration = Duration::from_secs(10);

/// What the model says; whoever answers guests asks it anew each time.
pub trait Facts: Send + 'static {
    /// Rises with every change; `None` once there is nothing to serve any more.
    fn version(&self) -> Option<u64>;
    /// What the guest behind a port may be told.
    fn lease(&self, port: u32) -> Option<LeaseFacts>;
    /// Indices of the ports whose guests get router advertisements.
    fn advertised(&self) -> Vec<u32>;
}

/// Answers guests from now on, on a thread of its own, until `facts` says that it is over. `device` is the name of the end
/// that [`ensure`] returned; when it is made anew under that name, it is found again.
///
/// # Errors
/// Fails if the device cannot be read, or if there is no thread to be had.
pub fn start(device: &str, facts: impl Facts) -> io::Result<()> {
    let mut server = Server {
        device: device.to_owned(),
        socket: open(device)?,
        facts,
        queue: Queue::default(),
        version: None,
        pace: HashMap::new(),
        random: u64::from(std::process::id()) << 32 | 0x9e37_79b9,
        looked: None,
        logged: None,
    };
    thread::Builder::new().name("ncm-responders".to_owned()).spawn(move || {
        loop {
            match catch_unwind(AssertUnwindSafe(|| server.run())) {
                Ok(Ok(())) => return,
                Ok(Err(error)) => tracing::error!(device = server.device, "guests are not answered: {error}"),
                // The panic itself is logged where it happens.
                Err(_) => own::GUEST_FAULTS.increment(),
            }
            server.queue = Queue::default();
            // The device may be made anew.
            loop {
                thread::sleep(LOOK);
                if server.facts.version().is_none() {
                    return;
                }
                if let Ok(socket) = open(&server.device) {
                    server.socket = socket;
                    break;
                }
            }
        }
    })?;
    Ok(())
}

fn open(device: &str) -> io::Result<Socket> {
    /// Questions are few and small.
    const QUESTIONS: Wanted =
        Wanted { first: marks::DHCP, last: marks::ROUTER_SOLICITATION, waiting: 1 << 20 };
    Socket::open(nix::net::if_::if_nametoindex(device)?, QUESTIONS)
}

/// A port's advertisements.
struct Pace {
    schedule: Schedule,
    /// Hash of what was told last.
    told: u64,
}

struct Server<F> {
    device: String,
    socket: Socket,
    facts: F,
    queue: Queue<(Question, Received, Instant)>,
    version: Option<u64>,
    pace: HashMap<u32, Pace>,
    random: u64,
    looked: Option<Instant>,
    logged: Option<Instant>,
}

impl<F: Facts> Server<F> {
    fn run(&mut self) -> io::Result<()> {
        loop {
            self.wait()?;
            self.read()?;
            // What is due waits for no more than some of those that ask.
            for _ in 0..READ_AHEAD {
                let Some((port, (question, received, since))) = self.queue.pop() else { break };
                self.serve(port, question, &received);
                own::GUEST_ANSWER_MICROSECONDS.add(since.elapsed().as_micros() as u64);
                self.read()?;
            }
            let now = Instant::now();
            if self.looked.is_none_or(|looked| now.duration_since(looked) >= LOOK) {
                self.looked = Some(now);
                own::GUEST_QUESTIONS_SHED.add(self.socket.shed());
                let Some(version) = self.facts.version() else { return Ok(()) };
                self.look(version, now);
            }
            self.advertise(now);
        }
    }

    /// Waits for a frame, or until something is due.
    fn wait(&self) -> io::Result<()> {
        let now = Instant::now();
        let due = self.pace.values().map(|pace| pace.schedule.next()).min();
        let timeout = match due {
            _ if !self.queue.is_empty() => return Ok(()),
            None => LOOK,
            Some(due) => due.saturating_duration_since(now).min(LOOK),
        };
        // Rounded up, so that it is due by then.
        let milliseconds = u16::try_from(timeout.as_millis() + 1).unwrap_or(u16::MAX);
        let mut polled = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        match poll(&mut polled, PollTimeout::from(milliseconds)) {
            Ok(_) | Err(nix::Error::EINTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes the frames that are waiting.
    fn read(&mut self) -> io::Result<()> {
        for _ in 0..READ_AHEAD {
            let Some(received) = self.socket.receive()? else { break };
            let Some((question, port)) = Question::of_mark(received.mark) else { continue };
            own::GUEST_QUESTIONS.increment();
            if !self.queue.push(port, (question, received, Instant::now())) {
                own::GUEST_QUESTIONS_SHED.increment();
            }
        }
        Ok(())
    }

    fn serve(&mut self, port: u32, question: Question, received: &Received) {
        let answered = match self.facts.lease(port) {
            Some(facts) => answer(question, &received.frame, received.is_partial(), &facts),
            None => Err(Ignored::NoBinding),
        };
        match answered {
            Ok(Answer::Frame(frame)) => self.send(port, &frame, question),
            Ok(Answer::Frames(frames)) => frames.iter().for_each(|frame| self.send(port, frame, question)),
            Ok(Answer::Advertise) => {
                let now = Instant::now();
                self.pace.entry(port).or_insert_with(|| Pace::new(now)).schedule.ask(now);
            }
            Ok(Answer::Released) => tracing::debug!(port, "the guest gave its lease back"),
            Ok(Answer::Declined) => {
                own::GUEST_DECLINES.increment();
                if self.may_log() {
                    tracing::warn!(port, "the guest declined its address: it says that another has it");
                }
            }
            Err(cause) => {
                own::GUEST_QUESTIONS_REFUSED.increment();
                tracing::debug!(port, ?question, ?cause, "a guest's question is not answered");
            }
        }
    }

    fn may_log(&mut self) -> bool {
        let now = Instant::now();
        let may = self.logged.is_none_or(|logged| now.duration_since(logged) >= LOGGED_EVERY);
        if may {
            self.logged = Some(now);
        }
        may
    }

    fn send(&mut self, port: u32, frame: &[u8], question: Question) {
        match self.socket.send(marks::mark(marks::DELIVER, port), frame) {
            Ok(()) => own::GUEST_ANSWERS.increment(),
            Err(error) => {
                own::GUEST_ANSWERS_LOST.increment();
                tracing::debug!(port, ?question, "an answer could not be sent: {error}");
            }
        }
    }

    /// Sees to it that whoever is new, or is to be told something new, is told soon.
    fn look(&mut self, version: u64, now: Instant) {
        if self.version == Some(version) {
            return;
        }
        self.version = Some(version);
        let ports = self.facts.advertised();
        self.pace.retain(|port, _| ports.contains(port));
        for port in ports {
            let told = self.facts.lease(port).map(|facts| hash(&advertisements(&facts)));
            let pace = self.pace.entry(port).or_insert_with(|| Pace::new(now));
            if let Some(told) = told.filter(|told| *told != pace.told) {
                pace.told = told;
                pace.schedule.changed(now);
            }
        }
    }

    /// Sends the advertisements that are due.
    fn advertise(&mut self, now: Instant) {
        let due: Vec<u32> =
            self.pace.iter().filter(|(_, pace)| pace.schedule.next() <= now).map(|(port, _)| *port).collect();
        for port in due {
            // A guest that asked and has nothing coming is forgotten.
            let frames = self.facts.lease(port).map(|facts| advertisements(&facts)).unwrap_or_default();
            if frames.is_empty() {
                self.pace.remove(&port);
                continue;
            }
            for frame in &frames {
                self.send(port, frame, Question::RouterSolicitation);
            }
            // A generator of numbers that need not be good ones.
            self.random ^= self.random << 13;
            self.random ^= self.random >> 7;
            self.random ^= self.random << 17;
            let random = self.random;
            if let Some(pace) = self.pace.get_mut(&port) {
                pace.schedule.sent(now, random);
            }
        }
    }
}

impl Pace {
    fn new(now: Instant) -> Self {
        Self { schedule: Schedule::new(now), told: 0 }
    }
}

fn hash(frames: &[Vec<u8>]) -> u64 {
    let mut hasher = DefaultHasher::new();
    frames.hash(&mut hasher);
    hasher.finish()
}
