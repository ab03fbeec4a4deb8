//! Nothing that happens to an agent is felt by a guest's packet: numbered datagrams at a steady rate, TCP connections that go on, and
//! new ones, while agents are restarted, killed, told everything again, and lose what they knew.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ncm_tests::testbed::{Cloud, Guest, Host, HostOptions, Lab, Round, Sequence, Talk, TwoHosts};

/// Datagrams a second.
const RATE: u32 = 100_000;

/// More than are ever sent.
const MOST: u32 = 8_000_000;

/// A round counts only if as many arrive while nothing happens; a machine that is busy elsewhere gets some more.
const ATTEMPTS: usize = 5;

/// A machine may be busy elsewhere in just the one round and not in the other: what is felt is so each time.
const FELT: usize = 2;

/// A connection takes no longer unless a packet of it was lost: the first repetition of a SYN comes after a second.
const CONNECTED: Duration = Duration::from_millis(900);

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

/// What goes on between guests.
struct Load<'a> {
    sequence: Sequence,
    talks: Vec<Talk>,
    from: &'a Guest,
    to: &'a Guest,
}

impl<'a> Load<'a> {
    fn begin(from: &'a Guest, to: &'a Guest, router: &'a Guest) -> Result<Self> {
        let mut talks = Vec::new();
        for port in 0..3 {
            talks.push(Talk::begin(from, to, 5000 + port, false)?);
            talks.push(Talk::begin(router, from, 6000 + port, false)?);
        }
        Ok(Self { sequence: Sequence::between(from, to, MOST)?, talks, from, to })
    }

    /// The load while `during` takes: what was lost of it.
    fn around(&mut self, during: impl FnOnce() -> Result<()>) -> Result<Round> {
        let (from, address) = (self.from, SocketAddr::from((self.to.ip(), 7000)));
        let listener = self.to.ns.listen(address)?;
        let (done, connected) = (AtomicBool::new(false), AtomicU32::new(0));
        let round = thread::scope(|threads| {
            let accepting = threads.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    drop(listener.accept());
                }
            });
            let connecting = threads.spawn(|| {
                from.ns.inside(|| {
                    while !done.load(Ordering::Relaxed) {
                        let begun = Instant::now();
                        std::net::TcpStream::connect_timeout(&address, CONNECTED).with_context(|| {
                            format!("connection {} of many", connected.load(Ordering::Relaxed))
                        })?;
                        ensure!(begun.elapsed() < CONNECTED, "a connection took {:?}", begun.elapsed());
                        connected.fetch_add(1, Ordering::Relaxed);
                        thread::sleep(Duration::from_millis(2));
                    }
                    Ok(())
                })
            });
            let talks = &mut self.talks;
            let round = self.sequence.steadily(RATE, || {
                during()?;
                talks.iter_mut().try_for_each(Talk::goes_on)
            });
            done.store(true, Ordering::Relaxed);
            // Whoever accepts waits for one more.
            let last =
                from.ns.inside(|| Ok(std::net::TcpStream::connect_timeout(&address, CONNECTED).is_ok()));
            let connected = connecting.join().map_err(|_| anyhow::anyhow!("connecting panicked"))?;
            last?;
            accepting.join().map_err(|_| anyhow::anyhow!("accepting panicked"))?;
            connected.and(round)
        })?;
        ensure!(connected.load(Ordering::Relaxed) > 10, "hardly anybody connected");
        Ok(round)
    }

    /// Expects that nothing is lost by what happens, if nothing is while nothing happens for as long. Says what was sent.
    fn expect_unfelt(&mut self, what: &str, happens: impl Fn() -> Result<()>) -> Result<String> {
        let (mut void, mut felt) = (Vec::new(), Vec::new());
        for _ in 0..ATTEMPTS {
            let round = self.around(&happens).with_context(|| what.to_owned())?;
            let control = self.around(|| {
                thread::sleep(round.time);
                Ok(())
            })?;
            if f64::from(round.sent) < f64::from(RATE) * round.time.as_secs_f64() * 0.8 {
                void.push(round);
                continue;
            }
            if round.lost == 0 && round.twice == 0 {
                return Ok(format!(
                    "{what}: {round:?}; while nothing happened {control:?}; rounds in which more was lost: {felt:?}"
                ));
            }
            if control.lost == 0 {
                felt.push(round);
                ensure!(felt.len() < FELT, "{what} was felt: {felt:?}, and without it nothing was lost");
            } else {
                void.push(control);
            }
        }
        anyhow::bail!("{what}: this machine loses packets by itself, or is too slow: {void:?}")
    }
}

/// Restarts the agent of a host.
fn restart(host: &Host) -> Result<()> {
    host.stop()?;
    host.start()
}

#[test]
fn nothing_that_happens_to_the_agents_is_felt() {
    Lab::story(|lab| {
        let cloud = cloud();
        let mut net = TwoHosts::new(lab, HostOptions::default())?;
        let guest = |port: &str, host: &Host| cloud.guest(lab, host, port);
        let (a, b, c) = (guest("a", &net.host1)?, guest("b", &net.host2)?, guest("c", &net.host2)?);
        net.push(&cloud)?;
        let mut load = Load::begin(&a, &b, &c)?;

        let restarts = load.expect_unfelt("a restart", || net.hosts().into_iter().try_for_each(restart))?;
        println!("{restarts}");
        let kills = load.expect_unfelt("a kill", || {
            net.hosts().into_iter().try_for_each(|host| {
                host.kill();
                thread::sleep(Duration::from_millis(200));
                host.start()
            })
        })?;
        println!("{kills}");
        let pushes =
            load.expect_unfelt("pushes of everything", || (0..20).try_for_each(|_| net.push(&cloud)))?;
        println!("{pushes}");
        let state = lab.run_directory().join("ncm-state");
        let losses = load.expect_unfelt("the loss of the journal, and a push of everything", || {
            for host in net.hosts() {
                host.stop()?;
                std::fs::remove_dir_all(state.join(host.name())).context("remove the journal")?;
                host.start()?;
            }
            net.push(&cloud)?;
            net.hosts().into_iter().try_for_each(|host| host.expect_ncmctl(&["prune"]).map(drop))
        })?;
        println!("{losses}");
        for host in [&mut net.host1, &mut net.host2] {
            host.config.set("log", "level", "\"debug\"").set("log", "dataplane", "\"error\"");
        }
        let levels =
            load.expect_unfelt("another log level", || net.hosts().into_iter().try_for_each(restart))?;
        println!("{levels}");
        Ok(())
    });
}
