//! What is held, compared and followed by a controller: over a listener for goal states, against a running agent.

mod agent_common;

use std::collections::BTreeMap;
use std::time::Duration;

use agent_common::{Agent, PATIENCE, channel, ground, neighbor, port, subnet, vpc};
use ncm_agent::ncm_v1::state_change::Kind;
use ncm_agent::ncm_v1::states_client::StatesClient;
use ncm_agent::ncm_v1::{
    GetDigestReply, GetDigestRequest, ListStatesRequest, ResourceState, StateChange, WatchStatesReply,
    WatchStatesRequest,
};
use ncm_model::wire::{GoalState, NeighborState, OperationStatus, OperationType, ResourceType};
use tonic::transport::Channel;
use tonic::{Code, Streaming};

async fn states(agent: &Agent) -> StatesClient<Channel> {
    StatesClient::new(channel(&agent.scratch.0.join("api.sock")).await)
}

async fn push(agent: &Agent, message: GoalState) {
    agent.client().await.push_network_resource_states(message).await.expect("is answered");
}

async fn digest(agent: &Agent) -> GetDigestReply {
    let reply = states(agent).await.get_digest(GetDigestRequest::default()).await;
    reply.expect("digests").into_inner()
}

fn neighbors(states: impl IntoIterator<Item = NeighborState>) -> GoalState {
    GoalState { neighbor_states: states.into_iter().collect(), format_version: 101, ..Default::default() }
}

fn deleted(mut state: NeighborState) -> NeighborState {
    state.operation_type = OperationType::Delete.into();
    state
}

/// Somebody who follows, and what it knows.
struct Follower {
    replies: Streaming<WatchStatesReply>,
    held: BTreeMap<(i32, String, String), ResourceState>,
    /// Of what it was told, in order: the kind, and the id.
    told: Vec<(Kind, String)>,
    place: (u64, u64),
}

impl Follower {
    async fn begin(agent: &Agent, (history, version): (u64, u64)) -> Result<Self, tonic::Status> {
        let request = WatchStatesRequest { history, version, include_state: true, ..Default::default() };
        let replies = states(agent).await.watch_states(request).await?.into_inner();
        Ok(Self { replies, held: BTreeMap::new(), told: Vec::new(), place: (history, version) })
    }

