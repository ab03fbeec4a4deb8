//! A process that runs beside the test: its output is collected, and it dies with its handle.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::lab::patience;

/// A running process; dropping it kills it.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    output: Output,
}

impl Process {
    /// Starts `command` with its output collected.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(name: &str, mut command: Command) -> Result<Self> {
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {name}"))?;
        let output = Output::default();
        if let Some(stdout) = child.stdout.take() {
            output.collect(stdout);
        }
        if let Some(stderr) = child.stderr.take() {
            output.collect(stderr);
        }
        Ok(Self { name: name.to_owned(), child, output })
    }

    /// The process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed so far, to both streams.
    #[must_use]
    pub fn output(&self) -> Output {
        self.output.clone()
    }

    /// Waits until a line with `text` is printed.
    ///
    /// # Errors
    /// If it does not come in time, or the process ends before.
    pub fn wait_for(&mut self, text: &str, limit: Duration) -> Result<String> {
        let limit = patience(limit);
        let deadline = Instant::now() + limit;
        loop {
            if let Some(line) = self.output.wait_for(text, Duration::from_millis(50)) {
                return Ok(line);
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended ({status}) before it said `{text}`:\n{}", self.name, self.output.tail(40));
            }
            if Instant::now() > deadline {
                bail!("{} did not say `{text}` within {limit:?}:\n{}", self.name, self.output.tail(40));
            }
        }
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// If the process has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let id = i32::try_from(self.child.id()).context("process id")?;
        kill(Pid::from_raw(id), signal).with_context(|| format!("send {signal} to {}", self.name))
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// If it does not end in time.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!("{} did not end within {limit:?}:\n{}", self.name, self.output.tail(40));
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Asks it to end (SIGTERM) and waits.
    ///
    /// # Errors
    /// If it does not end within five seconds.
    pub fn stop(mut self) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        self.wait(Duration::from_secs(5))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a process prints, shared with those who read it.
#[derive(Clone, Debug, Default)]
pub struct Output {
    shared: Arc<(Mutex<Vec<String>>, Condvar)>,
}

impl Output {
    fn collect(&self, stream: impl Read + Send + 'static) {
        let shared = Arc::clone(&self.shared);
        thread::spawn(move || {
            for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
                let text = String::from_utf8_lossy(&line).into_owned();
                shared.0.lock().unwrap_or_else(PoisonError::into_inner).push(text);
                shared.1.notify_all();
            }
        });
    }

    /// Every line so far.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The last `count` lines.
    #[must_use]
    pub fn tail(&self, count: usize) -> String {
        let lines = self.lines();
        lines[lines.len().saturating_sub(count)..].join("\n")
    }

    /// The first line with `text`, waiting up to `limit` for it.
    #[must_use]
    pub fn wait_for(&self, text: &str, limit: Duration) -> Option<String> {
        let deadline = Instant::now() + limit;
        let mut lines = self.shared.0.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(line) = lines.iter().find(|line| line.contains(text)) {
                return Some(line.clone());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            lines = self.shared.1.wait_timeout(lines, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
