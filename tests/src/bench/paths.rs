//! What a packet costs in the programs: of a known flow and of a new one, each way, with few rules and many; and of one flow
//! among a million.
//!
//! The kernel runs a program again and again on one packet; wrappers put it back as it was, or make it a packet of another flow,
//! and their own time is taken off.

use std::cell::Cell;

use anyhow::{Context, Result, ensure};
use ncm_common::Plain;
use ncm_common::counters::PathCounter;
use ncm_common::tables::{EPOCH_SLOTS, Flow, FlowKey};
use ncm_dataplane::{Hook, TestRun};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use super::Plan;
use super::group::{self, Sets};
use super::row::{Bound, Row};
use crate::packet::{A1, HERE, HOST_1, Outer, RA, World, tunnel, udp, udp6};

/// Verdicts of XDP programs (`enum xdp_action` of `linux/bpf.h`).
const XDP_PASS: u32 = 2;
const XDP_REDIRECT: u32 = 4;

/// Bytes of the tunnel's headers in front of an inner frame.
const OUTER: u32 = 50;

/// The transport port of both sides.
const PORT: u16 = 40_000;

/// How many rules the port's group has for each direction and version of IP; 0: the port is in no group, and open.
const RULES: [usize; 4] = [0, 1, 100, 10_000];

/// As many flows as the table holds by default: more than a million.
const MANY: u32 = 1 << 20;

/// What the minimal program is.
const MINIMAL: &str = "minimal program: parse Ethernet and IP, one lookup, redirect";

/// Budgets: of a known flow against the minimal program, of a new one with many rules against one with one rule.
const KNOWN: Bound = Bound::AtMost(2.5);
const NEW: Bound = Bound::AtMost(1.3);

/// Which way a packet goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    ToTunnel,
    ToGuest,
}

impl Way {
    const BOTH: [Self; 2] = [Self::ToTunnel, Self::ToGuest];

    const fn name(self) -> &'static str {
        match self {
            Self::ToTunnel => "guest_to_tunnel",
            Self::ToGuest => "tunnel_to_guest",
        }
    }

    /// The wrapped program, and what it counts on success.
    const fn program(self) -> (&'static str, PathCounter) {
        match self {
            Self::ToTunnel => ("bench_guest_xdp", PathCounter::Encapsulated),
            Self::ToGuest => ("bench_wire_xdp", PathCounter::DecapsulatedXdp),
        }
    }
}

pub(super) fn measure(plan: &Plan, done: &mut dyn FnMut(Row)) -> Result<()> {
    let (mut few, mut many) = (Vec::new(), Vec::new());
    for way in Way::BOTH {
        for family in [4, 6] {
            for rules in RULES {
                for kind in [Kind::Known, Kind::New, Kind::First] {
                    let case = Case { way, family, rules, kind };
                    // What is with one rule is what the others are held against.
                    if (rules != 1) && plan.wants(&case.name()) {
                        few.push(case);
                    }
                }
            }
            let name = format!("million_flows_{}_v{family}", way.name());
            if plan.wants(&name) {
                many.push((name, way, family));
            }
        }
    }
    // Each world moves its thread into a namespace of its own.
    if !few.is_empty() {
        for row in in_a_thread(|| flows(plan, &few))? {
            done(row);
        }
    }
    for (name, way, family) in many {
        done(in_a_thread(|| million(plan, &name, way, family))?);
    }
    Ok(())
}

fn in_a_thread<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    // On one processor: tables of unanswered flows have a share for each.
    let pinned = || {
        let mut one = CpuSet::new();
        one.set(0).context("name a processor")?;
        sched_setaffinity(Pid::from_raw(0), &one).context("stay on one processor")?;
        work()
    };
    let outcome = std::thread::scope(|scope| scope.spawn(pinned).join());
    outcome.map_err(|_| anyhow::anyhow!("measuring the programs panicked"))?
}

/// What policy has to do with a packet.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Its flow is known: nothing.
    Known,
    /// Its flow is new, and asks what others have asked before: from the same host, or to it, and to the same port.
    New,
    /// Its flow is new, and the first to that port: nothing is remembered.
    First,
}

/// One row.
#[derive(Clone, Copy)]
struct Case {
    way: Way,
    family: u8,
    rules: usize,
    kind: Kind,
}

