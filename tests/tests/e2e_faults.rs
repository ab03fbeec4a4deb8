//! The fault matrix: whatever goes wrong, what a controller wants is there in the end, entry by entry, and guests reach each other.
//! docs/operations.md says which test is for which fault.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use ncm_model::wire::{GoalState, OperationStatus};
use ncm_tests::many;
use ncm_tests::testbed::{
    Cloud, Controller, Guest, HostOptions, Lab, Line, Random, TwoHosts, Wanted, eventually, expect_converged,
    to_v2,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Two hosts with their guests, and what is wanted of the first.
struct Story {
    net: TwoHosts,
    wanted: Wanted,
    random: Random,
    a: Guest,
    b: Guest,
}

impl Story {
    fn begin(lab: &Lab, options: HostOptions, resources: u32, seed: u64) -> Result<Self> {
        Self::on(lab, TwoHosts::new(lab, options)?, resources, seed)
    }

    fn on(lab: &Lab, net: TwoHosts, resources: u32, seed: u64) -> Result<Self> {
        let cloud: Cloud = many::cloud();
        let random = Random::seeded(seed);
        let wanted = Wanted::new(&cloud, "host1", resources, random.clone());
        let (a, b) = (cloud.guest(lab, &net.host1, "a")?, cloud.guest(lab, &net.host2, "b")?);
        net.push(&cloud)?;
        Ok(Self { net, wanted, random, a, b })
    }

    /// The host holds what is wanted and has programmed it, and its guest reaches another host's.
    fn converged(&self) -> Result<()> {
        self.wanted.expect_converged(&self.net.host1)?;
        self.a.expect_ping(self.b.ip())
    }

    fn controller(&self) -> Result<Controller> {
        Controller::connect(&self.net.host1.ns)
    }
}

/// Kills the agent amid pushes, as often as that.
fn killed(lab: &Lab, rounds: u32, seed: u64) -> Result<()> {
    let options = HostOptions::default().with("store", "snapshot_bytes", "300000");
    let mut story = Story::begin(lab, options, 1200, seed)?;
    let pings = story.a.begin_ping(story.b.ip())?;
    for round in 0..rounds {
        let process = story.net.host1.agent_mut().process().id();
        let delay = Duration::from_micros(u64::from(story.random.below(120_000)));
        let killer = thread::spawn(move || {
            thread::sleep(delay);
            kill(Pid::from_raw(process as i32), Signal::SIGKILL)
        });
        let controller = story.controller()?;
        let unanswered = loop {
            let count = 1 + story.random.below(400);
            let message = story.wanted.change(count);
            if controller.push(&message).is_err() {
                break message;
            }
        };
        killer.join().map_err(|_| anyhow!("the killer panicked"))??;
        story.net.host1.kill();
        story.net.host1.start()?;
        // What was not answered is said again, as a controller does.
        story.controller()?.push(&unanswered)?;
        story.converged().with_context(|| format!("round {round}, killed after {delay:?}"))?;
    }
    pings.goes_on(1)?;
    pings.expect_no_loss()
}

#[test]
fn killed_at_random_points_of_random_pushes() {
    Lab::story(|lab| killed(lab, 10, 1));
}

#[test]
#[ignore = "takes minutes"]
fn killed_two_hundred_times_at_random_points_of_random_pushes() {
    Lab::story(|lab| killed(lab, 200, 2));
}

#[test]
fn full_tables_and_then_room() {
    Lab::story(|lab| {
        let options = HostOptions::default().with("capacity", "endpoints", "256");
        let mut story = Story::begin(lab, options, 600, 3)?;
        let filled = story.wanted.fill();
        let answer = story.controller()?.push(&filled)?;
        let refused = answer.count(OperationStatus::Failure);
        ensure!(refused > 100, "{refused} refused of what does not fit");
        story.a.expect_ping(story.b.ip()).context("beside a full table")?;
        // Room comes by deleting; what did not fit is tried again by itself.
        loop {
            let all = story.wanted.everything().neighbor_states.len();
            if all < 200 {
                break;
            }
            let message = story.wanted.shrink(100);
            story.controller()?.push(&message)?;
        }
        eventually("nothing is refused any more", Duration::from_secs(15), || {
            let failed = story.net.host1.expect_ncmctl(&["get", "--status", "failure", "-o", "json"])?;
            Ok(failed.trim() == "[]")
        })?;
        story.converged()
    });
}

/// A library that is loaded into the agent and makes calls fail, and the directory whose files say which.
fn faults(lab: &Lab) -> Result<(PathBuf, PathBuf)> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/testbed/faults.c");
    let (library, directory) = (lab.run_directory().join("faults.so"), lab.run_directory().join("faults"));
    fs::create_dir_all(&directory)?;
    // Seen from this process; the compiler runs in it too, and not in the lab.
    let made = std::env::temp_dir().join(format!("ncm-faults-{}.so", std::process::id()));
    let built = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-o"])
        .arg(&made)
        .arg(&source)
        .arg("-ldl")
        .status();
    ensure!(built.context("run the C compiler")?.success(), "the library for faults does not build");
    fs::copy(&made, &library)?;
    fs::remove_file(&made)?;
    Ok((library, directory))
}