    fn take(&mut self, change: StateChange) {
        let kind = change.kind();
        let state = change.state.expect("a change has a state");
        self.told.push((kind, state.id.clone()));
        let key = (state.r#type, state.id.clone(), state.neighbor_type.clone());
        match kind {
            Kind::Gone => drop(self.held.remove(&key)),
            _ => drop(self.held.insert(key, state)),
        }
    }

    /// Reads on until what it knows is as wanted.
    async fn until(&mut self, what: &str, mut wanted: impl FnMut(&Self, &WatchStatesReply) -> bool) {
        let read = async {
            loop {
                let mut reply = self.replies.message().await.expect("goes on").expect("has no end");
                self.place = (reply.history, reply.version);
                std::mem::take(&mut reply.changes).into_iter().for_each(|change| self.take(change));
                if wanted(self, &reply) {
                    return;
                }
            }
        };
        let came = tokio::time::timeout(PATIENCE, read).await;
        assert!(came.is_ok(), "waited in vain for {what}; told {:?}", self.told);
    }

    async fn synchronised(&mut self) {
        self.until("all that there is", |_, reply| reply.synchronised).await;
    }

    async fn held(&mut self, id: &str, status: OperationStatus) {
        self.until(id, |this, _| this.held.values().any(|state| state.id == id && state.status() == status))
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_is_told_of_all_there_is_and_then_of_every_change_and_status() {
    let agent = Agent::start("");
    push(&agent, ground()).await;
    push(&agent, neighbors((0..3).map(|number| neighbor(number, "vpc", "subnet", "192.0.2.2")))).await;
    let mut follower = Follower::begin(&agent, (0, 0)).await.expect("follows");
    follower.synchronised().await;
    assert_eq!(follower.held.len(), 5, "{:?}", follower.told);
    assert!(follower.held.values().all(|state| state.status() == OperationStatus::Success));

    // One that waits for its subnet, and then does not.
    push(&agent, neighbors([neighbor(9, "vpc", "later", "192.0.2.2")])).await;
    let id = "00000000-0000-4000-8000-000000000009";
    follower.held(id, OperationStatus::Pending).await;
    let later = GoalState {
        subnet_states: vec![subnet("later", "vpc", "172.16.0.0/16", "172.16.0.1")],
        ..Default::default()
    };
    push(&agent, later).await;
    follower.held(id, OperationStatus::Success).await;
    assert!(follower.told.contains(&(Kind::Status, id.to_owned())), "{:?}", follower.told);

    // A port whose interface comes and goes.
    let ports = vec![port("port", "vpc", "subnet", "10.1.2.3", "guest0")];
    push(&agent, GoalState { port_states: ports, ..Default::default() }).await;
    follower.held("port", OperationStatus::Pending).await;
    agent.run("ip link add guest0 type veth peer name guest1");
    follower.held("port", OperationStatus::Success).await;
    agent.run("ip link del guest0");
    follower.held("port", OperationStatus::Pending).await;

    // Changes and deletions in their order.
    follower.told.clear();
    push(&agent, neighbors([neighbor(1, "vpc", "subnet", "192.0.2.3")])).await;
    push(&agent, neighbors([deleted(neighbor(2, "vpc", "subnet", "192.0.2.2"))])).await;
    push(&agent, GoalState { vpc_states: vec![vpc("other", 200)], ..Default::default() }).await;
    follower.held("other", OperationStatus::Success).await;
    let versioned: Vec<_> = follower.told.iter().filter(|(kind, _)| *kind != Kind::Status).cloned().collect();
    let expected = [
        (Kind::Held, "00000000-0000-4000-8000-000000000001"),
        (Kind::Gone, "00000000-0000-4000-8000-000000000002"),
        (Kind::Held, "other"),
    ];
    assert_eq!(versioned, expected.map(|(kind, id)| (kind, id.to_owned())));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_away_is_told_of_what_it_missed_and_of_nothing_else() {
    let agent = Agent::start("");
    push(&agent, ground()).await;
    push(&agent, neighbors((0..100).map(|number| neighbor(number, "vpc", "subnet", "192.0.2.2")))).await;
    let mut before = Follower::begin(&agent, (0, 0)).await.expect("follows");
    before.synchronised().await;
    let place = before.place;
    drop(before);

    push(
        &agent,
        neighbors([neighbor(7, "vpc", "subnet", "192.0.2.9"), deleted(neighbor(8, "vpc", "subnet", ""))]),
    )
    .await;
    push(&agent, neighbors([neighbor(200, "vpc", "nowhere", "192.0.2.2")])).await;
    // Nothing changes by what is held already.
    push(&agent, ground()).await;
    let mut after = Follower::begin(&agent, place).await.expect("follows");
    after.synchronised().await;
    let id = |number: u32| format!("00000000-0000-4000-8000-{number:012x}");
    let expected = [(Kind::Held, id(7)), (Kind::Gone, id(8)), (Kind::Held, id(200)), (Kind::Status, id(200))];
    assert_eq!(after.told, expected);

    let digests = digest(&agent).await;
    assert_eq!((digests.history, digests.version), after.place);
    let refused = Follower::begin(&agent, (after.place.0 ^ 2, after.place.1)).await.map(drop);
    let refused = refused.expect_err("it is another history");
    assert_eq!(refused.code(), Code::OutOfRange, "{refused}");
    assert!(refused.message().contains("another history"), "{refused}");
    let refused = Follower::begin(&agent, (after.place.0, after.place.1 + 1)).await.map(drop);
    let refused = refused.expect_err("there is no such version yet");
    assert_eq!(refused.code(), Code::OutOfRange, "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_that_hold_the_same_have_the_same_digests_whatever_came_in_what_order() {
    let (one, other) = (Agent::start(""), Agent::start(""));
    let all = |count: u32| (0..count).map(|number| neighbor(number, "vpc", "subnet", "192.0.2.2"));
    push(&one, GoalState { neighbor_states: all(500).collect(), ..ground() }).await;

    push(&other, neighbors(all(700).rev_vec())).await;
    let before = digest(&other).await;
    assert_ne!(digest(&one).await.digests, before.digests);
    push(&other, neighbors(all(700).skip(500).map(deleted))).await;
    push(&other, GoalState { vpc_states: ground().vpc_states, ..Default::default() }).await;
    push(&other, GoalState { subnet_states: ground().subnet_states, ..Default::default() }).await;
    let (ours, theirs) = (digest(&one).await, digest(&other).await);
    assert_eq!(ours.digests, theirs.digests);
    assert_ne!(ours.history, theirs.history);
    let neighbours = ours.types.iter().find(|digest| digest.r#type() == ResourceType::Neighbor);
    assert_eq!(neighbours.map(|digest| digest.count), Some(500));
    assert!(
        ours.digests.iter().all(|digest| digest.vpc_id == "vpc" && digest.digest.len() == 32),
        "{ours:?}"
    );

    // What differs can be listed.
    let request = ListStatesRequest { types: vec![ResourceType::Neighbor.into()], ..Default::default() };
    let mut parts = states(&one).await.list_states(request).await.expect("a list").into_inner();
    let mut listed = 0;
    while let Some(part) = parts.message().await.expect("goes on") {
        listed += part.states.len();
    }
    assert_eq!(listed, 500);
}

trait Reversed: Iterator + Sized {
    /// The items from the last to the first.
    fn rev_vec(self) -> Vec<Self::Item> {
        let mut items: Vec<_> = self.collect();
        items.reverse();
        items
    }
}

impl<I: Iterator> Reversed for I {}

#[tokio::test(flavor = "multi_thread")]
async fn who_reads_too_slowly_is_cut_off_and_holds_nobody_up() {
    let agent = Agent::start("stall_seconds = 1\n");
    push(&agent, ground()).await;
    let mut slow = Follower::begin(&agent, (0, 0)).await.expect("follows");
    slow.synchronised().await;
    let mut quick = Follower::begin(&agent, slow.place).await.expect("follows");
    for round in 0..20_u32 {
        let batch = (0..2000).map(|number| neighbor(round * 2000 + number, "vpc", "subnet", "192.0.2.2"));
        push(&agent, neighbors(batch)).await;
    }
    let last = format!("00000000-0000-4000-8000-{:012x}", 39_999);
    quick.held(&last, OperationStatus::Success).await;
    assert_eq!(quick.held.len(), 40_000);
    // Nobody can tell a reader that takes nothing: what is awaited is that the time for it has passed.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let read = async {
        loop {
            match slow.replies.message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("the stream ended as if all had been told"),
                Err(status) => break status,
            }
        }
    };
    let ended = tokio::time::timeout(PATIENCE, read).await.expect("the stream ends");
    assert_eq!(ended.code(), Code::ResourceExhausted, "{ended}");
    assert!(ended.message().contains("read faster"), "{ended}");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_so_many_may_follow_and_a_place_is_free_when_one_goes() {
    let agent = Agent::start("");
    let mut followers = Vec::new();
    let refused = loop {
        match Follower::begin(&agent, (0, 0)).await {
            Ok(follower) => followers.push(follower),
            Err(status) => break status,
        }
        assert!(followers.len() < 1000, "nobody is refused");
    };
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert!(followers.len() >= 16, "{}", followers.len());
    followers.pop();
    let begun = std::time::Instant::now();
    while let Err(status) = Follower::begin(&agent, (0, 0)).await {
        assert!(begun.elapsed() < PATIENCE, "{status}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // Goal states are taken all the same.
    push(&agent, ground()).await;
}
