//! What was accepted is known again: after a kill, with a torn or a damaged journal, on a disk without room.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ncm_model::wire::{GoalState, NeighborState, OperationType};
use ncm_tests::many;
use ncm_tests::testbed::{Cloud, Guest, Host, HostOptions, Lab, TwoHosts};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Two ports on the first host and one on the second, in two subnets of a router.
fn cloud() -> Cloud {
    let mut cloud = Cloud::new();
    cloud
        .vpc("red", 100)
        .subnet("web", "red", "10.1.0.0/24")
        .subnet("db", "red", "10.2.0.0/24")
        .router("r", &["web", "db"])
        .port("a", "web", "10.1.0.11", "host1")
        .port("b", "web", "10.1.0.12", "host2")
        .port("c", "db", "10.2.0.13", "host1")
        .group("friends", &["in icmp from group friends", "in tcp 22 from 10.0.0.0/8", "out any"]);
    for port in ["a", "b", "c"] {
        cloud.member(port, &["friends"]);
    }
    cloud
}

/// The host's journal, as seen from here.
fn journal(lab: &Lab, host: &Host) -> PathBuf {
    lab.run_directory().join("ncm-state").join(host.name())
}

fn files(lab: &Lab, host: &Host) -> Result<Vec<String>> {
    let mut names: Vec<String> = fs::read_dir(journal(lab, host))?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    names.sort();
    Ok(names)
}

/// Everything that is held, with versions, times and origins.
fn held(host: &Host) -> Result<String> {
    host.expect_ncmctl(&["get", "-o", "json"])
}

/// Tables that flows are decided by, with their epochs.
fn tables(host: &Host) -> Result<String> {
    let mut all = String::new();
    for table in [
        "ports",
        "subnets",
        "rules",
        "classes",
        "endpoints_ip",
        "endpoints_mac",
        "routes",
        "vteps",
        "port_by_interface",
    ] {
        let text = host.expect_ncmctl(&["map", "dump", table, "-o", "json"])?;
        let mut rows: Vec<String> = serde_json::from_str::<Vec<serde_json::Value>>(&text)?
            .into_iter()
            .map(|row| row.to_string())
            .collect();
        rows.sort();
        all.push_str(&rows.join("\n"));
    }
    Ok(all)
}

fn guests(lab: &Lab, net: &TwoHosts, cloud: &Cloud) -> Result<[Guest; 3]> {
    Ok([
        cloud.guest(lab, &net.host1, "a")?,
        cloud.guest(lab, &net.host2, "b")?,
        cloud.guest(lab, &net.host1, "c")?,
    ])
}

/// Two hosts that have been told everything, and their guests.
fn pushed(lab: &Lab) -> Result<(Cloud, TwoHosts, [Guest; 3])> {
    let cloud = cloud();
    let net = TwoHosts::new(lab, HostOptions::default())?;
    let guests = guests(lab, &net, &cloud)?;
    net.push(&cloud)?;
    Ok((cloud, net, guests))
}

#[test]
fn after_a_kill_everything_is_known_again_and_nothing_is_touched() {
    Lab::story(|lab| {
        let (cloud, net, [a, b, c]) = pushed(lab)?;
        let host = &net.host1;
        let (local, remote) = (a.begin_ping(c.ip())?, a.begin_ping(b.ip())?);
        local.goes_on(3)?;
        remote.goes_on(3)?;
        let (before, programmed) = (held(host)?, tables(host)?);

        host.kill();
        remote.goes_on(5)?;
        host.start()?;
        ensure!(held(host)? == before, "{before}\nbefore, and now\n{}", held(host)?);
        ensure!(tables(host)? == programmed, "{programmed}\nbefore, and now\n{}", tables(host)?);
        host.agent_mut().wait_for_log("written=0 removed=0", Duration::from_secs(1))?;
        host.expect_ncmctl(&["verify"])?;
        net.push(&cloud)?;
        local.goes_on(5)?;
        remote.goes_on(5)?;
        local.expect_no_loss()?;
        remote.expect_no_loss()
    });
}

