//! Digests and followers over what happens to an agent: kills, restarts, snapshots, a journal that is lost.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result, ensure};
use ncm_model::wire::{GoalState, NeighborState, OperationType};
use ncm_tests::many;
use ncm_tests::testbed::{Cloud, Host, HostOptions, Lab, TwoHosts};
use serde_json::Value;

fn digests(host: &Host) -> Result<Value> {
    let text = host.expect_ncmctl(&["digest", "-o", "json"])?;
    Ok(serde_json::from_str::<Value>(&text)?)
}

/// A resource without what a push that changes nothing changes of it.
fn plain(state: &Value) -> Value {
    let mut state = state.clone();
    state["changedAt"] = Value::Null;
    state
}

/// What somebody knows who has followed an agent, and where to go on from.
#[derive(Default)]
struct Known {
    held: BTreeMap<String, Value>,
    from: Option<String>,
    /// Changes that it was told of last.
    told: usize,
}

impl Known {
    fn follow(&mut self, host: &Host) -> Result<()> {
        let mut words = vec!["watch", "--once", "-o", "json"];
        let from = self.from.clone();
        if let Some(from) = &from {
            words.extend(["--from", from]);
        }
        let text = host.expect_ncmctl(&words)?;
        self.told = 0;
        for line in text.lines() {
            let change: Value = serde_json::from_str(line)?;
            let state = plain(&change["state"]);
            let key = format!("{} {} {}", state["type"], state["id"], state["neighborType"]);
            match change["change"].as_str().context("a kind of change")? {
                "gone" => drop(self.held.remove(&key)),
                _ => drop(self.held.insert(key, state)),
            }
            self.told += usize::from(change["change"] != "status");
            self.from = change["from"].as_str().map(str::to_owned);
        }
        Ok(())
    }

    /// It knows what a listing tells.
    fn check(&self, host: &Host) -> Result<()> {
        let listed: Vec<Value> = serde_json::from_str(&host.expect_ncmctl(&["get", "-o", "json"])?)?;
        let listed = listed.into_iter().map(|state| {
            (format!("{} {} {}", state["type"], state["id"], state["neighborType"]), plain(&state))
        });
        let listed: BTreeMap<String, Value> = listed.collect();
        for (key, state) in &listed {
            let known = self.held.get(key);
            ensure!(known == Some(state), "{key} is {state}, and known is {known:?}");
        }
        ensure!(listed.len() == self.held.len(), "{} held, {} known", listed.len(), self.held.len());
        Ok(())
    }
}

fn neighbours(host: &Host, numbers: std::ops::Range<usize>, operation: OperationType) -> Result<()> {
    let mut all = many::neighbors("web", "red", numbers.end as u32, "172.16.0.9".parse()?);
    all.iter_mut().for_each(|state: &mut NeighborState| state.operation_type = operation.into());
    let neighbor_states = all.split_off(numbers.start);
    let message = GoalState { format_version: 101, neighbor_states, ..Default::default() };
    host.agent().push(&message)?;
    Ok(())
}

#[test]
fn a_follower_goes_on_after_kills_and_digests_are_those_of_an_agent_that_never_ended() {
    Lab::story(|lab| {
        let cloud: Cloud = many::cloud();
        let net = TwoHosts::unstarted(lab, HostOptions::default().with("store", "snapshot_bytes", "100000"))?;
        let [host, steady] = [&net.host1, &net.host2];
        host.start()?;
        steady.start()?;
        let ground = |host: &Host| -> Result<()> {
            let state = GoalState { port_states: Vec::new(), ..cloud.goal_state("host1") };
            host.agent().push(&state)?;
            Ok(())
        };
        ground(host)?;
        let mut known = Known::default();
        known.follow(host)?;
        known.check(host)?;

        neighbours(host, 0..300, OperationType::Create)?;
        host.kill();
        host.start()?;
        known.follow(host)?;
        ensure!(known.told == 300, "{} were told, and 300 had come", known.told);
        known.check(host)?;

        // What it has seen it is not told again, and deletions it is told of.
        neighbours(host, 100..150, OperationType::Delete)?;
        host.kill();
        host.start()?;
        known.follow(host)?;
        ensure!(known.told == 50, "{} were told, and 50 had gone", known.told);
        known.check(host)?;
        let before = digests(host)?;

        // Another one, to which it came in another way.
        neighbours(steady, 150..300, OperationType::Create)?;
        neighbours(steady, 0..100, OperationType::Create)?;
        ground(steady)?;
        ensure!(digests(steady)?["digests"] == before["digests"], "{before}\nand\n{}", digests(steady)?);

        // A snapshot takes the messages' place: the digests are the same, and so is what can be followed from its version on.
        for _ in 0..5 {
            neighbours(host, 0..100, OperationType::Create)?;
            neighbours(host, 200..300, OperationType::Create)?;
        }
        host.agent_mut()
            .wait_for_log("the journal has a new snapshot", std::time::Duration::from_secs(10))?;
        host.kill();
        host.start()?;
        ensure!(digests(host)? == before, "{before}\nbefore, and now\n{}", digests(host)?);
        known.follow(host)?;
        ensure!(known.told == 0, "{} were told, and nothing had changed", known.told);
        known.check(host)?;

        // Without its history it cannot be gone on from.
        host.kill();
        let journal = lab.run_directory().join("ncm-state").join(host.name());
        for file in fs::read_dir(journal)? {
            fs::remove_file(file?.path())?;
        }
        host.start()?;
        let refused = known.follow(host).err().context("another history was followed")?.to_string();
        ensure!(refused.contains("another history") && refused.contains("version 0"), "{refused}");
        let mut anew = Known::default();
        anew.follow(host)?;
        anew.check(host)
    });
}
