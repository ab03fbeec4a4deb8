//! The engine's journal: at start, what it tells becomes the model again; from then on, what is accepted goes into it.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, ensure};
use bytes::Bytes;
use ncm_model::{Asked, Facts, Kind, Message, Model, Origin, Progress, Run};

use crate::config::Config;
use crate::store::{Beginning, FrameKind, Journal, Record, Store};

/// 2020-01-01. What is older is a clock that nobody has set.
const EARLIEST: Duration = Duration::from_secs(1_577_836_800);

/// Opens the journal, if there is to be one: what is wrong with it shows before anything is changed.
pub(super) fn open(config: &Config) -> anyhow::Result<Option<Journal>> {
    check_clock(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())?;
    if !config.store.journal {
        tracing::warn!("store.journal is false: what is accepted is lost with the agent");
        return Ok(None);
    }
    Ok(Some(Journal::open(&config.paths.state.join(&config.instance), &config.instance)?))
}

/// By times before that, what was deleted would be remembered for ever, or not at all.
fn check_clock(now: Duration) -> anyhow::Result<()> {
    let seconds = now.as_secs();
    ensure!(
        now >= EARLIEST,
        "the clock says {seconds} seconds after 1970, which is before 2020: set it, then start the agent again"
    );
    Ok(())
}

/// What came of the journal at start.
pub(super) struct Recovered {
    pub(super) model: Model,
    pub(super) store: Option<Store>,
    /// What the model does not claim should not be there.
    pub(super) claims_all: bool,
}

/// Makes the model again. `begin` gives an empty one; `is_new`: the kernel's tables had nothing of an earlier run.
pub(super) fn recover(
    config: &Config,
    journal: Option<Journal>,
    is_new: bool,
    begin: impl Fn() -> Model,
) -> anyhow::Result<Recovered> {
    let Some(mut journal) = journal else {
        return Ok(Recovered { model: begin(), store: None, claims_all: false });
    };
    let begun = Instant::now();
    let start = || {
        let mut model = begin();
        model.begin_replay();
        Replay { model, runs: BTreeMap::new(), messages: 0 }
    };
    let (beginning, mut replay) = journal.replay(start, Replay::take, |replay| {
        replay.finish();
        Ok(())
    })?;
    let claims_all = match &beginning {
        Beginning::New if is_new => true,
        Beginning::New => {
            tracing::warn!(
                "there is no journal, and an earlier agent has left entries in the tables: they go on forwarding, unclaimed, \
                 until they are pushed again or `ncmctl prune` removes them"
            );
            false
        }
        Beginning::Known { complete } => *complete,
        Beginning::Lost(why) => {
            tracing::error!(
                "the journal cannot be used and is set aside (*.set-aside in {}): {why}; what is in the kernel's tables goes on \
                 forwarding, unclaimed, until it is pushed again or `ncmctl prune` removes it",
                config.paths.state.join(&config.instance).display()
            );
            false
        }
    };
    replay.model.end_replay(claims_all);
    let facts = Facts::of(replay.model.settings()).encode();
    let store =
        journal.start(claims_all, facts, config.store.durability).context("cannot begin the journal")?;
    if matches!(beginning, Beginning::Known { .. }) {
        let took = begun.elapsed();
        let messages = replay.messages;
        tracing::info!(messages, ms = took.as_millis(), "what was accepted before is known again");
    }
    Ok(Recovered { model: replay.model, store: Some(store), claims_all })
}

/// A model on its way back.
struct Replay {
    model: Model,
    /// Messages whose application had begun and not ended.
    runs: BTreeMap<u64, Run>,
    messages: u64,
}

/// Bytes before the message in its record, after the run's number: kind, origin, time.
const HEAD: usize = 10;

/// Bit of the kind: behind these bytes comes what of the message upstream was being asked for, a number of addresses and then each
/// with its VNI.
const ASKED: u8 = 0x80;

/// Bytes of such an address.
const TARGET: usize = 20;

/// What of a message is kept besides its bytes.
pub(super) fn head(kind: Kind, origin: Origin, now: u64, asked: &Asked) -> Vec<u8> {
    let mut head = vec![
        match kind {
            Kind::V1 => 1,
            Kind::V2 => 2,
            Kind::Rules => 3,
        },
        origin as u8,
    ];
    head.extend_from_slice(&now.to_le_bytes());
    if !asked.is_empty() {
        head[0] |= ASKED;
        head.extend_from_slice(&u32::try_from(asked.len()).unwrap_or(u32::MAX).to_le_bytes());
        for (vni, ip) in asked {
            head.extend_from_slice(&vni.to_le_bytes());
            let ip = match ip {
                IpAddr::V4(ip) => ip.to_ipv6_mapped(),
                IpAddr::V6(ip) => *ip,
            };
            head.extend_from_slice(&ip.octets());
        }
    }
    head
}

