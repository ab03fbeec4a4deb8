//! What goes on between guests while something happens to agents: numbered datagrams at a steady rate, TCP connections that go on, and
//! new ones. Nothing of it may be lost.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::guest::Guest;
use super::lab::slowness;
use super::sequence::{Round, Sequence};
use super::talk::Talk;

/// Datagrams a second. A machine that is slow has one processor for each, and each of them more to do.
const RATE: u32 = 100_000;

fn rate() -> u32 {
    RATE / slowness() / slowness()
}

/// More than are ever sent.
const MOST: u32 = 8_000_000;

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
}

impl<'a> Load<'a> {
    /// Begins connections between two guests and a third, which is in another subnet.
    ///
    /// # Errors
    /// If one of them cannot be begun.
    pub fn begin(from: &'a Guest, to: &'a Guest, router: &'a Guest) -> Result<Self> {
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

    /// Expects that nothing is lost by what happens, if nothing is while nothing happens for as long. Says what was sent.
    ///
    /// # Errors
    /// If it was felt, or this machine loses packets by itself.
    pub fn expect_unfelt(&mut self, what: &str, happens: impl Fn() -> Result<()>) -> Result<String> {
        let mut void = Vec::new();
        for _ in 0..ATTEMPTS {
            let round = self.around(&happens).with_context(|| what.to_owned())?;
            let control = self.around(|| {
                thread::sleep(round.time);
                Ok(())
            })?;
            if f64::from(round.sent) < f64::from(rate()) * round.time.as_secs_f64() * 0.8 {
                void.push(round);
                continue;
            }
            if round.lost == 0 && round.twice == 0 {
                return Ok(format!("{what}: {round:?}; while nothing happened {control:?}"));
            }
            ensure!(control.lost > 0, "{what} was felt: {round:?}, and without it {control:?}");
            void.push(control);
        }
        anyhow::bail!("{what}: this machine loses packets by itself, or is too slow: {void:?}")
    }
}
