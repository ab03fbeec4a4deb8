//! Memory is bounded: after thousands of random changes everything is as large as before.

use std::collections::BTreeMap;
use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ncm_tests::many;
use ncm_tests::testbed::{Controller, Host, HostOptions, Lab, Random, TwoHosts, Wanted, say};

/// What an agent takes up.
#[derive(Clone, PartialEq, Debug)]
struct Size {
    /// Entries by table.
    entries: BTreeMap<String, u64>,
    pins: usize,
    threads: usize,
    descriptors: usize,
    /// Bytes.
    resident: u64,
}

impl Size {
    fn of(host: &Host) -> Result<Self> {
        let process = host.agent_mut().process().id();
        let count =
            |what: &str| Ok::<_, anyhow::Error>(fs::read_dir(format!("/proc/{process}/{what}"))?.count());
        // First, as whoever asks the agent has it do something.
        let (threads, descriptors, resident) = (count("task")?, count("fd")?, host.agent().memory()?.0);
        let tables: Vec<serde_json::Value> =
            serde_json::from_str(&host.expect_ncmctl(&["map", "list", "-o", "json"])?)?;
        // What packets leave behind comes and goes by itself; and slots of epochs keep their numbers for ever.
        let other = [
            "flows",
            "half_open",
            "port_flows",
            "policy_counts",
            "drops",
            "port_drops",
            "port_traffic",
            "counters",
            "limits",
            "remote_epochs",
        ];
        let entries = tables.iter().filter_map(|table| {
            let name = table["name"].as_str()?;
            (!other.contains(&name)).then_some((name.to_owned(), table["entries"].as_u64()?))
        });
        let pins = host.ns.run(&format!("find /sys/fs/bpf/ncm/{}", host.name()))?;
        Ok(Self { entries: entries.collect(), pins: pins.lines().count(), threads, descriptors, resident })
    }

    /// The size when nothing has gone on for a while.
    fn settled(host: &Host, quiet: Duration) -> Result<Self> {
        thread::sleep(quiet);
        let size = Self::of(host)?;
        say(&format!("{size:?}"));
        Ok(size)
    }

    fn expect(&self, before: &Self, Soak { part, threads, .. }: &Soak) -> Result<()> {
        ensure!(self.entries == before.entries, "tables: {:?}\nbefore: {:?}", self.entries, before.entries);
        ensure!(self.pins == before.pins, "{} pins, before {}", self.pins, before.pins);
        ensure!(
            self.descriptors <= before.descriptors,
            "{} file descriptors, before {}",
            self.descriptors,
            before.descriptors
        );
        ensure!(
            self.threads.abs_diff(before.threads) <= *threads,
            "{} threads, before {}",
            self.threads,
            before.threads
        );
        let grown = self.resident as f64 / before.resident as f64 - 1.0;
        ensure!(
            grown <= *part,
            "{} bytes resident, before {}: {:.1} % more",
            self.resident,
            before.resident,
            grown * 100.0
        );
        Ok(())
    }
}

/// Brings the host to hold all that there may be.
fn fill(host: &Host, wanted: &mut Wanted) -> Result<()> {
    let controller = Controller::connect(&host.ns)?;
    controller.push(&wanted.fill())?;
    Ok(())
}

/// How much is done, and what may be left of it.
struct Soak {
    /// Rounds before the first measurement, and before each further one.
    rounds: &'static [u32],
    resources: u32,
    /// Part by which resident memory may have grown.
    part: f64,
    /// How long nothing goes on before a measurement: memory is given back within six seconds, threads without work go after ten.
    quiet: Duration,
    /// So many threads may be there that were not before, or the other way round: those without work, while `quiet` is shorter than
    /// they stay.
    threads: usize,
    seed: u64,
}

fn soak(lab: &Lab, soak: &Soak) -> Result<()> {
    let cloud = many::cloud();
    // What is remembered of the past has bounds. The first rounds reach them.
    let options = HostOptions::default().with("limits", "tombstones", "16384");
    let net = TwoHosts::new(lab, options)?;
    let (a, b) = (cloud.guest(lab, &net.host1, "a")?, cloud.guest(lab, &net.host2, "b")?);
    net.push(&cloud)?;
    let host = &net.host1;
    let mut wanted = Wanted::new(&cloud, "host1", soak.resources, Random::seeded(soak.seed));
    let mut before = None;
    for rounds in soak.rounds {
        let controller = Controller::connect(&host.ns)?;
        for round in 0..*rounds {
            let message = wanted.change(20);
            controller.push(&message).with_context(|| format!("round {round}"))?;
        }
        drop(controller);
        wanted.expect_converged(host)?;
        fill(host, &mut wanted)?;
        wanted.expect_converged(host)?;
        a.expect_ping(b.ip())?;
        say(&format!("after {rounds} rounds"));
        let size = Size::settled(host, soak.quiet)?;
        match &before {
            None => before = Some(size),
            Some(before) => size.expect(before, soak)?,
        }
    }
    Ok(())
}

#[test]
fn some_hundred_rounds_of_random_changes_leave_nothing_behind() {
    let rounds = &[500, 300];
    let quiet = Duration::from_secs(8);
    let some = Soak { rounds, resources: 1000, part: 0.1, quiet, threads: 16, seed: 21 };
    Lab::story(|lab| soak(lab, &some));
}

#[test]
#[ignore = "takes minutes"]
fn ten_thousand_rounds_of_random_changes_leave_nothing_behind() {
    let rounds = &[7000, 10_000, 10_000];
    let quiet = Duration::from_secs(25);
    let all = Soak { rounds, resources: 10_000, part: 0.05, quiet, threads: 0, seed: 22 };
    Lab::story(|lab| soak(lab, &all));
}