/// Agents that faults can be made in, and the directory that says which.
fn faulty(lab: &Lab) -> Result<(TwoHosts, PathBuf)> {
    let (_, directory) = faults(lab)?;
    let mut net = TwoHosts::unstarted(lab, HostOptions::default())?;
    net.host1.config.run_by(&["env", "LD_PRELOAD=/run/faults.so", "NCM_FAULTS=/run/faults"]);
    net.host1.start()?;
    net.host2.start()?;
    Ok((net, directory))
}

#[test]
fn netlink_that_fails_and_loses_messages() {
    Lab::story(|lab| {
        let (net, directory) = faulty(lab)?;
        let mut story = Story::on(lab, net, 300, 4)?;
        for every in ["3", "2", "5"] {
            fs::write(directory.join("netlink"), every)?;
            // Meanwhile an interface comes and goes, and so does the way out.
            story.a.unplug()?;
            let message = story.wanted.change(60);
            story.controller()?.push(&message)?;
            let host = &story.net.host1.ns;
            host.run("ip link set eth0 down")?;
            host.run("ip link set eth0 up")?;
            story.a.plug()?;
            story.net.host1.agent_mut().wait_for_log("No buffer space", Duration::from_secs(10))?;
            fs::remove_file(directory.join("netlink"))?;
            let came = eventually("guests reach each other again", Duration::from_secs(20), || {
                story.a.ns.pings(story.b.ip())
            });
            came.with_context(|| format!("when one of {every} calls had failed"))?;
            story.converged().with_context(|| format!("when one of {every} calls had failed"))?;
        }
        Ok(())
    });
}

#[test]
fn a_clock_that_jumps() {
    Lab::story(|lab| {
        let (net, directory) = faulty(lab)?;
        let mut story = Story::on(lab, net, 400, 5)?;
        let pings = story.a.begin_ping(story.b.ip())?;
        // Years ahead, back again, behind what the journal says, and to a time that no agent would start at.
        for seconds in ["94608000", "0", "-86400", "-1500000000", "3600"] {
            fs::write(directory.join("clock"), seconds)?;
            for _ in 0..3 {
                let message = story.wanted.change(80);
                story.controller()?.push(&message)?;
            }
            let late = story.wanted.everything();
            story.controller()?.push(&late)?;
            story.converged().with_context(|| format!("{seconds} seconds off"))?;
            ensure!(
                story.net.host1.metric(&["ncm_heartbeat_age_milliseconds"])? < 3000.0,
                "the heartbeat stopped"
            );
            pings.goes_on(2)?;
        }
        // What was accepted under all these clocks is known again.
        story.net.host1.kill();
        story.net.host1.start()?;
        story.converged()?;
        pings.goes_on(2)?;
        pings.expect_no_loss()
    });
}

