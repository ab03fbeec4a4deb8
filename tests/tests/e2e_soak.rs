//! Memory is bounded: after thousands of random changes everything is as large as before.

use std::collections::BTreeMap;
use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ncm_tests::many;
use ncm_tests::testbed::{Controller, Host, HostOptions, Lab, Random, TwoHosts, Wanted};

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
        let process = host.agent_mut().process().id();
        let count =
            |what: &str| Ok::<_, anyhow::Error>(fs::read_dir(format!("/proc/{process}/{what}"))?.count());
        let pins = host.ns.run(&format!("find /sys/fs/bpf/ncm/{}", host.name()))?;
        Ok(Self {
            entries: entries.collect(),
            pins: pins.lines().count(),
            threads: count("task")?,
            descriptors: count("fd")?,
            resident: host.agent().memory()?.0,
        })
    }

    /// The size when nothing goes on any more: the least of some readings.
    fn settled(host: &Host, readings: u32) -> Result<Self> {
        let mut least = Self::of(host)?;
        for _ in 0..readings {
            thread::sleep(Duration::from_millis(500));
            let size = Self::of(host)?;
            if size.resident <= least.resident || size.threads < least.threads {
                least = size;
            }
        }
        Ok(least)
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
            self.threads <= before.threads + threads,
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
    /// Rounds before the first measurement, and before the second.
    rounds: [u32; 2],
    resources: u32,
    /// Part by which resident memory may have grown.
    part: f64,
    /// Idle threads go after ten seconds: readings of half a second, and threads that may be left, as the readings need some too.
    readings: u32,
    threads: usize,
    seed: u64,
}

fn soak(lab: &Lab, soak: &Soak) -> Result<()> {
    let cloud = many::cloud();
    // What is remembered of the past has bounds. The first rounds reach them.
    let options = HostOptions::default().with("limits", "tombstones", "16384");
    let mut net = TwoHosts::unstarted(lab, options)?;
    // What glibc's arenas keep apart from each other, one for each of the threads that come and go, is not held by anybody.
    net.host1.config.run_by(&["env", "MALLOC_ARENA_MAX=1"]);
    net.host1.start()?;
    net.host2.start()?;
    let (a, b) = (cloud.guest(lab, &net.host1, "a")?, cloud.guest(lab, &net.host2, "b")?);
    net.push(&cloud)?;
    let host = &net.host1;
    let mut wanted = Wanted::new(&cloud, "host1", soak.resources, Random::seeded(soak.seed));
    let mut before = None;
    for rounds in soak.rounds {
        let controller = Controller::connect(&host.ns)?;
        for round in 0..rounds {
            let message = wanted.change(20);
            controller.push(&message).with_context(|| format!("round {round}"))?;
        }
        drop(controller);
        wanted.expect_converged(host)?;
        fill(host, &mut wanted)?;
        wanted.expect_converged(host)?;
        a.expect_ping(b.ip())?;
        let size = Size::settled(host, soak.readings)?;
        ncm_tests::testbed::say(&format!("after {rounds} rounds: {size:?}"));
        match &before {
            None => before = Some(size),
            Some(before) => size.expect(before, soak)?,
        }
    }
    Ok(())
}

#[test]
fn some_hundred_rounds_of_random_changes_leave_nothing_behind() {
    let rounds = [500, 300];
    let some = Soak { rounds, resources: 1000, part: 0.1, readings: 4, threads: 16, seed: 21 };
    Lab::story(|lab| soak(lab, &some));
}

#[test]
#[ignore = "takes minutes"]
fn ten_thousand_rounds_of_random_changes_leave_nothing_behind() {
    let rounds = [7000, 10_000];
    let all = Soak { rounds, resources: 10_000, part: 0.05, readings: 24, threads: 4, seed: 22 };
    Lab::story(|lab| soak(lab, &all));
}
