//! The tool against a stand-in for the agent: what it sends, prints, and exits with.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use ncm_agent::ncm_v1::inspect_server::{Inspect, InspectServer};
use ncm_agent::ncm_v1::operate_server::{Operate, OperateServer};
use ncm_agent::ncm_v1::{self, deviation::Kind, difference::Change};
use ncm_model::wire::{
    GoalStateV2, OperationStatus, OperationType, PortConfiguration, PortState, ResourceType,
};
use prost::Message;
use serde_json::{Value, json};
use tokio::net::UnixListener;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::{Request, Response, Status};

/// Answers every call with something that each test can recognise, and keeps what was applied.
#[derive(Clone, Default)]
struct StandIn {
    applied: Arc<Mutex<Vec<GoalStateV2>>>,
    /// Looks at the pending port until it has completed.
    looks_until_complete: Arc<AtomicU32>,
}

type Stream<T> = ReceiverStream<Result<T, Status>>;

fn stream<T: Send + 'static>(items: Vec<Result<T, Status>>) -> Response<Stream<T>> {
    let (sender, receiver) = tokio::sync::mpsc::channel(items.len().max(1));
    for item in items {
        sender.try_send(item).ok().unwrap();
    }
    Response::new(ReceiverStream::new(receiver))
}

fn table() -> ncm_v1::Table {
    ncm_v1::Table {
        name: "vnis".into(),
        kind: "hash".into(),
        holds: "VNIs that are ours".into(),
        entries: 2,
        capacity: 8,
        key_columns: vec!["vni".into()],
        value_columns: vec!["subnets".into()],
        memory: 4096,
        capacity_key: "subnets".into(),
    }
}

fn row(vni: u64, subnets: u64) -> ncm_v1::TableRow {
    let number = |number| ncm_v1::Value { value: Some(ncm_v1::value::Value::Number(number)) };
    ncm_v1::TableRow { key: format!("vni={vni}"), values: vec![number(vni), number(subnets)] }
}

fn port(id: &str, status: OperationStatus, cause: &str) -> ncm_v1::ResourceState {
    let configuration =
        PortConfiguration { id: id.into(), admin_state_up: true, ..PortConfiguration::default() };
    ncm_v1::ResourceState {
        r#type: ResourceType::Port as i32,
        id: id.into(),
        origin: ncm_v1::Origin::Tool as i32,
        status: status as i32,
        cause: cause.into(),
        state: PortState { configuration: Some(configuration), ..PortState::default() }.encode_to_vec(),
        ..ncm_v1::ResourceState::default()
    }
}

#[tonic::async_trait]
impl Inspect for StandIn {
    async fn get_info(
        &self,
        _: Request<ncm_v1::GetInfoRequest>,
    ) -> Result<Response<ncm_v1::GetInfoReply>, Status> {
        Ok(Response::new(ncm_v1::GetInfoReply { version: "9.9.9".into(), ..ncm_v1::GetInfoReply::default() }))
    }

    async fn get_status(
        &self,
        _: Request<ncm_v1::GetStatusRequest>,
    ) -> Result<Response<ncm_v1::GetStatusReply>, Status> {
        let interface = ncm_v1::Interface {
            name: "eth1".into(),
            role: ncm_v1::InterfaceRole::Underlay as i32,
            hook: "xdp".into(),
            reason: "native XDP is there".into(),
            ..ncm_v1::Interface::default()
        };
        let count = |status: OperationStatus, count| ncm_v1::ResourceCount {
            r#type: ResourceType::Port as i32,
            status: status as i32,
            count,
        };
        Ok(Response::new(ncm_v1::GetStatusReply {
            info: Some(ncm_v1::GetInfoReply { version: "9.9.9".into(), ..ncm_v1::GetInfoReply::default() }),
            interfaces: vec![interface],
            resources: vec![count(OperationStatus::Success, 3), count(OperationStatus::Pending, 1)],
            tables: vec![table()],
            alarms: vec!["the table vnis is full".into()],
            ..ncm_v1::GetStatusReply::default()
        }))
    }