#[test]
fn interfaces_that_flap_amid_pushes() {
    Lab::story(|lab| {
        let mut story = Story::begin(lab, HostOptions::default(), 400, 6)?;
        for round in 0..6 {
            let message = story.wanted.change(100);
            let controller = story.controller()?;
            let pushing = thread::spawn(move || controller.push(&message).map(drop));
            match round % 3 {
                0 => {
                    story.a.unplug()?;
                    story.a.plug()?;
                }
                1 => {
                    story.net.host1.ns.run("ip link set eth0 down")?;
                    story.net.host1.ns.run("ip link set eth0 up")?;
                }
                _ => {
                    let interface = Cloud::interface("a");
                    for _ in 0..5 {
                        story.net.host1.ns.run(&format!("ip link set {interface} down"))?;
                        story.net.host1.ns.run(&format!("ip link set {interface} up"))?;
                    }
                }
            }
            pushing.join().map_err(|_| anyhow!("the controller panicked"))??;
            eventually("guests reach each other again", Duration::from_secs(10), || {
                story.a.ns.pings(story.b.ip())
            })?;
            story.converged().with_context(|| format!("round {round}"))?;
        }
        Ok(())
    });
}

#[test]
fn controllers_that_go_in_the_middle_of_a_message() {
    Lab::story(|lab| {
        let mut story = Story::begin(lab, HostOptions::default(), 2000, 7)?;
        for _ in 0..12 {
            let before = story.wanted.clone();
            let message = story.wanted.change(800);
            let length = prost::Message::encoded_len(&message) as u32;
            let line =
                Line { cut_after: Some((story.random.below(length + 2000)) as usize), ..Line::default() };
            // Either all of it came, or nothing of it counts.
            let cut =
                Controller::over(&story.net.host1.ns, &line).and_then(|controller| controller.push(&message));
            let host = &story.net.host1;
            if cut.is_err() {
                let whole = || Ok(before.is_held(host)? || story.wanted.is_held(host)?);
                eventually("a message counts as a whole or not at all", Duration::from_secs(5), whole)?;
            }
            story.controller()?.push(&message)?;
        }
        story.converged()
    });
}

#[test]
fn duplicates_and_streams_that_overtake_each_other() {
    Lab::story(|lab| {
        let mut story = Story::begin(lab, HostOptions::default(), 500, 8)?;
        let messages: Vec<GoalState> = (0..60).map(|_| story.wanted.change(60)).collect();
        // Each message twice, over four streams, in another order in each.
        let mut controllers = Vec::new();
        for number in 0..4_u32 {
            let (messages, controller) = (messages.clone(), story.controller()?);
            let mut random = story.random.clone();
            for _ in 0..number {
                random.below(2);
            }
            controllers.push(thread::spawn(move || -> Result<()> {
                let mut order: Vec<usize> = (0..messages.len()).chain(0..messages.len()).collect();
                for at in (1..order.len()).rev() {
                    order.swap(at, random.below(at as u32 + 1) as usize);
                }
                let stream = controller.stream()?;
                for number in &order {
                    stream.send(to_v2(messages[*number].clone()))?;
                }
                stream.answers(order.len())
            }));
        }
        for controller in controllers {
            controller.join().map_err(|_| anyhow!("a controller panicked"))??;
        }
        // Revisions have decided.
        story.converged()
    });
}

