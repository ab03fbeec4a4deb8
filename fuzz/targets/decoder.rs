//! Goal-state messages: any bytes as any of the three messages, then applied to a fresh model in small steps.
//!
//! Found here would be: a panic, an endless loop, a message that this decoder takes and prost does not (or the other
//! way round), a row that is missing from the reply.
#![no_main]

use std::{hint::black_box, net::Ipv4Addr};

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use ncm_model::{
    Changes, Limits, Message, Model, Origin, Progress, Run, Seed, Settings,
    wire::{GoalState, GoalStateV2, NeighborRulesRequest},
};
use prost::Message as _;

fuzz_target!(|data: &[u8]| {
    let Some((form, bytes)) = data.split_first() else { return };
    let bytes = Bytes::copy_from_slice(bytes);
    let (decoded, theirs) = match form % 3 {
        0 => (Message::decode_v1(bytes.clone()), GoalState::decode(bytes).map(drop)),
        1 => (Message::decode_v2(bytes.clone()), GoalStateV2::decode(bytes).map(drop)),
        _ => (Message::decode_rules(bytes.clone()), NeighborRulesRequest::decode(bytes).map(drop)),
    };
    assert_eq!(decoded.is_ok(), theirs.is_ok(), "ours: {decoded:?}, prost's: {theirs:?}");
    let Ok(message) = decoded else { return };
    let settings = Settings {
        addresses: vec![Ipv4Addr::new(192, 168, 50, 1).into()],
        endpoints: vec![Ipv4Addr::new(192, 168, 50, 1).into()],
        // Small, so that the bounds are met.
        limits: Limits {
            tombstones: 4,
            tombstone_age_s: 60,
            parked: 4,
            neighbours: 16,
            resources: 8,
            set_entries: 64,
            rules: 64,
            kept_bytes: 4096,
        },
        ..Settings::default()
    };
    let mut model = Model::new(settings, &Seed::default());
    // Twice: the second time everything is a repetition.
    for now in [1_000, 1_001] {
        let mut run = Run::new(message.clone(), Origin::Controller, now);
        while let Progress::More = model.step(&mut run, 3, &mut Changes::default()) {}
        assert_eq!(model.rows(&run).count(), model.row_count(&run));
        black_box(run.take_warnings());
    }
});
