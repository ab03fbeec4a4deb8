//! An agent process on a host: its configuration, goal states over gRPC, and the operator's tool.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use ncm_model::wire;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic_prost::ProstCodec;

use super::lab::patience;
use super::namespace::{Namespace, Outcome};
use super::process::{Output, Process};

/// Replies must fit senders that keep gRPC's default limit, with room to spare.
const LARGEST_REPLY: usize = 3_670_016;

/// Where agents take goal states, inside their host.
pub(super) const LISTENER: &str = "127.0.0.1:50001";

/// An agent's configuration, as sections of keys and values in TOML's own writing.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    sections: BTreeMap<String, BTreeMap<String, String>>,
    program: String,
    environment: Vec<(String, String)>,
    /// Words before the agent's own command line.
    run_by: Vec<String>,
}

impl AgentConfig {
    /// The configuration of a node with one tunnel endpoint.
    #[must_use]
    pub fn new(instance: &str, endpoint: IpAddr, interfaces: &[&str]) -> Self {
        let list = |items: &[&str]| {
            format!("[{}]", items.iter().map(|item| format!("{item:?}")).collect::<Vec<_>>().join(", "))
        };
        let mut config = Self {
            sections: BTreeMap::new(),
            program: "ncm-agent".to_owned(),
            environment: Vec::new(),
            run_by: Vec::new(),
        };
        config
            .set("", "instance", format!("{instance:?}"))
            .set("node", "id", format!("{instance:?}"))
            .set("node", "addresses", list(&[&endpoint.to_string()]))
            .set(
                "underlay",
                if endpoint.is_ipv4() { "endpoint_v4" } else { "endpoint_v6" },
                format!("\"{endpoint}\""),
            )
            .set("underlay", "interfaces", list(interfaces))
            .set("api", "listeners", list(&[LISTENER]))
            .set("api", "socket", format!("\"/run/ncm/{instance}.sock\""))
            .set("metrics", "listen", "\"127.0.0.1:9477\"")
            .set("paths", "state", "\"/run/ncm-state\"")
            .set("paths", "run", "\"/run/ncm\"")
            .set("paths", "bpffs", "\"/sys/fs/bpf\"");
        config
    }

    /// Which program it is for: one of this workspace's, by its path beside the others.
    pub fn program(&mut self, path: &str) -> &mut Self {
        path.clone_into(&mut self.program);
        self
    }

    /// Sets a variable of the agent's environment.
    pub fn environment(&mut self, name: &str, value: &str) -> &mut Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Sets a key; `value` is TOML, so texts carry their quotes. The section `""` is the top level.
    pub fn set(&mut self, section: &str, key: &str, value: impl Into<String>) -> &mut Self {
        self.sections.entry(section.to_owned()).or_default().insert(key.to_owned(), value.into());
        self
    }