#[test]
fn everything_again_every_second() {
    Lab::story(|lab| {
        let mut story = Story::begin(lab, HostOptions::default(), 3000, 9)?;
        let everything = story.wanted.fill();
        let controller = story.controller()?;
        controller.push(&everything)?;
        let pings = story.a.begin_ping(story.b.ip())?;
        pings.goes_on(2)?;
        let redecided = || story.net.host1.metric(&["ncm_path_packets_total{", "\"flow_redecided\""]);
        let before = redecided()?;
        for _ in 0..5 {
            let begun = Instant::now();
            controller.push(&everything)?;
            pings.goes_on(1)?;
            thread::sleep(Duration::from_secs(1).saturating_sub(begun.elapsed()));
        }
        ensure!(redecided()? == before, "what was said again had flows decided anew");
        story.converged()?;
        pings.expect_no_loss()
    });
}

#[test]
fn a_thousand_idle_streams() {
    Lab::story(|lab| {
        let mut story = Story::begin(lab, HostOptions::default(), 500, 10)?;
        let controllers = (0..10).map(|_| story.controller()).collect::<Result<Vec<_>>>()?;
        let mut open = Vec::new();
        for controller in &controllers {
            for _ in 0..100 {
                open.push(controller.stream()?);
            }
        }
        ensure!(story.net.host1.metric(&["ncm_streams "])? >= 1000.0, "they are open");
        for _ in 0..5 {
            let message = story.wanted.change(200);
            story.controller()?.push(&message)?;
        }
        story.converged()?;
        // And each of them works.
        for stream in open.iter().step_by(100) {
            stream.send(to_v2(story.wanted.everything()))?;
            stream.answers(1)?;
        }
        drop((open, controllers));
        eventually("their places are free again", Duration::from_secs(5), || {
            Ok(story.net.host1.metric(&["ncm_streams "])? == 0.0)
        })?;
        story.converged()
    });
}

#[test]
fn ten_controllers_at_once() {
    Lab::story(|lab| {
        let story = Story::begin(lab, HostOptions::default(), 0, 11)?;
        let ground = story.wanted.everything();
        let mut controllers = Vec::new();
        for number in 0..10_usize {
            let controller = story.controller()?;
            let states = many::neighbors("web", "red", 10_000, "172.31.9.9".parse()?);
            let own: Vec<_> = states.into_iter().skip(number * 1000).take(1000).collect();
            controllers.push(thread::spawn(move || -> Result<Vec<_>> {
                for part in own.chunks(50) {
                    let message = GoalState { neighbor_states: part.to_vec(), ..GoalState::default() };
                    controller.push(&message)?.expect_success()?;
                }
                Ok(own)
            }));
        }
        let mut all = ground;
        for controller in controllers {
            all.neighbor_states.extend(controller.join().map_err(|_| anyhow!("a controller panicked"))??);
        }
        expect_converged(&story.net.host1, &all)?;
        story.a.expect_ping(story.b.ip())
    });
}

#[test]
fn a_controller_that_does_not_read_its_answers() {
    Lab::story(|lab| {
        let mut story = Story::begin(lab, HostOptions::default(), 1000, 12)?;
        let deaf = Arc::new(AtomicBool::new(false));
        let line = Line { deaf: Arc::clone(&deaf), ..Line::default() };
        let slow = Controller::over(&story.net.host1.ns, &line)?;
        let stream = slow.stream()?;
        deaf.store(true, Ordering::Relaxed);
        let message = to_v2(story.wanted.fill());
        let mut sent = 0;
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(2) {
            match stream.try_send(message.clone()) {
                true => sent += 1,
                false => thread::sleep(Duration::from_millis(10)),
            }
        }
        // Others are served as ever, and what is not read costs little.
        for _ in 0..5 {
            let begun = Instant::now();
            let change = story.wanted.change(100);
            story.controller()?.push(&change)?;
            ensure!(begun.elapsed() < Duration::from_secs(2), "a push took {:?}", begun.elapsed());
        }
        let (resident, _) = story.net.host1.agent().memory()?;
        ensure!(resident < 300 << 20, "{resident} bytes are resident");
        deaf.store(false, Ordering::Relaxed);
        stream.answers(sent)?;
        drop(stream);
        // Old states in old revisions have not taken back what came later.
        story.converged()
    });
}