impl Case {
    fn name(&self) -> String {
        let kind = match self.kind {
            Kind::Known => "known",
            Kind::New => "new",
            Kind::First => "first",
        };
        format!("{kind}_flow_{}_v{}_{}_rules", self.way.name(), self.family, self.rules)
    }
}

fn flows(plan: &Plan, cases: &[Case]) -> Result<Vec<Row>> {
    let bench = &Bench::new(plan)?;
    let sets = &group::compile(&RULES[1..]).context("compile the rules")?;
    bench.write(sets)?;
    let mut rows = Vec::new();
    for case in cases {
        let Case { way, family, rules, kind } = *case;
        let begun = |vary| {
            move |rules| {
                bench.join(sets.of(rules));
                bench.run(way, family, vary, 1)
            }
        };
        let row = match kind {
            Kind::Known => {
                bench.join(sets.of(rules));
                for flow in bench.establish(way, family)? {
                    bench.add_minimal(flow)?;
                }
                let own = || bench.run(way, family, Vary::Nothing, 0);
                let [own, reference] = bench.in_turn([&own, &|| bench.minimal(family, Vary::Nothing)])?;
                Row::new(case.name(), "ns", own, MINIMAL, reference, Some(KNOWN))
            }
            Kind::New => {
                let with = begun(Vary::Port);
                let [own, reference] = bench.in_turn([&|| with(rules), &|| with(1)])?;
                Row::new(case.name(), "ns", own, "a new flow with 1 rule", reference, Some(NEW))
            }
            Kind::First => {
                let with = begun(Vary::Asked);
                let [own, reference] = bench.in_turn([&|| with(rules), &|| with(1)])?;
                Row::new(case.name(), "ns", own, "the first flow to its port with 1 rule", reference, None)
            }
        };
        rows.push(row);
    }
    Ok(rows)
}

/// A packet of another one of a million flows each time.
fn million(plan: &Plan, name: &str, way: Way, family: u8) -> Result<Row> {
    let bench = Bench::new(plan)?;
    let established = bench.establish(way, family)?;
    let flows = &bench.world.tables().flows;
    let first = established.into_iter().next().context("no flow was established")?;
    flows.delete(&first.0)?;
    let outcome = flows.put_batch((0..MANY).map(|number| numbered(first, way, number)));
    ensure!(outcome.done == MANY as usize, "{} of {MANY} flows found room", outcome.done);
    for number in 0..MANY {
        bench.add_minimal(numbered(first, Way::ToTunnel, number))?;
    }
    let own = || bench.run(way, family, Vary::Flow, 0);
    let [own, reference] = bench.in_turn([&own, &|| bench.minimal(family, Vary::Flow)])?;
    Ok(Row::new(name, "ns", own, format!("{MINIMAL}, among as many"), reference, None))
}

/// One of [`MANY`] flows like the first, as the wrappers number them.
fn numbered((mut key, mut flow): (FlowKey, Flow), way: Way, number: u32) -> (FlowKey, Flow) {
    let port = if way == Way::ToTunnel { &mut key.local_port } else { &mut key.remote_port };
    // None of the ports that mean something by themselves, such as DHCP's.
    *port = (0x8000 | number as u16).to_be_bytes();
    key.remote[15] = 0x60 | (number >> 15 & 0x1f) as u8;
    // As if each had an address of its own, whose epoch is somewhere else.
    flow.remote_slot = number.wrapping_mul(0x9e37_79b1) >> 16 & (EPOCH_SLOTS - 1);
    flow.remote_epoch = 0;
    flow.timeout = u32::MAX >> 1;
    (key, flow)
}

/// What differs from packet to packet.
#[derive(Clone, Copy)]
enum Vary {
    /// Nothing: all are alike.
    Nothing,
    /// The source port, of so many that the flow before with the same is long forgotten.
    Port,
    /// The destination port, likewise.
    Asked,
    /// The flow: it is another one of [`MANY`].
    Flow,
}

