//! What is done to tables and hooks behind the agent's back is found, named, and repaired.

use anyhow::{Context, Result, ensure};
use ncm_tests::testbed::{Cloud, Guest, Host, HostOptions, Lab, TwoHosts};

/// Where the first host's agent has its tables and links.
const PINS: &str = "/sys/fs/bpf/ncm/host1/v2";

/// Two ports on the first host, and one on the second.
fn cloud() -> Cloud {
    let mut cloud = Cloud::new();
    cloud
        .vpc("red", 100)
        .subnet("web", "red", "10.1.0.0/24")
        .port("a", "web", "10.1.0.11", "host1")
        .port("b", "web", "10.1.0.12", "host2")
        .port("c", "web", "10.1.0.13", "host1")
        .group("friends", &["in icmp from group friends", "in tcp 22 from 10.0.0.0/8", "out any"]);
    for port in ["a", "b", "c"] {
        cloud.member(port, &["friends"]);
    }
    cloud
}

/// Two hosts whose guests reach each other, and verify clean.
fn ready(lab: &Lab) -> Result<(TwoHosts, Guest, Guest, Guest)> {
    let cloud = cloud();
    let net = TwoHosts::new(lab, HostOptions::default())?;
    let guest = |port: &str, host: &Host| cloud.guest(lab, host, port);
    let (a, b, c) = (guest("a", &net.host1)?, guest("b", &net.host2)?, guest("c", &net.host1)?);
    net.push(&cloud)?;
    a.expect_ping(b.ip())?;
    a.expect_ping(c.ip())?;
    net.host1.expect_ncmctl(&["verify"])?;
    Ok((net, a, b, c))
}

/// Expects `ncmctl verify` to fail and to name all of these.
fn expect_found(host: &Host, expected: &[&str]) -> Result<()> {
    let verified = host.ncmctl(&["verify"])?;
    ensure!(!verified.success, "nothing was found: {}", verified.stdout);
    for text in expected {
        ensure!(verified.stdout.contains(text), "{text} is not in\n{}", verified.stdout);
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ")
}

/// Entries of a table as bytes, without unused ones of arrays.
fn entries(host: &Host, table: &str) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let text = host.ns.run(&format!("bpftool -j map dump pinned {PINS}/maps/{table}"))?;
    let rows: Vec<serde_json::Value> = serde_json::from_str(&text)?;
    let bytes = |value: &serde_json::Value| -> Option<Vec<u8>> {
        let byte = |byte: &serde_json::Value| u8::from_str_radix(byte.as_str()?.strip_prefix("0x")?, 16).ok();
        value.as_array()?.iter().map(byte).collect()
    };
    let entry = |row: &serde_json::Value| Some((bytes(&row["key"])?, bytes(&row["value"])?));
    let all: Option<Vec<_>> = rows.iter().map(entry).collect();
    let used = |(_, value): &(Vec<u8>, Vec<u8>)| value.iter().any(|byte| *byte != 0);
    Ok(all.with_context(|| format!("{table} in {text}"))?.into_iter().filter(used).collect())
}

fn put(host: &Host, table: &str, key: &[u8], value: &[u8]) -> Result<()> {
    let (key, value) = (hex(key), hex(value));
    host.ns
        .run(&format!("bpftool map update pinned {PINS}/maps/{table} key hex {key} value hex {value}"))
        .map(drop)
}

/// Alters one byte of the first entry of a table that has one which is not zero.
fn alter(host: &Host, table: &str) -> Result<()> {
    let all = entries(host, table)?;
    let (key, value) = all.first().with_context(|| format!("{table} has no entries"))?;
    let mut value = value.clone();
    let byte = value.iter_mut().find(|byte| **byte != 0).context("a byte")?;
    *byte ^= 0x40;
    put(host, table, key, &value)
}