    type ListStatesStream = Stream<ncm_v1::ListStatesReply>;

    async fn list_states(
        &self,
        request: Request<ncm_v1::ListStatesRequest>,
    ) -> Result<Response<Self::ListStatesStream>, Status> {
        let request = request.into_inner();
        let looks = self.looks_until_complete.load(Ordering::SeqCst);
        self.looks_until_complete.store(looks.saturating_sub(1), Ordering::SeqCst);
        let late = if looks == 1 { OperationStatus::Success } else { OperationStatus::Pending };
        let mut states = vec![
            port("good", OperationStatus::Success, ""),
            port("late", late, "its interface taplate is not there"),
        ];
        states.retain(|state| request.ids.is_empty() || request.ids.contains(&state.id));
        Ok(stream(vec![Ok(ncm_v1::ListStatesReply { states })]))
    }

    async fn preview_states(
        &self,
        request: Request<ncm_v1::PreviewStatesRequest>,
    ) -> Result<Response<ncm_v1::PreviewStatesReply>, Status> {
        let state = GoalStateV2::decode(request.into_inner().goal_state.as_slice()).unwrap();
        let differences = state.port_states.into_values().map(|state| ncm_v1::Difference {
            r#type: ResourceType::Port as i32,
            operation: state.operation_type,
            id: state.configuration.unwrap_or_default().id,
            change: Change::Modify as i32,
            fields: vec!["mac_address".into()],
            cause: String::new(),
        });
        Ok(Response::new(ncm_v1::PreviewStatesReply { differences: differences.collect() }))
    }

    async fn list_tables(
        &self,
        _: Request<ncm_v1::ListTablesRequest>,
    ) -> Result<Response<ncm_v1::ListTablesReply>, Status> {
        Ok(Response::new(ncm_v1::ListTablesReply { tables: vec![table()] }))
    }

    type DumpTableStream = Stream<ncm_v1::DumpTableReply>;

    async fn dump_table(
        &self,
        request: Request<ncm_v1::DumpTableRequest>,
    ) -> Result<Response<Self::DumpTableStream>, Status> {
        if request.into_inner().table != "vnis" {
            return Err(Status::invalid_argument("there is no such table"));
        }
        let columns = vec!["vni".into(), "subnets".into()];
        Ok(stream(vec![
            Ok(ncm_v1::DumpTableReply { columns, rows: vec![row(200, 1)] }),
            Ok(ncm_v1::DumpTableReply { columns: Vec::new(), rows: vec![row(100, 2)] }),
        ]))
    }

    async fn get_entry(
        &self,
        request: Request<ncm_v1::GetEntryRequest>,
    ) -> Result<Response<ncm_v1::GetEntryReply>, Status> {
        let key = request.into_inner().key;
        if key != "vni=100" {
            return Err(Status::not_found(format!("the table vnis has no entry {key}")));
        }
        let columns = vec!["vni".into(), "subnets".into()];
        Ok(Response::new(ncm_v1::GetEntryReply { columns, row: Some(row(100, 2)) }))
    }

    async fn get_drops(
        &self,
        _: Request<ncm_v1::GetDropsRequest>,
    ) -> Result<Response<ncm_v1::GetDropsReply>, Status> {
        let count = |port: &str, packets| ncm_v1::DropCount {
            reason: "spoofed_mac".into(),
            packets,
            bytes: packets * 60,
            port: port.into(),
            port_index: u32::from(!port.is_empty()),
        };
        Ok(Response::new(ncm_v1::GetDropsReply {
            reasons: vec![count("", 7)],
            ports: vec![count("good", 7)],
            read_at_ns: 1,
            policy: Vec::new(),
        }))
    }