/// Who is killed between a rule's deletion and the epochs that it needs leaves a mark; the next run has flows decided anew.
#[test]
fn after_a_kill_amid_a_change_all_flows_are_decided_anew() {
    Lab::story(|lab| {
        let (_, net, [a, b, _c]) = pushed(lab)?;
        let host = &net.host1;
        let ping = a.begin_ping(b.ip())?;
        ping.goes_on(3)?;
        let redecided = || host.metric(&["ncm_path_packets_total{", "\"flow_redecided\""]);
        host.kill();
        let pin = "/sys/fs/bpf/ncm/host1/v2/maps/HEARTBEAT";
        let beat = host.ns.run(&format!("bpftool -j map dump pinned {pin}"))?;
        let beat: serde_json::Value = serde_json::from_str(&beat)?;
        let mut bytes: Vec<String> = beat[0]["value"]
            .as_array()
            .context("a heartbeat")?
            .iter()
            .filter_map(|byte| byte.as_str()?.strip_prefix("0x").map(str::to_owned))
            .collect();
        let first = u8::from_str_radix(&bytes[0], 16)?;
        ensure!(first & 1 == 0, "nothing was being changed");
        bytes[0] = format!("{:02x}", first | 1);
        host.ns.run(&format!(
            "bpftool map update pinned {pin} key hex 00 00 00 00 value hex {}",
            bytes.join(" ")
        ))?;
        host.start()?;
        host.agent_mut().wait_for_log("all flows are decided anew", Duration::from_secs(1))?;
        ping.goes_on(3)?;
        ensure!(redecided()? > 0.0, "no flow was decided anew");
        ping.expect_no_loss()?;
        host.expect_ncmctl(&["verify"])?;
        // And once is enough.
        host.kill();
        host.start()?;
        host.agent_mut().wait_for_log("written=0 removed=0", Duration::from_secs(1))?;
        let log = host.agent_mut().log().tail(50);
        ensure!(!log.contains("decided anew"), "{log}");
        Ok(())
    });
}

#[test]
fn what_changed_in_the_tables_while_no_agent_ran_is_repaired_and_what_is_foreign_goes() {
    Lab::story(|lab| {
        let (_, net, [a, b, _c]) = pushed(lab)?;
        let host = &net.host1;
        a.expect_ping(b.ip())?;
        let programmed = tables(host)?;
        host.kill();
        let pins = "/sys/fs/bpf/ncm/host1/v2/maps";
        let keys = host.ns.run(&format!("bpftool -j map dump pinned {pins}/ENDPOINTS_MAC"))?;
        let keys: Vec<serde_json::Value> = serde_json::from_str(&keys)?;
        let bytes = |value: &serde_json::Value| {
            let bytes = value.as_array().into_iter().flatten().filter_map(|byte| byte.as_str());
            bytes.collect::<Vec<_>>().join(" ")
        };
        for entry in &keys {
            host.ns.run(&format!(
                "bpftool map delete pinned {pins}/ENDPOINTS_MAC key hex {}",
                bytes(&entry["key"]).replace("0x", "")
            ))?;
        }
        let foreign = "07 00 00 00 02 00 00 00 00 99 00 00";
        let value = bytes(&keys.first().context("entries")?["value"]).replace("0x", "");
        host.ns.run(&format!(
            "bpftool map update pinned {pins}/ENDPOINTS_MAC key hex {foreign} value hex {value}"
        ))?;
        ensure!(tables(host).is_err() || tables(host)? != programmed, "the tables are others by now");

        host.start()?;
        ensure!(tables(host)? == programmed, "{programmed}\nbefore, and now\n{}", tables(host)?);
        host.expect_ncmctl(&["verify"])?;
        a.expect_ping(b.ip())
    });
}