    /// Has the agent started by another program that becomes it, such as `env`.
    pub fn run_by(&mut self, words: &[&str]) -> &mut Self {
        self.run_by = words.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    /// The file's text.
    #[must_use]
    pub fn to_toml(&self) -> String {
        let mut text = String::new();
        for (section, keys) in &self.sections {
            if !section.is_empty() {
                let _ = writeln!(text, "\n[{section}]");
            }
            for (key, value) in keys {
                let _ = writeln!(text, "{key} = {value}");
            }
        }
        text
    }
}

/// The path of a program of this workspace: in `NCM_BIN_DIR`, or beside the running one.
///
/// # Errors
/// If it has not been built.
pub fn binary(name: &str) -> Result<PathBuf> {
    if let Some(directory) = std::env::var_os("NCM_BIN_DIR") {
        return Ok(PathBuf::from(directory).join(name));
    }
    let own = std::env::current_exe().context("find the own program")?;
    let path =
        own.ancestors().map(|directory| directory.join(name)).find(|path| path.is_file()).with_context(
            || format!("no `{name}` beside {}: run `cargo xtask build` first", own.display()),
        )?;
    Ok(path)
}

/// A running agent; dropping it kills the process and leaves its pins.
pub struct Agent {
    process: Process,
    ns: Namespace,
    instance: String,
    runtime: Runtime,
    channel: Channel,
}

impl Agent {
    /// Starts an agent and waits until it takes goal states. `run` is the lab's `/run` as seen from here.
    ///
    /// # Errors
    /// If it ends, or is not ready within ten seconds; the message has its log.
    pub fn start(
        ns: &Namespace,
        run: &std::path::Path,
        instance: &str,
        config: &AgentConfig,
    ) -> Result<Self> {
        let file = format!("{instance}.toml");
        std::fs::write(run.join(&file), config.to_toml()).context("write the agent's configuration")?;
        let program = binary(&config.program)?;
        let mut words = config.run_by.clone();
        if !config.environment.is_empty() {
            words.push("env".to_owned());
            words.extend(config.environment.iter().map(|(name, value)| format!("{name}={value}")));
        }
        words.extend([program.to_string_lossy().into_owned(), "--config".to_owned(), format!("/run/{file}")]);
        let mut process = ns.start(&words)?;
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().context("start a runtime")?;
        let deadline = Instant::now() + patience(Duration::from_secs(10));
        let stream = loop {
            let address: SocketAddr = LISTENER.parse()?;
            let connected = ns.inside(|| Ok(TcpStream::connect_timeout(&address, Duration::from_secs(1))?));
            match connected {
                Ok(stream) => break stream,
                Err(_) if !process.runs() => {
                    bail!("the agent {instance} ended:\n{}", process.output().tail(60))
                }
                Err(error) if Instant::now() > deadline => {
                    return Err(error.context(format!(
                        "the agent {instance} does not listen on {LISTENER}:\n{}",
                        process.output().tail(60)
                    )));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        };
        // It listens before it has loaded anything.
        process.wait_for("the agent is ready", Duration::from_secs(10))?;
        let channel = runtime.block_on(connect(stream))?;
        Ok(Self { process, ns: ns.clone(), instance: instance.to_owned(), runtime, channel })
    }

    /// What it has logged.
    #[must_use]
    pub fn log(&self) -> Output {
        self.process.output()
    }

    /// Its process.
    #[must_use]
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Waits for a line with `text` in its log.
    ///
    /// # Errors
    /// If it does not come within `limit`.
    pub fn wait_for_log(&mut self, text: &str, limit: Duration) -> Result<String> {
        self.process.wait_for(text, limit)
    }

    /// Stops it as a service manager does; its programs go on forwarding.
    ///
    /// # Errors
    /// If it takes longer than five seconds.
    pub fn stop(self) -> Result<ExitStatus> {
        self.process.stop()
    }

    /// Pushes a V1 goal state.
    ///
    /// # Errors
    /// On a gRPC error, or a reply over the limit.
    pub fn push(&self, state: &wire::GoalState) -> Result<Statuses> {
        self.unary("PushNetworkResourceStates", state.clone())
    }

    /// Pushes a V1 goal state that is encoded already, and says how long it took until all of the reply was there: only
    /// then is it decoded.
    ///
    /// # Errors
    /// On a gRPC error, or a reply over the limit.
    pub fn push_encoded(&self, state: bytes::Bytes) -> Result<(Statuses, Duration)> {
        let path = PathAndQuery::from_static("/alcor.schema.GoalStateProvisioner/PushNetworkResourceStates");
        let mut client = tonic::client::Grpc::new(self.channel.clone());
        let begin = Instant::now();
        let reply = self.runtime.block_on(async {
            client.ready().await.map_err(|error| anyhow!("{error}"))?;
            client.unary(tonic::Request::new(state), path, Encoded).await.context("the agent refused")
        });
        let time = begin.elapsed();
        let reply = prost::Message::decode(reply?.into_inner()).context("the reply cannot be read")?;
        Ok((Statuses::new(reply)?, time))
    }

    /// Pushes neighbours by `PushGoalstates`.
    ///
    /// # Errors
    /// On a gRPC error, or a reply over the limit.
    pub fn push_neighbors(&self, request: &wire::NeighborRulesRequest) -> Result<Statuses> {
        self.unary("PushGoalstates", request.clone())
    }

    /// Pushes a V2 goal state over a stream of its own.
    ///
    /// # Errors
    /// On a gRPC error, or a reply over the limit.
    pub fn push_v2(&self, state: &wire::GoalStateV2) -> Result<Statuses> {
        let mut stream = self.stream()?;
        stream.send(state.clone())?;
        let statuses = stream.reply()?.context("the agent ended the stream without a reply")?;
        stream.finish()?;
        Ok(statuses)
    }

    /// Opens a stream of V2 goal states.
    ///
    /// # Errors
    /// If the agent refuses it.
    pub fn stream(&self) -> Result<Stream<'_>> {
        let (sender, receiver) = mpsc::channel(16);
        let mut client = tonic::client::Grpc::new(self.channel.clone());
        let codec: ProstCodec<wire::GoalStateV2, wire::GoalStateOperationReply> = ProstCodec::default();
        let replies = self.runtime.block_on(async {
            client.ready().await.map_err(|error| anyhow!("{error}"))?;
            let call = client.streaming(
                tonic::Request::new(ReceiverStream::new(receiver)),
                PathAndQuery::from_static("/alcor.schema.GoalStateProvisioner/PushGoalStatesStream"),
                codec,
            );
            Ok::<_, anyhow::Error>(call.await.context("open the stream")?.into_inner())
        })?;
        Ok(Stream { agent: self, sender: Some(sender), replies })
    }

    fn unary<M: prost::Message + 'static>(&self, method: &str, message: M) -> Result<Statuses> {
        let path = PathAndQuery::try_from(format!("/alcor.schema.GoalStateProvisioner/{method}"))?;
        let codec: ProstCodec<M, wire::GoalStateOperationReply> = ProstCodec::default();
        let mut client = tonic::client::Grpc::new(self.channel.clone());
        let reply = self.runtime.block_on(async {
            client.ready().await.map_err(|error| anyhow!("{error}"))?;
            client.unary(tonic::Request::new(message), path, codec).await.context("the agent refused")
        });
        Statuses::new(reply.with_context(|| method.to_owned())?.into_inner())
    }