    async fn get_counters(
        &self,
        _: Request<ncm_v1::GetCountersRequest>,
    ) -> Result<Response<ncm_v1::GetCountersReply>, Status> {
        let counter = |name: &str| ncm_v1::Counter {
            name: name.into(),
            kind: "counter".into(),
            samples: vec![ncm_v1::Sample { labels: Vec::new(), value: 42.0 }],
            ..ncm_v1::Counter::default()
        };
        let counters = vec![counter("ncm_messages_total"), counter("ncm_path_packets_total")];
        Ok(Response::new(ncm_v1::GetCountersReply { counters }))
    }
}

#[tonic::async_trait]
impl Operate for StandIn {
    type ApplyStatesStream = Stream<ncm_v1::ApplyStatesReply>;

    async fn apply_states(
        &self,
        request: Request<ncm_v1::ApplyStatesRequest>,
    ) -> Result<Response<Self::ApplyStatesStream>, Status> {
        let state = GoalStateV2::decode(request.into_inner().goal_state.as_slice()).unwrap();
        self.applied.lock().unwrap().push(state.clone());
        let results = state.port_states.into_values().map(|state| {
            let id = state.configuration.unwrap_or_default().id;
            let (status, cause) = match id.as_str() {
                "late" => (OperationStatus::Pending, "its interface taplate is not there"),
                "bad" => (OperationStatus::InvalidArg, "macAddress: `x` is no MAC"),
                _ => (OperationStatus::Success, ""),
            };
            ncm_v1::StateResult {
                r#type: ResourceType::Port as i32,
                id,
                operation: state.operation_type,
                status: status as i32,
                cause: cause.into(),
            }
        });
        Ok(stream(vec![Ok(ncm_v1::ApplyStatesReply { results: results.collect() })]))
    }

    async fn verify(
        &self,
        request: Request<ncm_v1::VerifyRequest>,
    ) -> Result<Response<ncm_v1::VerifyReply>, Status> {
        let ncm_v1::VerifyRequest { repair, prune } = request.into_inner();
        let deviation = |kind: Kind, key: &str| ncm_v1::Deviation {
            kind: kind as i32,
            place: "vnis".into(),
            key: key.into(),
            ..ncm_v1::Deviation::default()
        };
        Ok(Response::new(ncm_v1::VerifyReply {
            deviations: vec![deviation(Kind::Missing, "vni=100"), deviation(Kind::Unclaimed, "vni=200")],
            missing: 1,
            unclaimed: 1,
            written: repair.into(),
            removed: prune.into(),
            ..ncm_v1::VerifyReply::default()
        }))
    }
}

/// A directory with the stand-in's socket; both go with it.
struct World {
    directory: PathBuf,
    agent: StandIn,
    _runtime: tokio::runtime::Runtime,
}

impl World {
    fn new(name: &str) -> Self {
        let directory = std::env::temp_dir().join(format!("ncmctl-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let agent = StandIn::default();
        let socket = directory.join("socket");
        let (inspect, operate) = (InspectServer::new(agent.clone()), OperateServer::new(agent.clone()));
        let listener = runtime.block_on(async { UnixListener::bind(socket).unwrap() });
        runtime.spawn(async move {
            let server = tonic::transport::Server::builder().add_service(inspect).add_service(operate);
            server.serve_with_incoming(UnixListenerStream::new(listener)).await.unwrap();
        });
        Self { directory, agent, _runtime: runtime }
    }

    fn file(&self, name: &str, text: &str) -> String {
        let path = self.directory.join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    fn run(&self, arguments: &[&str]) -> Ran {
        run(&self.directory.join("socket"), arguments, "")
    }

    fn applied(&self) -> Vec<GoalStateV2> {
        self.agent.applied.lock().unwrap().clone()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.directory));
    }
}

struct Ran {
    exit: i32,
    out: String,
    err: String,
}

impl Ran {
    #[track_caller]
    fn expect(&self, exit: i32) -> &Self {
        assert_eq!(self.exit, exit, "standard output:\n{}\nstandard error:\n{}", self.out, self.err);
        self
    }

    #[track_caller]
    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {}", self.out))
    }
}