#[test]
fn a_damaged_journal_is_set_aside_and_what_it_told_of_forwards_unclaimed_until_it_is_pruned() {
    Lab::story(|lab| {
        let mut cloud = cloud();
        let net = TwoHosts::new(lab, HostOptions::default())?;
        let [a, b, c] = guests(lab, &net, &cloud)?;
        net.push(&cloud)?;
        net.push(&cloud)?;
        let host = &net.host1;
        let pings = a.begin_ping(b.ip())?;
        pings.goes_on(3)?;
        host.kill();
        let log = journal(lab, host).join("log-0000000001");
        let mut bytes = fs::read(&log)?;
        bytes[600] ^= 1;
        fs::write(&log, bytes)?;

        host.start()?;
        host.agent_mut().wait_for_log("set aside", Duration::from_secs(1))?;
        ensure!(
            files(lab, host)? == ["history", "log-0000000001", "log-0000000001.set-aside"],
            "{:?}",
            files(lab, host)?
        );
        ensure!(held(host)?.trim() == "[]", "nothing is known: {}", held(host)?);
        pings.goes_on(3)?;
        let verified = host.ncmctl(&["verify"])?;
        ensure!(!verified.success && verified.stdout.contains("unclaimed"), "{}", verified.stdout);
        c.expect_ping(a.ip())?;

        // A restart in between does not take it for known.
        host.stop()?;
        host.start()?;
        pings.goes_on(3)?;
        // Port `c` is not pushed again.
        cloud.ports.remove("c");
        net.push(&cloud)?;
        pings.goes_on(3)?;
        c.expect_ping(a.ip())?;
        let shown = host.expect_ncmctl(&["prune", "--dry-run"])?;
        ensure!(shown.contains("10.2.0.13"), "{shown}");
        c.expect_ping(a.ip())?;
        host.expect_ncmctl(&["prune"])?;
        host.expect_ncmctl(&["verify"])?;
        c.expect_no_ping(a.ip())?;
        pings.goes_on(3)?;
        host.kill();
        host.start()?;
        host.expect_ncmctl(&["verify"])?;
        pings.goes_on(3)?;
        pings.expect_no_loss()
    });
}

#[test]
fn snapshots_take_the_place_of_the_log_and_tell_the_same() {
    Lab::story(|lab| {
        let cloud = cloud();
        let options = HostOptions::default().with("store", "snapshot_bytes", "8192");
        let net = TwoHosts::new(lab, options)?;
        let [a, b, _c] = guests(lab, &net, &cloud)?;
        let host = &net.host1;
        for _ in 0..40 {
            net.push(&cloud)?;
        }
        host.agent_mut().wait_for_log("the journal has a new snapshot", Duration::from_secs(10))?;
        let names = files(lab, host)?;
        ensure!(names.iter().any(|name| name.starts_with("snapshot-")) && names.len() <= 3, "{names:?}");
        let (before, programmed) = (held(host)?, tables(host)?);
        host.kill();
        host.start()?;
        ensure!(held(host)? == before, "{before}\nbefore, and now\n{}", held(host)?);
        ensure!(tables(host)? == programmed, "{programmed}\nbefore, and now\n{}", tables(host)?);
        a.expect_ping(b.ip())
    });
}

#[test]
fn on_a_full_disk_senders_are_told_and_with_room_everything_is_kept_again() {
    Lab::story(|lab| {
        let cloud = cloud();
        let net = TwoHosts::unstarted(lab, HostOptions::default())?;
        let host = &net.host1;
        host.ns.run("mkdir -p /run/ncm-state/host1")?;
        host.ns.run("mount -t tmpfs -o size=64k tmpfs /run/ncm-state/host1")?;
        host.start()?;
        net.host2.start()?;
        let [a, b, _c] = guests(lab, &net, &cloud)?;
        net.push(&cloud)?;
        host.ns.run_words(&[
            "sh",
            "-c",
            "dd if=/dev/zero of=/run/ncm-state/host1/other bs=1k 2>/dev/null || true",
        ])?;
        let mut refused = None;
        for _ in 0..20 {
            if let Err(error) = host.agent().push_v2(&cloud.goal_state_v2("host1")) {
                refused = Some(format!("{error:#}"));
                break;
            }
        }
        let refused = refused.context("a push on a full disk was answered as if it were kept")?;
        ensure!(refused.contains("not kept") && refused.contains("make room"), "{refused}");
        a.expect_ping(b.ip())?;

        host.ns.run("rm /run/ncm-state/host1/other")?;
        host.agent_mut().wait_for_log("what is accepted is kept again", Duration::from_secs(15))?;
        net.push(&cloud)?;
        let before = held(host)?;
        host.kill();
        host.start()?;
        ensure!(held(host)? == before, "{before}\nbefore, and now\n{}", held(host)?);
        a.expect_ping(b.ip())
    });
}