    /// Runs `ncmctl` against this agent.
    ///
    /// # Errors
    /// If it cannot be started; its failure is in the outcome.
    pub fn ncmctl(&self, arguments: &[&str]) -> Result<Outcome> {
        ncmctl(&self.ns, &self.instance, arguments)
    }

    /// Resident memory and its peak, in bytes.
    ///
    /// # Errors
    /// If the process has ended.
    pub fn memory(&self) -> Result<(u64, u64)> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id()))?;
        let field = |name: &str| {
            let line =
                status.lines().find_map(|line| line.strip_prefix(name)).context("no memory figures")?;
            Ok::<u64, anyhow::Error>(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
        };
        Ok((field("VmRSS:")?, field("VmHWM:")?))
    }

    /// The processor time that its threads of that name have used.
    ///
    /// # Errors
    /// If it has none, or has ended.
    pub fn thread_time(&self, name: &str) -> Result<Duration> {
        let mut spent = None;
        for task in std::fs::read_dir(format!("/proc/{}/task", self.process.id()))? {
            let task = task?.path();
            if std::fs::read_to_string(task.join("comm"))?.trim() == name {
                let figures = std::fs::read_to_string(task.join("schedstat"))?;
                let nanoseconds = figures.split(' ').next().context("no figures")?.parse()?;
                spent = Some(spent.unwrap_or(Duration::ZERO) + Duration::from_nanos(nanoseconds));
            }
        }
        spent.with_context(|| format!("the agent has no thread {name}"))
    }

    /// Its bpffs, as a path that works outside its mount namespace for as long as it runs.
    #[must_use]
    pub fn bpffs(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root/sys/fs/bpf", self.process.id()))
    }
}

/// Runs `ncmctl` for an instance, whether its agent runs or not.
///
/// # Errors
/// If it cannot be started.
pub(super) fn ncmctl(ns: &Namespace, instance: &str, arguments: &[&str]) -> Result<Outcome> {
    let program = binary("ncmctl")?;
    let socket = format!("/run/ncm/{instance}.sock");
    let program = program.to_string_lossy();
    let fixed = [program.as_ref(), "--instance", instance, "--socket", &socket].map(str::to_owned);
    let words: Vec<String> =
        fixed.into_iter().chain(arguments.iter().map(|word| (*word).to_owned())).collect();
    ns.outcome(&words)
}

/// Bytes as they are, both ways.
struct Encoded;

impl tonic::codec::Codec for Encoded {
    type Encode = bytes::Bytes;
    type Decode = bytes::Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self::Encoder {
        Self
    }

    fn decoder(&mut self) -> Self::Decoder {
        Self
    }
}

impl tonic::codec::Encoder for Encoded {
    type Item = bytes::Bytes;
    type Error = tonic::Status;

    fn encode(
        &mut self,
        item: bytes::Bytes,
        target: &mut tonic::codec::EncodeBuf<'_>,
    ) -> Result<(), tonic::Status> {
        use bytes::BufMut;
        target.put(item);
        Ok(())
    }
}

impl tonic::codec::Decoder for Encoded {
    type Item = bytes::Bytes;
    type Error = tonic::Status;