impl Vary {
    /// The same as the wrappers read it (`Vary` in `ncm-ebpf/src/bench.rs`).
    fn bytes(self, way: Way, family: u8, run: u32) -> Vec<u8> {
        let outer = if way == Way::ToGuest { OUTER } else { 0 };
        let asked = if matches!(self, Self::Asked) { 2 } else { 0 };
        let port_at = outer + asked + if family == 4 { 34 } else { 54 };
        // The last byte of the other side's address.
        let address_at = outer
            + match (family, way) {
                (4, Way::ToTunnel) => 33,
                (4, Way::ToGuest) => 29,
                (_, Way::ToTunnel) => 53,
                (_, Way::ToGuest) => 37,
            };
        let remote = u32::from(RA.ip[3]);
        let (spread, [port, port_mask], [address, address_mask]) = match self {
            Self::Nothing => (0, [PORT.into(), 0], [remote, 0]),
            Self::Port | Self::Asked => (1, [0x8000, 0x7fff], [remote, 0]),
            Self::Flow => (0x9e37_79b1, [0x8000, 0x7fff], [0x60, 0x1f]),
        };
        let words: [u32; 8] = [run, spread, port_at, port, port_mask, address_at, address, address_mask];
        words.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }
}

/// Nanoseconds of a run of a wrapped program, and of the parts that are not its own.
#[derive(Clone, Copy)]
struct Parts {
    time: f64,
    /// Of a program that does nothing.
    nothing: f64,
    /// Of the wrappers' beginning.
    varied: f64,
    /// Of their end, twice.
    undone: f64,
}

impl Parts {
    const MOST: Self = Self { time: f64::MAX, nothing: f64::MAX, varied: f64::MAX, undone: f64::MAX };

    fn least(&self, other: &Self) -> Self {
        Self {
            time: self.time.min(other.time),
            nothing: self.nothing.min(other.nothing),
            varied: self.varied.min(other.varied),
            undone: self.undone.min(other.undone),
        }
    }

    fn net(&self) -> f64 {
        self.time - (self.varied - self.nothing) - (self.undone - self.nothing) / 2.0
    }
}

struct Bench {
    world: World,
    repeat: u32,
    rounds: usize,
    /// How many packets there have been.
    runs: Cell<u32>,
}

impl Bench {
    fn new(plan: &Plan) -> Result<Self> {
        let path = std::env::var_os("NCM_BENCH_OBJECT").context(
            "NCM_BENCH_OBJECT does not name the benchmark's object: run `cargo xtask bench`, or \
             `cargo xtask object --features bench` for its path",
        )?;
        let object = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        let world = World::with_object(&object, &[("flows", MANY), ("rules", 1 << 17), ("classes", 1 << 17)]);
        let repeat = if plan.quick { 50_000 } else { 100_000 };
        let rounds = if plan.quick { 5 } else { 25 };
        Ok(Self { world, repeat, rounds, runs: Cell::new(0) })
    }

    /// Writes the tables of policy sets.
    fn write(&self, sets: &Sets) -> Result<()> {
        let tables = self.world.tables();
        for outcome in
            [tables.rules.put_batch(sets.rules.clone()), tables.classes.put_batch(sets.classes.clone())]
        {
            ensure!(outcome.is_complete(), "the kernel refused entries of the policy: {outcome:?}");
        }
        Ok(())
    }

    /// Puts the guest's port into a set.
    fn join(&self, set: u32) {
        self.world.change_port(A1, |port| (port.set, port.max_flows) = (set, MANY));
    }

    /// A frame, 64 bytes long in IPv4, from the guest or to it.
    fn frame(&self, way: Way, family: u8) -> Vec<u8> {
        let inner = |from: usize| {
            let macs = [A1.mac, RA.mac];
            let (source, destination) = (macs[from], macs[1 - from]);
            if family == 4 {
                let ips = [A1.ip, RA.ip];
                udp((ips[from], PORT), (ips[1 - from], PORT), &[0; 22]).frame(destination, source)
            } else {
                let ips = [A1.ip_v6(), RA.ip_v6()];
                udp6((ips[from], PORT), (ips[1 - from], PORT), &[0; 22]).frame(destination, source)
            }
        };
        match way {
            Way::ToTunnel => inner(0),
            Way::ToGuest => tunnel(&Outer::new(HOST_1, HERE, A1.subnet.vni), &inner(1)),
        }
    }

