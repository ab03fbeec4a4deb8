//! One message with a million neighbours: applied, answered under the reply's limit, and in use.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use ncm_model::wire::{GoalState, OperationStatus};
use ncm_tests::many;
use ncm_tests::testbed::{HostOptions, Lab, TwoHosts};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use prost::Message as _;

/// What hangs takes longer; no measure of speed.
const SOON: Duration = Duration::from_secs(10);

#[test]
fn a_million_neighbours_in_one_message() {
    Lab::story(|lab| {
        let cloud = many::cloud();
        let net = TwoHosts::new(lab, HostOptions::default().with("capacity", "endpoints", "1100000"))?;
        let (a, b) = (cloud.guest(lab, &net.host1, "a")?, cloud.guest(lab, &net.host2, "b")?);
        net.push(&cloud)?;
        a.expect_ping(b.ip())?;

        let message = GoalState {
            format_version: 101,
            neighbor_states: many::neighbors("web", "red", 1_000_000, net.host2.address),
            ..Default::default()
        };
        let begin = Instant::now();
        // The reply's size is checked by the testbed: a sender's limit is 4 MiB.
        let reply = net.host1.agent().push(&message)?;
        println!("a million neighbours took {:?}", begin.elapsed());
        ensure!(reply.count(OperationStatus::Failure) == 0, "FAILURE among a million neighbours");
        let (first, last) = (many::address(0), many::address(999_999));
        ensure!(a.arp(first)? == Some(many::mac(0)), "the first of a million is not answered by ARP");
        ensure!(a.arp(last)? == Some(many::mac(999_999)), "the last of a million is not answered by ARP");
        a.expect_ping(b.ip())
    });
}

/// A first host with a million neighbours, pushed in one message.
fn with_a_million(lab: &Lab, options: HostOptions) -> Result<TwoHosts> {
    let net = TwoHosts::unstarted(lab, options.with("capacity", "endpoints", "1100000"))?;
    net.host1.start()?;
    // Its port has no guest, and stays pending.
    net.host1.agent().push_v2(&many::cloud().goal_state_v2("host1"))?;
    let message = GoalState {
        format_version: 101,
        neighbor_states: many::neighbors("web", "red", 1_000_000, net.host2.address),
        ..Default::default()
    };
    let (reply, _) = net.host1.agent().push_encoded(message.encode_to_vec().into())?;
    ensure!(reply.count(OperationStatus::Failure) == 0, "FAILURE among a million neighbours");
    Ok(net)
}

/// Whether a process has ended; it is its parent's to be waited for.
fn has_ended(process: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"));
    stat.map_or(true, |stat| stat.rsplit_once(')').is_some_and(|(_, rest)| rest.starts_with(" Z")))
}

#[test]
fn a_million_on_their_way_do_not_keep_the_agent_from_stopping() {
    Lab::story(|lab| {
        let options = HostOptions::default().with("capacity", "endpoints", "1100000");
        let net = TwoHosts::unstarted(lab, options)?;
        let host = &net.host1;
        host.start()?;
        host.agent().push_v2(&many::cloud().goal_state_v2("host1"))?;
        let message = GoalState {
            format_version: 101,
            neighbor_states: many::neighbors("web", "red", 1_000_000, net.host2.address),
            ..Default::default()
        };
        let message = message.encode_to_vec();
        let process = host.agent_mut().process().id();
        let stopper = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(800));
            let begin = Instant::now();
            kill(Pid::from_raw(process as i32), Signal::SIGTERM)?;
            while !has_ended(process) {
                std::thread::sleep(Duration::from_millis(1));
            }
            anyhow::Ok(begin.elapsed())
        });
        let answered = host.agent().push_encoded(message.into()).is_ok();
        let stopped = stopper.join().map_err(|_| anyhow::anyhow!("the stopper panicked"))??;
        let begun = host.agent().log().tail(20);
        println!("stopped after {stopped:?}, answered: {answered}\n{begun}");
        ensure!(stopped < SOON, "it took {stopped:?} to stop");
        host.kill();
        host.start()?;
        host.expect_ncmctl(&["verify"])?;
        let held = host.metric(&["ncm_table_entries{", "\"endpoints_mac\""])? as u32;
        ensure!(held >= 1_000_000 || (held < 10 && !answered), "{held} of a million are known again");
        Ok(())
    });
}

/// The journal is on a disk, as it is on a host. What it costs is the benchmark's to say.
#[test]
fn a_million_neighbours_are_known_again_after_a_kill() {
    let state = OnDisk(std::env::temp_dir().join(format!("million-{}", std::process::id())));
    let shown = format!("{:?}", state.0.display().to_string());
    Lab::story(|lab| {
        let net = with_a_million(lab, HostOptions::default().with("paths", "state", &shown))?;
        for _ in 0..2 {
            net.host1.kill();
            let begin = Instant::now();
            net.host1.start()?;
            println!("ready after {:?}", begin.elapsed());
            net.host1.agent_mut().wait_for_log("written=0 removed=0", SOON)?;
        }
        Ok(())
    });
}

/// A directory that is removed at the end, also when the test fails.
struct OnDisk(std::path::PathBuf);

impl Drop for OnDisk {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}
