//! An agent in namespaces of its own (network and mount, with a private bpffs), reached over Unix sockets. Everything
//! goes with the process.

#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::print_stdout, reason = "a test that fails shows the agent's log")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use ncm_agent::alcor::goal_state_provisioner_client::GoalStateProvisionerClient;
use ncm_agent::alcor::subscribe_info_provisioner_client::SubscribeInfoProvisionerClient;
use ncm_model::wire::{
    GoalState, GoalStateOperationReply, NeighborConfiguration, NeighborState, OperationStatus, OperationType,
    PortConfiguration, PortState, ResourceType, SubnetConfiguration, SubnetState, VpcConfiguration, VpcState,
    neighbor_configuration, port_configuration, subnet_configuration,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tonic::transport::{Channel, Endpoint};

/// How long an agent may take for what normally takes a fraction of a second.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The underlay of every test's agent.
pub(crate) const ENDPOINT: &str = "192.0.2.1";

/// A directory of one test.
#[derive(Debug)]
pub(crate) struct Scratch(pub(crate) PathBuf);

impl Scratch {
    pub(crate) fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("a-agent-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).expect("can make a scratch directory");
        Self(path)
    }

    /// Writes a configuration; `more` is TOML for after `[capacity]`, and may begin other sections.
    pub(crate) fn configure(&self, more: &str) -> PathBuf {
        let dir = self.0.display();
        let text = format!(
            "instance = \"a-test\"\n[underlay]\nendpoint_v4 = \"{ENDPOINT}\"\ninterfaces = [\"up0\"]\nmode = \"tc\"\n\
             [metrics]\nlisten = \"127.0.0.1:9477\"\n\
             [paths]\nrun = \"{dir}/run\"\nbpffs = \"{dir}/bpf\"\nstate = \"{dir}/state\"\n\
             [api]\nlisteners = [\"unix:{dir}/api.sock\"]\nsocket = \"{dir}/tool.sock\"\n{more}"
        );
        let path = self.0.join("agent.toml");
        fs::write(&path, text).expect("can write the configuration");
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

/// A running agent.
#[derive(Debug)]
pub(crate) struct Agent {
    child: Child,
    log: Arc<Mutex<String>>,
    pub(crate) scratch: Scratch,
}

impl Agent {
    /// Starts an agent and waits until it is ready.
    pub(crate) fn start(more: &str) -> Self {
        Self::start_with(more, &[])
    }

    /// The same with environment variables.
    pub(crate) fn start_with(more: &str, variables: &[(&str, &str)]) -> Self {
        assert!(nix::unistd::geteuid().is_root(), "this test needs root: namespaces, eBPF");
        let scratch = Scratch::new();
        let config = scratch.configure(more);
        let script = format!(
            "set -e; mount --make-rprivate /; mkdir -p {dir}/bpf; mount -t bpf bpf {dir}/bpf; ip link set lo up; \
             ip link add up0 type veth peer name up1; ip addr add {ENDPOINT}/24 dev up0; ip link set up0 up; \
             ip link set up1 up; exec {agent} --config {config}",
            dir = scratch.0.display(),
            agent = env!("CARGO_BIN_EXE_ncm-agent"),
            config = config.display(),
        );
        let mut child = Command::new("unshare")
            .args(["--net", "--mount", "sh", "-c", &script])
            .envs(variables.iter().copied())
            .stderr(Stdio::piped())
            .spawn()
            .expect("can run unshare");
        let log = Arc::new(Mutex::new(String::new()));
        let lines = BufReader::new(child.stderr.take().expect("is piped"));
        std::thread::spawn({
            let log = Arc::clone(&log);
            move || {
                for line in lines.lines().map_while(Result::ok) {
                    *log.lock().expect("not poisoned") += &(line + "\n");
                }
            }
        });
        let mut agent = Self { child, log, scratch };
        agent.wait_for_log("the agent is ready");
        agent
    }

    pub(crate) fn log(&self) -> String {
        self.log.lock().expect("not poisoned").clone()
    }

    pub(crate) fn wait_for_log(&mut self, text: &str) {
        let begun = Instant::now();
        while !self.log().contains(text) {
            let ended = self.child.try_wait().expect("can be asked");
            assert!(ended.is_none(), "the agent ended with {ended:?}; its log:\n{}", self.log());
            assert!(begun.elapsed() < PATIENCE, "no {text:?} in the agent's log:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Runs a command in the agent's network and mount namespaces.
    pub(crate) fn run(&self, command: &str) -> String {
        let target = self.pid().to_string();
        let output = Command::new("nsenter")
            .args(["--target", &target, "--net", "--mount", "sh", "-c", command])
            .output()
            .expect("can run nsenter");
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// The value of a metric, with its labels as they are written.
    pub(crate) fn metric(&self, name: &str) -> Option<f64> {
        let request = "printf 'GET /metrics HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n' | \
                       bash -c 'exec 3<>/dev/tcp/127.0.0.1/9477; cat >&3; cat <&3'";
        let text = self.run(request);
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
    }

    /// Waits until a metric has that value.
    pub(crate) fn wait_for_metric(&self, name: &str, expected: f64) {
        let begun = Instant::now();
        loop {
            let value = self.metric(name);
            if value == Some(expected) {
                return;
            }
            assert!(
                begun.elapsed() < PATIENCE,
                "expected {name} to become {expected}, it is {value:?}; the agent's log:\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Resident memory, in bytes.
    pub(crate) fn resident(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("the agent runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("has a resident size");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("is a number") * 1024
    }

    pub(crate) async fn client(&self) -> GoalStateProvisionerClient<Channel> {
        GoalStateProvisionerClient::new(channel(&self.scratch.0.join("api.sock")).await)
    }

    pub(crate) async fn subscriptions(&self) -> SubscribeInfoProvisionerClient<Channel> {
        SubscribeInfoProvisionerClient::new(channel(&self.scratch.0.join("api.sock")).await)
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.pid()).expect("a pid")), signal).expect("can be signalled");
    }

    /// Waits until the process has ended.
    pub(crate) fn ended(&mut self, within: Duration) -> ExitStatus {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("can be asked") {
                return status;
            }
            assert!(begun.elapsed() < within, "the agent still runs after {within:?}:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        if std::thread::panicking() {
            println!("the agent's log:\n{}", self.log());
        }
    }
}

/// A connection over a Unix socket.
pub(crate) async fn channel(socket: &Path) -> Channel {
    let socket = socket.to_owned();
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { tokio::net::UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    let endpoint = Endpoint::from_static("http://agent");
    endpoint.connect_with_connector(connector).await.expect("the agent listens")
}

pub(crate) fn vpc(id: &str, vni: u32) -> VpcState {
    VpcState {
        operation_type: OperationType::Create.into(),
        configuration: Some(VpcConfiguration { id: id.to_owned(), tunnel_id: vni, ..Default::default() }),
    }
}

pub(crate) fn subnet(id: &str, vpc: &str, cidr: &str, gateway: &str) -> SubnetState {
    SubnetState {
        operation_type: OperationType::Create.into(),
        configuration: Some(SubnetConfiguration {
            id: id.to_owned(),
            vpc_id: vpc.to_owned(),
            cidr: cidr.to_owned(),
            gateway: Some(subnet_configuration::Gateway {
                ip_address: gateway.to_owned(),
                mac_address: "00:00:5e:00:01:01".to_owned(),
            }),
            ..Default::default()
        }),
    }
}

pub(crate) fn port(id: &str, vpc: &str, subnet: &str, ip: &str, interface: &str) -> PortState {
    PortState {
        operation_type: OperationType::Create.into(),
        configuration: Some(PortConfiguration {
            id: id.to_owned(),
            vpc_id: vpc.to_owned(),
            mac_address: "02:00:00:00:00:01".to_owned(),
            admin_state_up: true,
            fixed_ips: vec![port_configuration::FixedIp {
                subnet_id: subnet.to_owned(),
                ip_address: ip.to_owned(),
            }],
            interface_name: interface.to_owned(),
            ..Default::default()
        }),
    }
}

pub(crate) fn neighbor(number: u32, vpc: &str, subnet: &str, host: &str) -> NeighborState {
    let bytes = number.to_be_bytes();
    NeighborState {
        operation_type: OperationType::Create.into(),
        configuration: Some(NeighborConfiguration {
            id: format!("00000000-0000-4000-8000-{number:012x}"),
            vpc_id: vpc.to_owned(),
            mac_address: format!("02:01:{:02x}:{:02x}:{:02x}:{:02x}", bytes[0], bytes[1], bytes[2], bytes[3]),
            host_ip_address: host.to_owned(),
            fixed_ips: vec![neighbor_configuration::FixedIp {
                subnet_id: subnet.to_owned(),
                ip_address: format!("10.{}.{}.{}", bytes[1], bytes[2], bytes[3]),
                ..Default::default()
            }],
            ..Default::default()
        }),
    }
}

/// A VPC and a subnet that fits all neighbours.
pub(crate) fn ground() -> GoalState {
    GoalState {
        format_version: 101,
        vpc_states: vec![vpc("vpc", 100)],
        subnet_states: vec![subnet("subnet", "vpc", "10.0.0.0/8", "10.255.255.254")],
        ..Default::default()
    }
}

/// The rows of a reply as (type, id, status).
pub(crate) fn rows(reply: &GoalStateOperationReply) -> Vec<(ResourceType, &str, OperationStatus)> {
    reply
        .operation_statuses
        .iter()
        .map(|row| (row.resource_type(), row.resource_id.as_str(), row.operation_status()))
        .collect()
}