fn run(socket: &Path, arguments: &[&str], input: &str) -> Ran {
    let mut child = Command::new(env!("CARGO_BIN_EXE_ncmctl"))
        .args(arguments)
        .env("NCM_SOCKET", socket)
        .env_remove("NCM_INSTANCE")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), input.as_bytes()).unwrap();
    let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
    Ran {
        exit: status.code().unwrap(),
        out: String::from_utf8(stdout).unwrap(),
        err: String::from_utf8(stderr).unwrap(),
    }
}

fn port_document(id: &str) -> String {
    format!("portStates: {{x: {{operationType: CREATE, configuration: {{id: {id}}}}}}}\n")
}

#[test]
fn apply_sends_every_document_and_prints_a_row_for_each_resource() {
    let world = World::new("apply");
    let file = world.file("a.yaml", &format!("{}---\n{}", port_document("good"), port_document("other")));
    let ran = world.run(&["apply", "-f", &file]);
    ran.expect(0);
    let lines: Vec<Vec<&str>> = ran.out.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["TYPE", "ID", "OPERATION", "STATUS", "CAUSE"]);
    assert_eq!(lines[1], ["port", "good", "create", "success", "-"]);
    assert_eq!(lines[2], ["port", "other", "create", "success", "-"]);
    assert_eq!(world.applied().len(), 2);
}

#[test]
fn apply_takes_standard_input() {
    let world = World::new("stdin");
    run(&world.directory.join("socket"), &["apply", "-f", "-"], &port_document("good")).expect(0);
    assert_eq!(world.applied()[0].port_states["x"].configuration.clone().unwrap().id, "good");
}

#[test]
fn a_refused_resource_is_shown_with_its_cause_and_makes_the_exit_code_1() {
    let world = World::new("refused");
    let file = world.file("a.yaml", &port_document("bad"));
    let ran = world.run(&["apply", "-f", &file, "-o", "json"]);
    let expected = json!([{
        "type": "PORT", "id": "bad", "operation": "CREATE", "status": "INVALID_ARG",
        "cause": "macAddress: `x` is no MAC"
    }]);
    assert_eq!(ran.expect(1).json(), expected);
}

#[test]
fn one_wrong_file_keeps_every_file_from_being_sent() {
    let world = World::new("wrong");
    let good = world.file("a.yaml", &port_document("good"));
    let wrong = world.file("b.yaml", "portStates:\n  x:\n    configuration: {macAdress: a}\n");
    let ran = world.run(&["apply", "-f", &good, &wrong]);
    ran.expect(2);
    let said = "b.yaml:3: portStates.x.configuration.macAdress: unknown field (did you mean macAddress?)";
    assert!(ran.err.contains(said), "{}", ran.err);
    assert!(ran.err.contains("nothing was sent"), "{}", ran.err);
    assert!(world.applied().is_empty());
}

#[test]
fn delete_overrides_operations_and_takes_the_last_document_first() {
    let world = World::new("delete");
    let file = world.file("a.yaml", &format!("{}---\n{}", port_document("first"), port_document("second")));
    world.run(&["delete", "-f", &file]).expect(0);
    let sent: Vec<(String, OperationType)> = world
        .applied()
        .into_iter()
        .flat_map(|state| state.port_states.into_values())
        .map(|state| (state.configuration.clone().unwrap().id, state.operation_type()))
        .collect();
    let delete = OperationType::Delete;
    assert_eq!(sent, [("second".to_owned(), delete), ("first".to_owned(), delete)]);
}

#[test]
fn a_pending_resource_is_no_failure_unless_it_is_waited_for_in_vain() {
    let world = World::new("wait");
    let file = world.file("a.yaml", &port_document("late"));
    world.run(&["apply", "-f", &file]).expect(0);
    let ran = world.run(&["apply", "-f", &file, "--wait", "1"]);
    ran.expect(4);
    assert!(ran.out.contains("its interface taplate is not there"), "{}", ran.out);
    world.agent.looks_until_complete.store(3, Ordering::SeqCst);
    let ran = world.run(&["apply", "-f", &file, "--wait", "20"]);
    ran.expect(0);
    assert!(ran.out.contains("success"), "{}", ran.out);
}

