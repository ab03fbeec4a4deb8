//! The daemon: starts everything in order, says when it is ready, and stops when told to.

use std::time::Duration;

use anyhow::Context;
use ncm_dataplane::PinPaths;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};

use crate::api::server;
use crate::config::Config;
use crate::engine::{Engine, InstanceLock};
use crate::fault;
use crate::hand_up;
use crate::netlink::{Kernel, relay, underlay};
use crate::supervisor;
use crate::telemetry::{log, prometheus};

/// How long work in progress may go on after the signal to stop.
const STOP_WITHIN: Duration = Duration::from_millis(400);

/// How long the journal may take to make durable what nobody was answered yet.
const CLOSE_WITHIN: Duration = Duration::from_millis(300);

/// Runs the agent until SIGTERM or SIGINT. What is in the kernel stays and goes on forwarding.
///
/// # Errors
///
/// It cannot start, or a part of it ends by itself.
pub fn run(config: Config) -> anyhow::Result<()> {
    ncm_dataplane::share_memory();
    log::start(&config.log);
    let instance = InstanceLock::take(&config.paths.run, &config.instance)?;
    let runtime = runtime()?;
    let outcome = runtime.block_on(serve(config, &instance));
    // Messages that are being applied stop between two steps; their senders see the connection end.
    runtime.shutdown_timeout(STOP_WITHIN);
    outcome
}

fn runtime() -> anyhow::Result<Runtime> {
    Builder::new_multi_thread()
        .enable_all()
        .thread_name("ncm-agent")
        .build()
        .context("cannot start the agent's threads")
}

async fn serve(config: Config, instance: &InstanceLock) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), instance = config.instance, "the agent starts");
    if config.missing_group == crate::config::MissingGroup::Open {
        tracing::warn!(
            "policy.missing_group is \"open\": ports that name a security group which is not held are open to everybody"
        );
    }
    // What may be taken by others comes first: a start that fails there has changed nothing. Who connects meanwhile waits.
    let bound = server::bind(&config.api).await?;
    let metrics = match config.metrics {
        None => None,
        Some(address) => Some(
            TcpListener::bind(address)
                .await
                .with_context(|| format!("metrics.listen: cannot listen on {address}"))?,
        ),
    };
    let engine = start(&config, instance).await?;
    if let Some(listener) = metrics {
        let engine = engine.clone();
        fault::supervise("the metrics endpoint", prometheus::serve(listener, move || engine.families()));
    }
    supervisor::notify(supervisor::READY);
    for listener in &config.api.listeners {
        tracing::info!(%listener, "goal states are taken here");
    }
    tracing::info!(socket = %config.api.socket.display(), "the agent is ready");
    let last = engine.clone();
    let served = server::serve(bound, engine, async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        supervisor::notify(supervisor::STOPPING);
        tracing::info!("the agent stops; what it programmed goes on forwarding");
    })
    .await;
    if tokio::time::timeout(CLOSE_WITHIN, last.close()).await.is_err() {
        tracing::warn!("the journal's disk is slow: what came last and was not answered may not be kept");
    }
    served
}

/// Starts the engine. Where that fails, what it has made is removed again; what an earlier agent left stays.
async fn start(config: &Config, instance: &InstanceLock) -> anyhow::Result<Engine> {
    let paths = PinPaths::new(&config.paths.bpffs, &config.instance)?;
    let is_first = paths.layouts().is_empty();
    let started = Engine::start(config.clone(), instance).await;
    if started.is_err() && is_first {
        let relay = relay::device_name(&config.instance);
        let removed = async { relay::remove(&mut Kernel::open()?, &relay).await };
        if let Err(error) = removed.await {
            tracing::warn!(%error, "cannot remove the relay device of a start that failed");
        }
        if let Err(error) = ncm_dataplane::teardown(&config.paths.bpffs, &config.instance) {
            tracing::warn!(%error, "cannot remove what a start that failed has pinned");
        }
    }
    started
}

/// Removes everything of the instance from the kernel. Guests' interfaces are set down: without a program, the settings
/// that close an interface still let datagrams from 0.0.0.0 to all hosts into the host's own stack.
///
/// # Errors
///
/// An agent runs under that name, or something cannot be removed.
pub fn teardown(config: &Config) -> anyhow::Result<()> {
    log::start(&config.log);
    let lock = InstanceLock::take(&config.paths.run, &config.instance)?;
    let name = relay::device_name(&config.instance);
    let guests = guests(config);
    // The relay goes before its program does: without one, its frames would reach the host's own stack.
    runtime()?
        .block_on(async {
            let mut kernel = Kernel::open()?;
            relay::remove(&mut kernel, &name).await?;
            hand_up::remove_pair(&mut kernel, &config.instance).await?;
            for index in guests {
                kernel.set_down(index).await?;
            }
            underlay::release_neighbours().await
        })
        .with_context(|| {
            format!("cannot remove the relay device {name} and set the guests' interfaces down")
        })?;
    ncm_dataplane::teardown(&config.paths.bpffs, &config.instance)?;
    // An agent that was killed has left its sockets.
    server::remove_sockets(&config.api).context("cannot remove a socket that is left")?;
    lock.discard().context("cannot remove the lock file")?;
    tracing::info!(instance = config.instance, "everything of the instance is removed");
    Ok(())
}

/// The guests' interfaces that have a program; none where nothing is pinned.
fn guests(config: &Config) -> Vec<u32> {
    let paths = PinPaths::new(&config.paths.bpffs, &config.instance);
    let attachments = paths.and_then(|paths| ncm_dataplane::attached(&paths)).unwrap_or_default();
    let of_guests = attachments.iter().filter(|attachment| attachment.hook == ncm_dataplane::Hook::GuestTc);
    of_guests.map(|attachment| attachment.ifindex).filter(|index| *index != 0).collect()
}
