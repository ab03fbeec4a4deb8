//! What tables are made of, and how large they are, changes while guests talk: nobody feels it.

use std::cell::Cell;

use anyhow::{Context, Result, ensure};
use ncm_tests::testbed::{AgentConfig, Cloud, Host, HostOptions, Lab, Load, TwoHosts};

fn cloud() -> Cloud {
    let mut cloud = Cloud::new();
    cloud
        .vpc("red", 100)
        .subnet("web", "red", "10.1.0.0/24")
        .subnet("db", "red", "10.2.0.0/24")
        .router("r", &["web", "db"])
        .port("a", "web", "10.1.0.11", "host1")
        .port("b", "web", "10.1.0.12", "host2")
        .port("c", "db", "10.2.0.13", "host2")
        .group("friends", &["in any from group friends", "out any"]);
    for port in ["a", "b", "c"] {
        cloud.member(port, &["friends"]);
    }
    cloud
}

/// Stops a host's agent, and starts it with what `change` makes of its configuration.
fn restart_with(host: &Host, change: impl FnOnce(&mut AgentConfig)) -> Result<()> {
    let mut config = host.config.clone();
    change(&mut config);
    host.stop()?;
    host.start_as(&config)
}

/// The sets of tables that a host's agents have pinned.
fn sets(host: &Host) -> Result<Vec<String>> {
    let listed = host.ns.run_words(&["ls", &format!("/sys/fs/bpf/ncm/{}", host.name())])?;
    Ok(listed.split_whitespace().map(str::to_owned).collect())
}

/// Tables as large as they are, or so many times that.
fn capacities(config: &mut AgentConfig, times: u32) {
    for (key, entries) in [
        ("flows", 65_536),
        ("half_open", 1024),
        ("ports", 256),
        ("endpoints", 65_536),
        ("rules", 4096),
        ("classes", 4096),
        ("hosts", 64),
        ("subnets", 64),
        ("names", 1024),
        ("vteps", 1024),
        ("routes", 1024),
        ("sources", 1024),
        ("source_prefixes", 1024),
        ("port_drops", 1024),
        ("policy_counts", 1024),
    ] {
        config.set("capacity", key, (entries * times).to_string());
    }
}

#[test]
fn tables_get_larger_and_smaller_unfelt() {
    Lab::story(|lab| {
        let cloud = cloud();
        let net = TwoHosts::new(lab, HostOptions::default())?;
        let guest = |port: &str, host: &Host| cloud.guest(lab, host, port);
        let (a, b, c) = (guest("a", &net.host1)?, guest("b", &net.host2)?, guest("c", &net.host2)?);
        net.push(&cloud)?;
        let mut load = Load::begin(&a, &b, &c)?;
        let round = Cell::new(0);
        let told = load.expect_unfelt("tables of other sizes", || {
            // Larger and smaller by turns.
            for _ in 0..2 {
                round.set(round.get() + 1);
                for host in net.hosts() {
                    restart_with(host, |config| capacities(config, 1 + round.get() % 2))?;
                    let sets = sets(host)?;
                    ensure!(sets.len() == 1, "one set of tables is left: {sets:?}");
                    host.expect_ncmctl(&["verify"]).context("as all should be")?;
                }
            }
            Ok(())
        })?;
        println!("{told}");
        a.expect_ping(b.ip())
    });
}
