//! Generates the Rust code of the agent's own services (`proto/ncm/v1`) and of the client of the goal-state services.
//! No `protoc` is needed: protox parses the files.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::{env, fs};

use prost::Message;
use tonic_build::manual::{Builder, Method, Service};

fn main() -> Result<(), Box<dyn Error>> {
    let root = Path::new("../proto");
    println!("cargo::rerun-if-changed={}", root.display());
    let out = PathBuf::from(env::var("OUT_DIR")?);

    let mut files: Vec<PathBuf> = fs::read_dir(root.join("ncm/v1"))?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    files.retain(|path| path.extension().is_some_and(|extension| extension == "proto"));
    files.sort();
    let set = protox::compile(&files, [root])?;
    fs::write(out.join("ncm_v1.bin"), set.encode_to_vec())?;
    tonic_prost_build::configure()
        .extern_path(".alcor.schema", "::ncm_model::wire")
        .out_dir(&out)
        .compile_fds(set)?;

    goal_state_clients(&out);
    Ok(())
}

/// Clients only: the agent's server of these services reads messages by itself, see `api::goalstate`.
fn goal_state_clients(out: &Path) {
    let method = |name: &str, route: &str, input: &str, output: &str| {
        Method::builder()
            .name(name)
            .route_name(route)
            .input_type(format!("::ncm_model::wire::{input}"))
            .output_type(format!("::ncm_model::wire::{output}"))
            .codec_path("::tonic_prost::ProstCodec")
    };
    let goal_states = Service::builder()
        .name("GoalStateProvisioner")
        .package("alcor.schema")
        .comment("Pushes goal states to an agent.")
        .method(
            method(
                "push_network_resource_states",
                "PushNetworkResourceStates",
                "GoalState",
                "GoalStateOperationReply",
            )
            .comment("Pushes one message of the first format.")
            .build(),
        )
        .method(
            method(
                "push_goal_states_stream",
                "PushGoalStatesStream",
                "GoalStateV2",
                "GoalStateOperationReply",
            )
            .comment("Pushes any number of messages of the second format; each is answered, in order.")
            .client_streaming()
            .server_streaming()
            .build(),
        )
        .method(
            method("request_goal_states", "RequestGoalStates", "HostRequest", "HostRequestReply")
                .comment("Asks upstream for goal states; an agent does not serve it.")
                .build(),
        )
        .method(
            method("push_goalstates", "PushGoalstates", "NeighborRulesRequest", "GoalStateOperationReply")
                .comment("Pushes neighbours whose addresses carry their own tunnel id.")
                .build(),
        )
        .build();
    let subscriptions = Service::builder()
        .name("SubscribeInfoProvisioner")
        .package("alcor.schema")
        .comment("Tells an agent which topics to follow.")
        .method(
            method(
                "push_node_subscribe_info",
                "PushNodeSubscribeInfo",
                "NodeSubscribeInfo",
                "SubscribeOperationReply",
            )
            .comment("Adds or removes one topic.")
            .build(),
        )
        .build();
    Builder::new().build_server(false).out_dir(out).compile(&[goal_states, subscriptions]);
}