    fn decode(
        &mut self,
        source: &mut tonic::codec::DecodeBuf<'_>,
    ) -> Result<Option<bytes::Bytes>, tonic::Status> {
        use bytes::Buf;
        Ok(Some(source.copy_to_bytes(source.remaining())))
    }
}

/// Speaks HTTP/2 over a stream that is connected.
pub(super) async fn connect(stream: TcpStream) -> Result<Channel> {
    stream.set_nonblocking(true)?;
    // As gRPC's libraries do: what is sent in two parts would wait for the other end's word of the first.
    stream.set_nodelay(true)?;
    let mut stream = Some(tokio::net::TcpStream::from_std(stream)?);
    let connector = tower::service_fn(move |_: Uri| {
        let stream =
            stream.take().ok_or_else(|| std::io::Error::other("the connection to the agent is lost"));
        async move { stream.map(hyper_util::rt::TokioIo::new) }
    });
    Endpoint::from_static("http://agent")
        .connect_with_connector(connector)
        .await
        .context("connect to the agent")
}

/// An open stream of goal states.
pub struct Stream<'a> {
    agent: &'a Agent,
    sender: Option<mpsc::Sender<wire::GoalStateV2>>,
    replies: tonic::Streaming<wire::GoalStateOperationReply>,
}

impl Stream<'_> {
    /// Sends a goal state without waiting for its reply.
    ///
    /// # Errors
    /// If the stream has ended.
    pub fn send(&mut self, state: wire::GoalStateV2) -> Result<()> {
        let sender = self.sender.as_ref().context("the stream is finished")?;
        self.agent.runtime.block_on(sender.send(state)).map_err(|_| anyhow!("the agent ended the stream"))
    }

    /// The next reply, or `None` when the agent has ended the stream well.
    ///
    /// # Errors
    /// On a gRPC error, or when none comes within two minutes.
    pub fn reply(&mut self) -> Result<Option<Statuses>> {
        let next = async { tokio::time::timeout(Duration::from_mins(2), self.replies.message()).await };
        let reply = self.agent.runtime.block_on(next).context("no reply within two minutes")?;
        reply.context("the stream failed")?.map(Statuses::new).transpose()
    }

    /// Half-closes the stream and expects it to end well, without further replies.
    ///
    /// # Errors
    /// If it does not.
    pub fn finish(mut self) -> Result<()> {
        self.sender.take();
        match self.reply()? {
            None => Ok(()),
            Some(extra) => bail!("expected the end of the stream, came {extra:?}"),
        }
    }
}

/// What an agent answered to a push.
#[derive(Clone, Debug)]
pub struct Statuses {
    /// The reply itself.
    pub reply: wire::GoalStateOperationReply,
}

impl Statuses {
    pub(super) fn new(reply: wire::GoalStateOperationReply) -> Result<Self> {
        let length = prost::Message::encoded_len(&reply);
        ensure!(length <= LARGEST_REPLY, "the reply has {length} bytes, more than {LARGEST_REPLY}");
        Ok(Self { reply })
    }

    /// The status of a resource, by its id; the first if there are several.
    #[must_use]
    pub fn of(&self, id: &str) -> Option<wire::OperationStatus> {
        let rows = &self.reply.operation_statuses;
        rows.iter().find(|row| row.resource_id == id).map(|row| row.operation_status())
    }

    /// How many rows have a status.
    #[must_use]
    pub fn count(&self, status: wire::OperationStatus) -> usize {
        self.reply.operation_statuses.iter().filter(|row| row.operation_status() == status).count()
    }

    /// Expects a resource to have a status.
    ///
    /// # Errors
    /// If it has another, or none.
    pub fn expect(&self, id: &str, status: wire::OperationStatus) -> Result<&Self> {
        let came = self.of(id);
        ensure!(came == Some(status), "expected {id} to be {status:?}, came {came:?} in {:#?}", self.reply);
        Ok(self)
    }

    /// Expects every row to be SUCCESS.
    ///
    /// # Errors
    /// If one is not; the message lists those.
    pub fn expect_success(&self) -> Result<&Self> {
        let others: Vec<String> = self
            .reply
            .operation_statuses
            .iter()
            .filter(|row| row.operation_status() != wire::OperationStatus::Success)
            .map(|row| format!("{:?} {}: {:?}", row.resource_type(), row.resource_id, row.operation_status()))
            .collect();
        ensure!(others.is_empty(), "expected SUCCESS for all, came:\n{}", others.join("\n"));
        Ok(self)
    }
}
