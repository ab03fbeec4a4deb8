//! Bytes as they come: never a panic, and what is read is what prost reads.

use bytes::Bytes;
use proptest::prelude::*;
use prost::Message as _;

use crate::goalstate::neighbour_view::{self, split_state};
use crate::goalstate::parse;
use crate::wire::neighbor_configuration::{AllowAddressPair, FixedIp};
use crate::wire::{GoalState, GoalStateV2, NeighborConfiguration, NeighborRulesRequest, NeighborState};
use crate::{Changes, Message, Model, Origin, Progress, Run, Seed, Settings};

/// Everything a received message goes through.
fn take(bytes: &[u8]) -> [bool; 3] {
    let bytes = Bytes::copy_from_slice(bytes);
    let messages =
        [Message::decode_v1(bytes.clone()), Message::decode_v2(bytes.clone()), Message::decode_rules(bytes)];
    messages.map(|message| {
        let Ok(message) = message else { return false };
        let mut model = Model::new(Settings::default(), &Seed::default());
        let _ = model.preview(&message, 100);
        let mut run = Run::new(message, Origin::Controller, 1);
        while model.step(&mut run, 10, &mut Changes::default()) == Progress::More {}
        assert_eq!(model.rows(&run).count(), model.row_count(&run));
        true
    })
}

fn neighbour_state() -> impl Strategy<Value = NeighborState> {
    let fixed = (0_i32..4, ".{0,4}", "[0-9.]{0,9}", "[a-z]{0,3}", any::<u32>()).prop_map(
        |(neighbor_type, subnet_id, ip_address, arion_group, tunnel_id)| FixedIp {
            neighbor_type,
            subnet_id,
            ip_address,
            arion_group,
            tunnel_id,
        },
    );
    let pair = ("[0-9.]{0,9}", "[0-9:]{0,9}")
        .prop_map(|(ip_address, mac_address)| AllowAddressPair { ip_address, mac_address });
    let texts = prop::collection::vec(".{0,6}", 7);
    let lists = (
        prop::collection::vec(fixed, 0..4),
        prop::collection::vec(pair, 0..3),
        prop::collection::vec("[a-z]{0,5}", 0..3),
    );
    (any::<i32>(), any::<u32>(), any::<i32>(), texts, lists).prop_map(
        |(operation_type, revision_number, update_type, texts, (fixed_ips, allow_address_pairs, groups))| {
            let [request_id, id, vpc_id, name, mac_address, host_mac_address, host_ip_address] =
                <[String; 7]>::try_from(texts).unwrap();
            NeighborState {
                operation_type,
                configuration: Some(NeighborConfiguration {
                    revision_number,
                    request_id,
                    id,
                    update_type,
                    vpc_id,
                    name,
                    mac_address,
                    host_mac_address,
                    host_ip_address,
                    fixed_ips,
                    allow_address_pairs,
                    security_group_ids: groups,
                }),
            }
        },
    )
}

/// The state as our reader sees it, as prost's type.
fn reread(bytes: &[u8]) -> Option<NeighborState> {
    let (operation, configuration) = split_state(bytes).ok()?;
    let view = neighbour_view::read(operation, configuration.as_deref()).ok()?;
    let config = NeighborConfiguration {
        revision_number: view.revision,
        request_id: view.request_id.into(),
        id: view.id.into(),
        update_type: view.update_type,
        vpc_id: view.vpc_id.into(),
        name: view.name.into(),
        mac_address: view.mac.into(),
        host_mac_address: view.host_mac.into(),
        host_ip_address: view.host_ip.into(),
        fixed_ips: view
            .fixed_ips()
            .map(|fixed| FixedIp {
                neighbor_type: fixed.neighbor_type,
                subnet_id: fixed.subnet_id.into(),
                ip_address: fixed.ip_address.into(),
                arion_group: fixed.arion_group.into(),
                tunnel_id: fixed.tunnel_id,
            })
            .collect(),
        allow_address_pairs: view
            .pairs
            .iter()
            .map(|(ip, mac)| AllowAddressPair { ip_address: (*ip).into(), mac_address: (*mac).into() })
            .collect(),
        security_group_ids: view.groups.iter().map(|group| (*group).into()).collect(),
    };
    Some(NeighborState { operation_type: view.operation, configuration: view.configured.then_some(config) })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        take(&bytes);
    }

    #[test]
    fn damaged_messages_never_panic_and_are_judged_as_prost_judges_them(
        states in prop::collection::vec(neighbour_state(), 0..4),
        cut in any::<prop::sample::Index>(),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
    ) {
        let state = GoalState { neighbor_states: states, format_version: 7, ..GoalState::default() };
        let mut bytes = state.encode_to_vec();
        for (position, value) in &flips {
            if !bytes.is_empty() {
                let position = position.index(bytes.len());
                bytes[position] ^= value;
            }
        }
        bytes.truncate(cut.index(bytes.len() + 1));
        let [v1, v2, rules] = take(&bytes);
        prop_assert_eq!(v1, GoalState::decode(bytes.as_slice()).is_ok());
        prop_assert_eq!(v2, GoalStateV2::decode(bytes.as_slice()).is_ok());
        prop_assert_eq!(rules, NeighborRulesRequest::decode(bytes.as_slice()).is_ok());
    }

    #[test]
    fn a_neighbour_reads_as_prost_reads_it(state in neighbour_state(), second in neighbour_state()) {
        let bytes = state.encode_to_vec();
        prop_assert_eq!(reread(&bytes), Some(state));
        // A state in two parts is one, merged.
        let both = [bytes, second.encode_to_vec()].concat();
        prop_assert_eq!(reread(&both), NeighborState::decode(both.as_slice()).ok());
    }

    #[test]
    fn macs_read_in_every_form(octets in any::<[u8; 6]>(), dash in any::<bool>(), upper in any::<bool>(), short in any::<bool>()) {
        let group = |octet: &u8| match (short, upper) {
            (true, true) => format!("{octet:X}"),
            (true, false) => format!("{octet:x}"),
            (false, true) => format!("{octet:02X}"),
            (false, false) => format!("{octet:02x}"),
        };
        let text = octets.iter().map(group).collect::<Vec<_>>().join(if dash { "-" } else { ":" });
        prop_assert_eq!(parse::mac(&text), Some(octets));
        prop_assert_eq!(parse::mac(&parse::mac_text(octets)), Some(octets));
    }

    #[test]
    fn other_texts_are_no_macs(text in "[0-9a-f:x-]{0,20}") {
        let groups: Vec<&str> = text.split([':', '-']).collect();
        let sound = groups.len() == 6
            && groups.iter().all(|group| (1..=2).contains(&group.len()) && u8::from_str_radix(group, 16).is_ok());
        prop_assert_eq!(parse::mac(&text).is_some(), sound, "{}", text);
    }

    #[test]
    fn addresses_read_as_the_standard_library_reads_them(text in "[0-9.]{1,16}|[0-9a-f:]{2,20}") {
        prop_assert_eq!(parse::ip(&text), text.parse::<std::net::IpAddr>().ok().map(|ip| ip.to_canonical()));
    }

    #[test]
    fn uuids_in_canonical_form_are_kept_as_such(bytes in any::<[u8; 16]>()) {
        let text = crate::store::uuid_text(&bytes);
        prop_assert_eq!(crate::store::uuid_of(text.as_bytes()), Some(bytes));
        prop_assert_eq!(crate::store::uuid_of(text.to_uppercase().as_bytes()).is_none(), text.bytes().any(|b| b.is_ascii_lowercase()));
    }
}