#[test]
fn a_dry_run_shows_the_difference_and_applies_nothing() {
    let world = World::new("dry");
    let file = world.file("a.yaml", &port_document("good"));
    let ran = world.run(&["apply", "-f", &file, "--dry-run"]);
    ran.expect(0);
    assert!(ran.out.contains("would change: mac_address"), "{}", ran.out);
    assert!(ran.out.contains("1 of 1 would change; nothing was changed"), "{}", ran.out);
    assert!(world.applied().is_empty());
    let differences = world.run(&["delete", "-f", &file, "--dry-run", "-o", "json"]).json();
    assert_eq!(differences["differences"][0]["operation"], "DELETE");
    assert_eq!(differences["differences"][0]["fields"], json!(["mac_address"]));
}

#[test]
fn get_shows_what_is_held_and_in_json_its_configuration() {
    let world = World::new("get");
    let ran = world.run(&["get"]);
    ran.expect(0);
    assert!(
        ran.out.contains("late") && ran.out.contains("pending") && ran.out.contains("tool"),
        "{}",
        ran.out
    );
    let states = world.run(&["get", "port", "good", "-o", "json"]).expect(0).json();
    assert_eq!(states[0]["origin"], "ORIGIN_TOOL");
    assert_eq!(states[0]["configuration"], json!({"id": "good", "adminStateUp": true}));
    let ran = world.run(&["get", "port", "good", "nowhere"]);
    ran.expect(1);
    assert!(ran.err.contains("no port nowhere is held"), "{}", ran.err);
    world.run(&["get", "prot"]).expect(2);
}

#[test]
fn status_and_info_are_for_people_and_for_scripts() {
    let world = World::new("status");
    // An alarm makes the exit code 1, so that a script need not read the text.
    let ran = world.run(&["status"]);
    ran.expect(1);
    for part in
        ["ncm-agent 9.9.9", "ALARM: the table vnis is full", "eth1", "underlay", "native XDP is there", "25%"]
    {
        assert!(ran.out.contains(part), "no `{part}` in\n{}", ran.out);
    }
    let status = world.run(&["status", "-o", "json"]).json();
    assert_eq!(status["interfaces"][0]["hook"], "xdp");
    assert_eq!(status["resources"][1], json!({"type": "PORT", "status": "PENDING", "count": 1}));
    let info = world.run(&["info", "-o", "yaml"]);
    assert!(info.expect(0).out.starts_with("version: \"9.9.9\"\n"), "{}", info.out);
}

#[test]
fn tables_are_listed_dumped_in_order_and_looked_up() {
    let world = World::new("map");
    let list = world.run(&["map", "list", "-o", "json"]).expect(0).json();
    assert_eq!((&list[0]["name"], &list[0]["capacity"]), (&json!("vnis"), &json!(8)));
    let dump = world.run(&["map", "dump", "vnis"]);
    assert_eq!(dump.expect(0).out, "VNI  SUBNETS\n100  2\n200  1\n");
    let dump = world.run(&["map", "dump", "vnis", "-o", "json"]).json();
    assert_eq!(dump[0], json!({"key": "vni=100", "entry": {"vni": 100, "subnets": 2}}));
    let entry = world.run(&["map", "get", "vnis", "vni=100", "-o", "yaml"]);
    assert_eq!(entry.expect(0).out, "key: \"vni=100\"\nentry:\n  vni: 100\n  subnets: 2\n");
    assert!(world.run(&["map", "get", "vnis", "vni=7"]).expect(1).err.contains("no entry vni=7"));
    world.run(&["map", "dump", "vinis"]).expect(2);
}

