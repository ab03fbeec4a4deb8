//! A TCP connection between two guests, to see whether it goes on.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::guest::Guest;

/// Repetition of what was lost may take this long: its distance doubles while nothing comes through.
const RESUMED: Duration = Duration::from_secs(8);
/// How long is waited for what must not come.
const STOPPED: Duration = Duration::from_millis(300);

/// A TCP connection over which both sides speak when asked to.
#[derive(Debug)]
pub struct Talk {
    sides: [TcpStream; 2],
    said: usize,
    heard: [usize; 2],
    what: String,
}

impl Talk {
    /// Connects `from` to a port of `to`, over IPv6 if `v6` says so.
    ///
    /// # Errors
    /// If there is no connection within two seconds.
    pub fn begin(from: &Guest, to: &Guest, port: u16, v6: bool) -> Result<Self> {
        let ip = if v6 { IpAddr::V6(to.ip6()) } else { IpAddr::V4(to.ip()) };
        let address = SocketAddr::new(ip, port);
        Self::connect(from, &to.ns.listen(address)?, address)
    }

    fn connect(from: &Guest, listener: &TcpListener, address: SocketAddr) -> Result<Self> {
        let what = format!("TCP from {} to {address}", from.name());
        let connect = || Ok(TcpStream::connect_timeout(&address, Duration::from_secs(2))?);
        let client = from.ns.inside(connect).with_context(|| what.clone())?;
        let (server, _) = listener.accept()?;
        let sides = [client, server];
        for side in &sides {
            side.set_nonblocking(true)?;
            side.set_nodelay(true)?;
        }
        let mut talk = Self { sides, said: 0, heard: [0; 2], what };
        talk.goes_on()?;
        Ok(talk)
    }

    /// Both sides speak once more, and hear everything that was said so far within some seconds.
    ///
    /// # Errors
    /// If one does not.
    pub fn goes_on(&mut self) -> Result<()> {
        self.speak()?;
        let deadline = Instant::now() + RESUMED;
        loop {
            self.listen()?;
            if self.heard == [self.said; 2] {
                return Ok(());
            }
            let (what, said, heard) = (&self.what, self.said, self.heard);
            ensure!(
                Instant::now() < deadline,
                "{what}: said {said} times on each side, heard {heard:?} of it"
            );
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Both sides speak once more, and neither hears anything.
    ///
    /// # Errors
    /// If one does.
    pub fn expect_stopped(&mut self) -> Result<()> {
        let before = self.heard;
        self.speak()?;
        thread::sleep(STOPPED);
        self.listen()?;
        ensure!(self.heard == before, "{}: something came through after it was to stop", self.what);
        Ok(())
    }

    fn speak(&mut self) -> Result<()> {
        for side in &mut self.sides {
            side.write_all(b".").with_context(|| self.what.clone())?;
        }
        self.said += 1;
        Ok(())
    }

    fn listen(&mut self) -> Result<()> {
        for (side, heard) in self.sides.iter_mut().zip(&mut self.heard) {
            match side.read(&mut [0; 64]) {
                Ok(length) => {
                    ensure!(length > 0, "{}: it was closed", self.what);
                    *heard += length;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error).with_context(|| self.what.clone()),
            }
        }
        Ok(())
    }
}