#[test]
fn an_error_names_the_place() {
    let state = GoalState {
        neighbor_states: vec![NeighborState {
            operation_type: 1,
            configuration: Some(NeighborConfiguration { id: "abc".into(), ..Default::default() }),
        }],
        ..GoalState::default()
    };
    let mut bytes = state.encode_to_vec();
    let position = bytes.windows(3).position(|window| window == b"abc").unwrap();
    bytes[position + 1] = 0xff;
    let error = Message::decode_v1(bytes.into()).unwrap_err();
    assert_eq!(error.offset, position + 1);
    assert_eq!(error.path, "neighbor_states.configuration.id");
    assert!(error.to_string().contains("UTF-8"), "{error}");
}

#[test]
fn neighbours_between_other_states_are_all_found() {
    let state = |id: &str| NeighborState {
        operation_type: 4,
        configuration: Some(NeighborConfiguration { id: id.into(), ..Default::default() }),
    };
    let part =
        |id: &str| GoalState { neighbor_states: vec![state(id)], ..GoalState::default() }.encode_to_vec();
    let other = GoalState { format_version: 9, vpc_states: vec![Default::default()], ..GoalState::default() };
    let bytes = [part("a"), other.encode_to_vec(), part("b"), other.encode_to_vec(), part("c")].concat();
    let message = Message::decode_v1(bytes.into()).unwrap();
    assert_eq!((message.format_version(), message.neighbour_count(), message.state_count()), (9, 3, 5));
    let mut model = Model::new(Settings::default(), &Seed::default());
    let mut run = Run::new(message, Origin::Tool, 1);
    while model.step(&mut run, 1, &mut Changes::default()) == Progress::More {}
    let ids: Vec<_> = model.rows(&run).map(|row| row.id.into_owned()).collect();
    assert_eq!(ids, ["", "", "a", "b", "c"]);
}

#[test]
fn what_would_multiply_when_decoded_is_refused_with_its_place() {
    // A port state of 17 MiB of empty addresses, each of which would take dozens of bytes decoded.
    let mut configuration = Vec::new();
    while configuration.len() < 17 << 20 {
        configuration.extend_from_slice(&[0x4a, 0]);
    }
    let field = |number: u8, content: &[u8]| {
        let mut field = vec![number << 3 | 2];
        prost::encoding::encode_varint(content.len() as u64, &mut field);
        field.extend_from_slice(content);
        field
    };
    let state = field(2, &configuration);
    let error = Message::decode_v1(field(4, &state).into()).unwrap_err();
    assert_eq!(error.path, "port_states", "{error}");
    assert!(error.problem.contains("16777216"), "{error}");
    // The same as a neighbour, and in a map.
    let error = Message::decode_v2(field(7, &field(2, &state)).into()).unwrap_err();
    assert_eq!(error.path, "neighbor_states", "{error}");
    // More entries than are noted, each of two bytes.
    for number in [2_u8, 3] {
        let entries = [number << 3 | 2, 0].repeat((1 << 22) + 1);
        let error = Message::decode_v2(entries.into()).unwrap_err();
        assert_eq!(error.path, ["host_resources", "vpc_states"][usize::from(number) - 2], "{error}");
        assert!(error.problem.contains("4194304"), "{error}");
    }
    let broken = field(2, &field(2, &field(1, &[0x12, 1, 0xff])));
    let error = Message::decode_v2(broken.into()).unwrap_err();
    assert_eq!(error.path, "host_resources.value.resources.id", "{error}");
}