/// What upstream was being asked for, and where the message begins.
fn asked(payload: &[u8]) -> Result<(Asked, usize), String> {
    let begin = 8 + HEAD;
    if payload.get(8).is_none_or(|kind| kind & ASKED == 0) {
        return Ok((Asked::new(), begin));
    }
    let cut = || "a record is cut off".to_owned();
    let count = payload.get(begin..begin + 4).and_then(|bytes| bytes.try_into().ok()).ok_or_else(cut)?;
    let count = usize::try_from(u32::from_le_bytes(count)).map_err(|_| cut())?;
    let end = count.checked_mul(TARGET).and_then(|bytes| bytes.checked_add(begin + 4)).ok_or_else(cut)?;
    let targets = payload.get(begin + 4..end).ok_or_else(cut)?;
    let asked = targets.chunks_exact(TARGET).filter_map(|target| {
        let (vni, ip) = target.split_at(4);
        let ip: [u8; 16] = ip.try_into().ok()?;
        Some((u32::from_le_bytes(vni.try_into().ok()?), Ipv6Addr::from(ip).to_canonical()))
    });
    Ok((asked.collect(), end))
}

fn number(bytes: &[u8], at: usize) -> Result<u64, String> {
    let bytes = bytes.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
    bytes.map(u64::from_le_bytes).ok_or_else(|| "a record is cut off".to_owned())
}

impl Replay {
    fn take(&mut self, record: Record) -> Result<(), String> {
        let Record { kind, payload } = record;
        match kind {
            FrameKind::Facts => {
                // An agent starts here: it has brought to an end what another had begun.
                self.finish();
                let facts =
                    Facts::decode(&payload).ok_or("what the node was told of itself cannot be read")?;
                self.model.replay_by(&facts);
            }
            FrameKind::Message => self.begin(payload)?,
            FrameKind::Step => {
                let (number, most) = (number(&payload, 0)?, number(&payload, 8)?);
                let most = usize::try_from(most).map_err(|_| "a step is out of range")?;
                if let Some(run) = self.runs.get_mut(&number)
                    && self.model.replay_step(run, most) == Progress::Done
                {
                    self.runs.remove(&number);
                }
            }
            FrameKind::Neighbours => {
                self.model.restore_neighbours(&payload).map_err(|error| error.to_string())?
            }
            FrameKind::Gone => {
                self.model.restore_gone_neighbours(&payload).map_err(|error| error.to_string())?
            }
            FrameKind::Others => self.model.restore_others(&payload).map_err(|error| error.to_string())?,
            FrameKind::End => self.model.restore_version(&payload).map_err(|error| error.to_string())?,
            FrameKind::File | FrameKind::Complete | FrameKind::Durable => {}
        }
        Ok(())
    }

    fn begin(&mut self, payload: Vec<u8>) -> Result<(), String> {
        let (run, kind) = (number(&payload, 0)?, payload.get(8).map(|kind| kind & !ASKED));
        let (asked, begin) = asked(&payload)?;
        let origin = match payload.get(9) {
            Some(0) => Origin::Controller,
            Some(1) => Origin::Tool,
            Some(2) => Origin::OnDemand,
            Some(3) => Origin::Queue,
            _ => return Err("a message is of an unknown origin".to_owned()),
        };
        let now = number(&payload, 10)?;
        let bytes = Bytes::from(payload).slice(begin..);
        let message = match kind {
            Some(1) => Message::decode_v1(bytes),
            Some(2) => Message::decode_v2(bytes),
            Some(3) => Message::decode_rules(bytes),
            _ => return Err("a message is of an unknown kind".to_owned()),
        };
        let message = message.map_err(|error| format!("a message cannot be read any more: {error}"))?;
        self.runs.insert(run, Run::new(message, origin, now).while_asked(asked));
        self.messages += 1;
        Ok(())
    }

    /// What was begun goes on to its end: all of it is there.
    fn finish(&mut self) {
        for (_, mut run) in std::mem::take(&mut self.runs) {
            while self.model.replay_step(&mut run, 8192) == Progress::More {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_nobody_has_set_is_refused() {
        let refused = check_clock(Duration::from_secs(60)).expect_err("1970").to_string();
        assert!(refused.contains("before 2020") && refused.contains("set it"), "{refused}");
        check_clock(EARLIEST).expect("2020");
    }

    #[test]
    fn records_that_are_none_are_refused() {
        let begin = || Model::new(ncm_model::Settings::default(), &ncm_model::Seed::default());
        let mut replay = Replay { model: begin(), runs: BTreeMap::new(), messages: 0 };
        let mut payload = 7_u64.to_le_bytes().to_vec();
        let asked = Asked::from([(7, IpAddr::from([10, 1, 0, 2])), (8, IpAddr::from(Ipv6Addr::LOCALHOST))]);
        let known = [&payload[..], &head(Kind::V2, Origin::Controller, 1, &asked), b"m"].concat();
        assert_eq!(super::asked(&known), Ok((asked.clone(), known.len() - 1)));
        (8..known.len() - 1)
            .for_each(|cut| assert!(super::asked(&known[..cut]).is_err() || cut == 8, "{cut}"));
        payload.extend_from_slice(&head(Kind::V2, Origin::Controller, 1, &Asked::new()));
        let mut take = |kind, payload: &[u8]| replay.take(Record { kind, payload: payload.to_vec() });
        take(FrameKind::Message, &payload).expect("an empty message");
        for cut in 0..payload.len() {
            take(FrameKind::Message, &payload[..cut]).expect_err("it is cut off");
        }
        payload.extend_from_slice(b"\xff\xff");
        take(FrameKind::Message, &payload).expect_err("no message");
        take(FrameKind::Step, &[1, 2, 3]).expect_err("it is cut off");
        take(FrameKind::Facts, &[1]).expect_err("no facts");
    }
}
