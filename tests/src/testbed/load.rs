//! What goes on between guests while something happens to agents: numbered datagrams at a steady rate, TCP connections that go on, and
//! new ones. Nothing of it may be lost.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::cloud::Cloud;
use super::guest::Guest;
use super::host::TwoHosts;
use super::lab::slowness;
use super::namespace::Namespace;
use super::say;
use super::sequence::{Round, Sequence};
use super::talk::Talk;

/// Datagrams a second. A machine that is slow has one processor for each, and each of them more to do.
const RATE: u32 = 100_000;

fn rate() -> u32 {
    RATE / slowness() / slowness()
}

/// More than are ever sent: in every attempt ten seconds, and as long a control phase.
const MOST: u32 = 12_000_000;

/// A round counts only if as many arrive while nothing happens; a machine that is busy elsewhere gets some more.
const ATTEMPTS: usize = 5;

/// A connection takes no longer unless a packet of it was lost: the first repetition of a SYN comes after a second.
const CONNECTED: Duration = Duration::from_millis(900);

/// What goes on between guests.
#[derive(Debug)]
pub struct Load<'a> {
    sequence: Sequence,
    talks: Vec<Talk>,
    from: &'a Guest,
    to: &'a Guest,
    places: Vec<&'a Namespace>,
}

impl<'a> Load<'a> {
    /// The guests: `a` on one host and `b` on the other in one subnet, `c` beside `b` in another.
    #[must_use]
    pub fn cloud() -> Cloud {
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

    /// Begins connections between two guests of these hosts and a third, which is in another subnet.
    ///
    /// # Errors
    /// If one of them cannot be begun.
    pub fn begin(net: &'a TwoHosts, [from, to, router]: [&'a Guest; 3]) -> Result<Self> {
        let mut talks = Vec::new();
        for port in 0..3 {
            talks.push(Talk::begin(from, to, 5000 + port, false)?);
            talks.push(Talk::begin(router, from, 6000 + port, false)?);
        }
        let mut places = vec![&from.ns, &to.ns, &router.ns];
        places.extend(net.hosts().map(|host| &host.ns));
        Ok(Self { sequence: Sequence::between(from, to, MOST)?, talks, from, to, places })
    }

    /// How many packets the kernel has dropped so far since a queue was full: nobody had the processor that empties it. No program has
    /// seen these; what programs drop, and what comes by while there is none, counts elsewhere.
    fn overflowed(&self) -> Result<u64> {
        let mut all = 0;
        for place in &self.places {
            let devices = place.run_words(&["cat", "/proc/net/dev"])?;
            for (_, numbers) in devices.lines().filter_map(|line| line.split_once(':')) {
                let numbers: Vec<&str> = numbers.split_whitespace().collect();
                for dropped in [3, 11] {
                    let number = numbers.get(dropped).context("a device has counts of drops")?;
                    all += number.parse::<u64>()?;
                }
            }
        }
        let backlogs = std::fs::read_to_string("/proc/net/softnet_stat")?;
        for line in backlogs.lines() {
            let dropped = line.split_whitespace().nth(1).context("a backlog has a count of drops")?;
            all += u64::from_str_radix(dropped, 16)?;
        }
        Ok(all)
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
            let round = self.sequence.steadily(rate(), || {
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

    /// Expects that nothing is lost by what happens, if nothing is while nothing happens for as long; says what was sent.
    ///
    /// A round is void, and there is another, if the control phase loses something too, or if the kernel says itself that queues
    /// were full for all that is missing.
    ///
    /// # Errors
    /// If it was felt, or this machine loses packets by itself.
    pub fn expect_unfelt(&mut self, what: &str, happens: impl Fn() -> Result<()>) -> Result<()> {
        let mut void = Vec::new();
        for _ in 0..ATTEMPTS {
            let before = self.overflowed()?;
            let outcome = self.around(&happens).with_context(|| what.to_owned());
            let overflowed = self.overflowed()? - before;
            let round = match outcome {
                Ok(round) => round,
                Err(error) if overflowed > 0 => {
                    void.push(format!("{error:#}, and {overflowed} overflowed"));
                    continue;
                }
                Err(error) => return Err(error),
            };
            let control = self.around(|| {
                thread::sleep(round.time);
                Ok(())
            })?;
            let told = format!("{round:?}, {overflowed} overflowed; while nothing happened {control:?}");
            if f64::from(round.sent) < f64::from(rate()) * round.time.as_secs_f64() * 0.8 {
                void.push(told);
                continue;
            }
            if round.lost == 0 && round.twice == 0 {
                say(&format!("{what}: {told}; void before: {void:?}"));
                return Ok(());
            }
            let is_void = control.lost > 0 || (round.twice == 0 && u64::from(round.lost) <= overflowed);
            ensure!(is_void, "{what} was felt: {told}");
            void.push(told);
        }
        anyhow::bail!("{what}: this machine loses packets by itself, or is too slow: {void:#?}")
    }
}