/// Neighbours of one batch, created or deleted.
fn batch(all: &[NeighborState], number: usize, operation: OperationType) -> Vec<NeighborState> {
    let begin = number % BATCHES * BATCH;
    let mut states = all[begin..begin + BATCH].to_vec();
    states.iter_mut().for_each(|state| state.operation_type = operation as i32);
    states
}

/// Neighbours in a batch, and how many batches there are before they come again.
const BATCH: usize = 150;
const BATCHES: usize = 100;

/// What was answered holds, whenever the agent is killed; of what was not answered, all or nothing; and the tables are what follows.
#[test]
fn killed_at_any_moment_it_knows_what_it_has_answered() {
    Lab::story(|lab| {
        let cloud = cloud();
        let net = TwoHosts::new(lab, HostOptions::default().with("store", "snapshot_bytes", "200000"))?;
        let [a, b, _c] = guests(lab, &net, &cloud)?;
        net.push(&cloud)?;
        let host = &net.host1;
        let pings = a.begin_ping(b.ip())?;
        pings.goes_on(1)?;
        let all = many::neighbors("web", "red", (BATCH * BATCHES) as u32, net.host2.address);
        let ids: Vec<String> = (all.iter().step_by(BATCH))
            .map(|state| state.configuration.as_ref().map(|config| config.id.clone()).unwrap_or_default())
            .collect();
        // Each message makes a batch, and deletes the one five before.
        let (mut next, mut answered) = (0, 0);
        for round in 0..10 {
            let process = host.agent_mut().process().id();
            let killer = thread::spawn(move || {
                thread::sleep(Duration::from_millis(20 + 37 * round));
                kill(Pid::from_raw(process as i32), Signal::SIGKILL)
            });
            loop {
                let mut neighbor_states = batch(&all, next, OperationType::Create);
                if let Some(old) = next.checked_sub(5) {
                    neighbor_states.extend(batch(&all, old, OperationType::Delete));
                }
                let message = GoalState { format_version: 101, neighbor_states, ..Default::default() };
                next += 1;
                match host.agent().push(&message) {
                    Ok(statuses) => {
                        statuses.expect_success()?;
                    }
                    Err(_) => break,
                }
                answered = next;
            }
            killer.join().map_err(|_| anyhow::anyhow!("the killer panicked"))??;
            host.kill();
            host.start()?;
            let text = host.expect_ncmctl(&["get", "neighbor", "-o", "json"])?;
            let held: Vec<serde_json::Value> = serde_json::from_str(&text)?;
            let held: BTreeSet<&str> = held.iter().filter_map(|state| state["id"].as_str()).collect();
            let batches: BTreeSet<usize> = (next.saturating_sub(10)..next)
                .filter(|number| held.contains(ids[number % BATCHES].as_str()))
                .collect();
            let expected = |last: usize| (last.saturating_sub(5)..last).collect::<BTreeSet<usize>>();
            ensure!(
                batches == expected(answered) || batches == expected(next),
                "round {round}: {answered} of {next} answered, and held are {batches:?}"
            );
            // The two ports' neighbours of the cloud beside them.
            let whole = batches.len() * BATCH;
            ensure!(held.len() >= whole && held.len() < whole + 10, "{} held, of {whole}", held.len());
            host.expect_ncmctl(&["verify"])?;
            next = batches.last().map_or(0, |last| last + 1);
            answered = next;
        }
        pings.goes_on(1)?;
        pings.expect_no_loss()
    });
}