#[test]
fn drops_and_counters() {
    let world = World::new("drops");
    let ran = world.run(&["drops"]);
    assert!(ran.expect(0).out.contains("spoofed_mac  7        420"), "{}", ran.out);
    let drops = world.run(&["drops", "-o", "json"]).json();
    assert_eq!(drops["ports"][0]["port"], "good");
    let counters = world.run(&["counters", "path"]);
    assert!(counters.expect(0).out.contains("ncm_path_packets_total"), "{}", counters.out);
    assert!(!counters.out.contains("ncm_messages_total"), "{}", counters.out);
}

#[test]
fn without_an_agent_the_tool_says_what_to_do() {
    let nowhere = std::env::temp_dir().join(format!("ncmctl-none-{}.sock", std::process::id()));
    let ran = run(&nowhere, &["status"], "");
    ran.expect(3);
    for part in ["is the agent running?", "systemctl status ncm-agent", "--instance"] {
        assert!(ran.err.contains(part), "no `{part}` in {}", ran.err);
    }
    // A socket that nobody listens on any more.
    let dead = std::env::temp_dir().join(format!("ncmctl-dead-{}.sock", std::process::id()));
    drop(std::os::unix::net::UnixListener::bind(&dead).unwrap());
    let ran = run(&dead, &["get"], "");
    std::fs::remove_file(&dead).unwrap();
    assert!(ran.expect(3).err.contains("nobody listens"), "{}", ran.err);
    // Tables are then looked for in what is pinned: of this instance nothing is.
    let ran = run(&nowhere, &["--instance", "c-none", "map", "list"], "");
    assert!(ran.expect(3).err.contains("c-none"), "{}", ran.err);
    // Files are checked first: they can be without an agent.
    let ran = run(&nowhere, &["apply", "-f", "-"], "x: 1");
    assert!(ran.expect(2).err.contains("standard input:1: x: unknown field"), "{}", ran.err);
}

#[test]
fn an_agent_that_closes_the_connection_is_out_of_reach() {
    // Before it has read anything, and in the middle of it: the tool may be at another step each time.
    for read in [0, 1, 24, 60] {
        let path = std::env::temp_dir().join(format!("ncmctl-closed-{}-{read}.sock", std::process::id()));
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        std::thread::spawn(move || {
            for mut connection in listener.incoming().flatten() {
                // The first connection is a try, and ends without a byte.
                let _some = std::io::Read::read_exact(&mut connection, &mut vec![0; read]);
            }
        });
        let ran = run(&path, &["info"], "");
        std::fs::remove_file(&path).unwrap();
        assert!(ran.expect(3).err.contains("[api] group"), "closed after {read} bytes: {}", ran.err);
    }
}

#[test]
fn completions_are_printed_for_each_shell() {
    for shell in ["bash", "zsh", "fish"] {
        let ran = run(Path::new("/none"), &["completions", shell], "");
        assert!(ran.expect(0).out.contains("ncmctl"), "{shell}");
    }
}

#[test]
fn verify_fails_while_anything_is_left_and_prune_tells_only_of_what_nothing_claims() {
    let world = World::new("verify");
    let ran = world.run(&["verify"]);
    for part in ["missing", "vni=100", "unclaimed", "vni=200", "1 missing, 1 unclaimed"] {
        assert!(ran.expect(1).out.contains(part), "no `{part}` in {}", ran.out);
    }
    let ran = world.run(&["verify", "--repair"]);
    assert!(ran.expect(1).out.contains("1 entries written, 0 removed, 0 programs"), "{}", ran.out);
    for (arguments, removed) in [(&["prune", "--dry-run"][..], false), (&["prune"], true)] {
        let ran = world.run(arguments);
        assert!(ran.expect(0).out.contains("vni=200") && !ran.out.contains("missing"), "{}", ran.out);
        assert_eq!(ran.out.contains("1 removed"), removed, "{}", ran.out);
    }
    let data = world.run(&["verify", "-o", "json"]).json();
    assert_eq!(data["deviations"][1]["key"], "vni=200");
}
