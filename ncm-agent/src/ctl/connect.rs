//! The way to the agent: its Unix socket, or, for tables, what it left pinned.

use std::io::ErrorKind;
use std::path::Path;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

use super::args::Global;
use super::failure::{Failure, closed};
use crate::inspect::read::TableReader;
use crate::ncm_v1::inspect_client::InspectClient;
use crate::ncm_v1::operate_client::OperateClient;
use crate::ncm_v1::states_client::StatesClient;

/// A connection to the agent.
pub(super) struct Agent {
    pub(super) inspect: InspectClient<Channel>,
    pub(super) operate: OperateClient<Channel>,
    pub(super) states: StatesClient<Channel>,
}

/// Why there is no connection.
pub(super) struct NoAgent {
    /// Nobody listens: pinned tables may be read instead.
    pub(super) absent: bool,
    pub(super) message: String,
}

impl From<NoAgent> for Failure {
    fn from(reason: NoAgent) -> Self {
        Self::unreachable(reason.message)
    }
}

impl Agent {
    /// Connects to the agent's socket.
    pub(super) async fn connect(global: &Global) -> Result<Self, NoAgent> {
        let path = global.socket();
        // Tried by itself first: what the kernel says is lost in the channel's errors.
        UnixStream::connect(&path).await.map_err(|error| explain(&path, global, &error))?;
        let connector = {
            let path = path.clone();
            tower::service_fn(move |_: Uri| {
                let path = path.clone();
                async move { UnixStream::connect(path).await.map(TokioIo::new) }
            })
        };
        let channel = Endpoint::from_static("http://ncm.local").connect_with_connector(connector).await;
        let channel = channel.map_err(|error| NoAgent { absent: false, message: closed(&error) })?;
        Ok(Self {
            // What the agent sends is as large as what it holds; it is trusted.
            inspect: InspectClient::new(channel.clone()).max_decoding_message_size(usize::MAX),
            states: StatesClient::new(channel.clone()).max_decoding_message_size(usize::MAX),
            operate: OperateClient::new(channel).max_decoding_message_size(usize::MAX),
        })
    }
}

fn explain(path: &Path, global: &Global, error: &std::io::Error) -> NoAgent {
    let path = path.display();
    let (absent, message) = match error.kind() {
        ErrorKind::NotFound => (
            true,
            format!(
                "there is no agent socket {path}: is the agent running? See `systemctl status ncm-agent`; for another \
                 instance than `{}` give --instance, for another path --socket",
                global.instance
            ),
        ),
        ErrorKind::ConnectionRefused => (
            true,
            format!("nobody listens on {path}: the agent is not running; see `systemctl status ncm-agent`"),
        ),
        ErrorKind::PermissionDenied => (
            false,
            format!(
                "no permission for {path}: run as root, or as a member of the group that `[api] group` names"
            ),
        ),
        _ => (false, format!("cannot connect to {path}: {error}; see `systemctl status ncm-agent`")),
    };
    NoAgent { absent, message }
}

/// Where tables are read from.
pub(super) enum Tables {
    Agent(Box<Agent>),
    Pinned(Box<TableReader>),
}

impl Tables {
    /// The agent; if none runs, or `offline`, the pinned tables. Says on standard error when it is the latter.
    pub(super) async fn find(global: &Global, offline: bool) -> Result<Self, Failure> {
        if !offline {
            match Agent::connect(global).await {
                Ok(agent) => return Ok(Self::Agent(Box::new(agent))),
                Err(reason) if !reason.absent => return Err(reason.into()),
                Err(reason) => {
                    let pinned = TableReader::open(&global.bpffs, &global.instance).map_err(|error| {
                        Failure::unreachable(format!("{}\nwithout it: {error}", reason.message))
                    })?;
                    super::output::note(&format!(
                        "the agent is not running; reading the pinned tables of instance `{}`",
                        global.instance
                    ));
                    return Ok(Self::Pinned(Box::new(pinned)));
                }
            }
        }
        let pinned = TableReader::open(&global.bpffs, &global.instance)?;
        super::output::note(&format!("reading the pinned tables of instance `{}`", global.instance));
        Ok(Self::Pinned(Box::new(pinned)))
    }
}