#[test]
fn entries_that_were_deleted_altered_or_added_are_named_and_mended() {
    Lab::story(|lab| {
        let (net, a, b, c) = ready(lab)?;
        let host = &net.host1;
        let tables = [
            "ENDPOINTS_MAC",
            "ENDPOINTS_IP",
            "PORTS",
            "SUBNETS",
            "RULES",
            "CLASSES",
            "VTEPS",
            "HOSTS",
            "NEXT_HOP_GROUPS",
            "NODE",
            "TIMEOUTS",
        ];
        for table in tables {
            alter(host, table)?;
            let name = table.to_ascii_lowercase();
            expect_found(host, &["different", &name])?;
            let repaired = host.expect_ncmctl(&["verify", "--repair"])?;
            ensure!(repaired.contains("entries written"), "{repaired}");
            host.expect_ncmctl(&["verify"]).with_context(|| format!("after the repair of {table}"))?;
        }
        for table in ["ENDPOINTS_MAC", "VTEPS", "PORT_BY_INTERFACE", "VNIS", "DEVICES"] {
            let all = entries(host, table)?;
            let (key, _) = all.first().with_context(|| format!("{table} has no entries"))?;
            host.ns.run(&format!("bpftool map delete pinned {PINS}/maps/{table} key hex {}", hex(key)))?;
            expect_found(host, &["missing", &table.to_ascii_lowercase()])?;
            host.expect_ncmctl(&["verify", "--repair"])?;
        }
        // A flow that was decided under either epoch is decided anew.
        put(host, "REMOTE_EPOCHS", &[7, 0, 0, 0], &[5, 0, 0, 0])?;
        expect_found(host, &["different", "remote_epochs"])?;
        host.expect_ncmctl(&["verify", "--repair"])?;
        let epochs = entries(host, "REMOTE_EPOCHS")?;
        ensure!(epochs.contains(&(vec![7, 0, 0, 0], vec![6, 0, 0, 0])), "{epochs:?}");
        host.expect_ncmctl(&["verify"])?;
        for (table, key) in
            [("VNIS", [9, 0, 0, 0]), ("HOSTS", [200, 0, 0, 0]), ("PORT_BY_INTERFACE", [99, 0, 0, 0])]
        {
            let all = entries(host, table)?;
            let (_, value) = all.first().with_context(|| format!("{table} has no entries"))?;
            put(host, table, &key, value)?;
            expect_found(host, &["unclaimed", &table.to_ascii_lowercase()])?;
            // What nothing claims goes by its own command only.
            ensure!(
                !host.ncmctl(&["verify", "--repair"])?.success,
                "a repair has removed what it did not know"
            );
            host.expect_ncmctl(&["prune"])?;
            host.expect_ncmctl(&["verify"])?;
        }
        a.expect_ping(b.ip())?;
        b.expect_ping(c.ip())?;
        a.expect_ping(c.ip())
    });
}

#[test]
fn programs_that_were_detached_are_named_and_attached_again() {
    Lab::story(|lab| {
        let (net, a, b, _c) = ready(lab)?;
        let host = &net.host1;
        let links = host.ns.run(&format!("ls {PINS}/links"))?;
        let mut seen = 0;
        for link in links.split_whitespace() {
            let (program, _) = link.rsplit_once('-').context("a link is named after its program")?;
            host.ns.run(&format!("bpftool link detach pinned {PINS}/links/{link}"))?;
            expect_found(host, &["detached", program])?;
            let repaired = host.expect_ncmctl(&["verify", "--repair"])?;
            ensure!(repaired.contains("1 programs attached"), "{repaired}");
            host.expect_ncmctl(&["verify"])?;
            a.expect_ping(b.ip())?;
            seen += 1;
        }
        ensure!(seen >= 5, "wire, relay, hand-up and guests: {links}");
        Ok(())
    });
}

#[test]
fn programs_of_others_before_ours_or_in_their_place_are_named() {
    Lab::story(|lab| {
        let (net, a, b, _c) = ready(lab)?;
        let host = &net.host1;
        let bystander = host.ns.bystander(&Cloud::interface("a"))?;
        expect_found(host, &["foreign", "guest_tc", &Cloud::interface("a")])?;
        drop(bystander);
        host.expect_ncmctl(&["verify"])?;

        // Another one holds the wire's only place.
        let links = host.ns.run(&format!("ls {PINS}/links"))?;
        let wire =
            links.split_whitespace().find(|link| link.starts_with("wire_xdp")).context("XDP on the wire")?;
        host.ns.run(&format!("bpftool link detach pinned {PINS}/links/{wire}"))?;
        let shown = host.ns.run("bpftool -j prog list")?;
        let programs: Vec<serde_json::Value> = serde_json::from_str(&shown)?;
        let other = programs.iter().find(|program| program["name"] == "guest_xdp").context("a program")?;
        host.ns.run(&format!("bpftool net attach xdpdrv id {} dev eth0", other["id"]))?;
        expect_found(host, &["detached", "wire_xdp", "guest_xdp"])?;
        let refused = host.ncmctl(&["verify", "--repair"])?;
        ensure!(!refused.success, "it cannot be attached, and was said to be: {}", refused.stdout);
        host.ns.run("bpftool net detach xdpdrv dev eth0")?;
        host.expect_ncmctl(&["verify", "--repair"])?;
        host.expect_ncmctl(&["verify"])?;
        a.expect_ping(b.ip())
    });
}