    /// Sends a packet each way, so that the flow is established; gives all that are.
    fn establish(&self, way: Way, family: u8) -> Result<Vec<(FlowKey, Flow)>> {
        let first = [way, if way == Way::ToTunnel { Way::ToGuest } else { Way::ToTunnel }];
        for way in first.into_iter().chain(first) {
            let seen = match way {
                Way::ToTunnel => self.world.from_guest_at(Hook::GuestXdp, A1, self.frame(way, family)),
                Way::ToGuest => self.world.from_wire(Hook::WireXdp, self.frame(way, family)),
            };
            ensure!(seen.drops.is_empty(), "the flow is not let through: {:?}", seen.drops);
        }
        Ok(self.world.tables().flows.entries()?)
    }

    /// Gives the minimal program a flow; to it, the port is the interface.
    fn add_minimal(&self, (key, flow): (FlowKey, Flow)) -> Result<()> {
        let key = FlowKey { port: self.world.ifindex(A1.interface), ..key };
        let flow = Flow { target: self.world.ifindex("up0"), ..flow };
        let written = self.world.dataplane().put_other("BENCH_FLOWS", key.as_bytes(), flow.as_bytes());
        written.context("write the minimal program's flow")
    }

    /// Measures both in turn, so that what disturbs the machine disturbs both. Of each part the least counts: whatever else goes on
    /// only adds.
    fn in_turn(&self, both: [&dyn Fn() -> Result<Parts>; 2]) -> Result<[f64; 2]> {
        let mut least = [Parts::MOST; 2];
        for _ in 0..self.rounds {
            for (least, measure) in least.iter_mut().zip(both) {
                *least = least.least(&measure()?);
            }
        }
        Ok(least.map(|parts| parts.net()))
    }

    /// Nanoseconds of a packet in the product's program, of which each begins so many flows.
    fn run(&self, way: Way, family: u8, vary: Vary, begun: u64) -> Result<Parts> {
        let (program, success) = way.program();
        let before = [self.counted(success)?, self.counted(PathCounter::FlowCreated)?];
        let time = self.time(program, way, family, vary, XDP_REDIRECT)?;
        let runs = u64::from(self.repeat);
        let moved = self.counted(success)? - before[0];
        ensure!(moved == runs, "{moved} of {runs} runs of {program} were {}", success.name());
        let created = self.counted(PathCounter::FlowCreated)? - before[1];
        // Some few may be remembered on a processor that the thread has left.
        let few = begun * runs / 100;
        ensure!(
            (begun * runs - few..=begun * runs).contains(&created),
            "{created} flows were begun by {runs} runs of {program}"
        );
        let nothing = self.time("bench_nothing", way, family, vary, XDP_PASS)?;
        let varied = self.time("bench_vary", way, family, vary, XDP_PASS)?;
        let undone = self.time("bench_undo", Way::ToGuest, family, vary, XDP_PASS)?;
        Ok(Parts { time, nothing, varied, undone })
    }

    /// Nanoseconds of a packet in the minimal program.
    fn minimal(&self, family: u8, vary: Vary) -> Result<Parts> {
        let time = self.time("bench_reference", Way::ToTunnel, family, vary, XDP_REDIRECT)?;
        let nothing = self.time("bench_nothing", Way::ToTunnel, family, vary, XDP_PASS)?;
        let varied = self.time("bench_vary", Way::ToTunnel, family, vary, XDP_PASS)?;
        Ok(Parts { time, nothing, varied, undone: nothing })
    }

    /// Mean nanoseconds of a run.
    fn time(&self, program: &str, way: Way, family: u8, vary: Vary, action: u32) -> Result<f64> {
        // Each measurement goes on where the one before ended, so that what it begins is new.
        let run = self.runs.replace(self.runs.get().wrapping_add(self.repeat));
        let bytes = vary.bytes(way, family, run);
        self.world.dataplane().put_other("BENCH_VARY", &0_u32.to_ne_bytes(), &bytes)?;
        self.world.beat(0);
        let ifindex = if way == Way::ToTunnel { self.world.ifindex(A1.interface) } else { 0 };
        let run = TestRun { repeat: self.repeat, ..TestRun::new(self.frame(way, family), ifindex) };
        let outcome = self.world.dataplane().test_run_program(program, &run)?;
        ensure!(outcome.action == action, "{program} ended in {}, not in {action}", outcome.action);
        Ok(outcome.duration.as_nanos() as f64)
    }

    fn counted(&self, counter: PathCounter) -> Result<u64> {
        let counts = self.world.tables().counters.get(&(counter as u32)).context("read a counter")?;
        Ok(counts.map_or(0, |count| count.packets))
    }
}
