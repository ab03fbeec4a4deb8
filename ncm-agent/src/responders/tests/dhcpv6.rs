//! DHCPv6, message by message.

use dhcproto::v6::{
    Decodable, DhcpOption, DhcpOptions, Encodable, IAAddr, IANA, IAPD, Message, MessageType, ORO, OptionCode,
    Status,
};

use super::*;
use ncm_model::lease::LeaseFacts;

const ID: [u8; 10] = [0, 3, 0, 1, 2, 0x11, 0x22, 0x33, 0x44, 0x55];
const SERVER_ID: [u8; 10] = [0, 3, 0, 1, 0xfa, 0x16, 0x3e, 0, 0, 1];

fn addresses(held: &[&str]) -> DhcpOptions {
    held.iter()
        .map(|addr| {
            DhcpOption::IAAddr(IAAddr {
                addr: v6(addr),
                preferred_life: 0,
                valid_life: 0,
                opts: DhcpOptions::new(),
            })
        })
        .collect()
}

fn iana(id: u32, held: &[&str]) -> DhcpOption {
    DhcpOption::IANA(IANA { id, t1: 0, t2: 0, opts: addresses(held) })
}

fn message(kind: MessageType, options: Vec<DhcpOption>) -> Vec<u8> {
    let mut message = Message::new_with_id(kind, [7, 8, 9]);
    for option in options.into_iter().rev() {
        message.opts_mut().insert(option);
    }
    message.to_vec().expect("a message")
}

fn framed(payload: &[u8]) -> Vec<u8> {
    let length = (8 + payload.len()) as u16;
    let mut udp = vec![2, 0x22, 2, 0x23];
    udp.extend(length.to_be_bytes());
    udp.extend([0, 0]);
    udp.extend(payload);
    frame6(GUEST, v6("fe80::7"), v6("ff02::1:2"), (17, 1), 6, &udp)
}

/// The answer to a message with the client's identifier.
fn got(kind: MessageType, mut options: Vec<DhcpOption>, facts: &LeaseFacts) -> Message {
    options.push(DhcpOption::ClientId(ID.to_vec()));
    let frame = one(Question::Dhcpv6, &framed(&message(kind, options)), facts);
    let got = open6(&frame, 17);
    assert_eq!((got.from_mac, got.to_mac), (GATEWAY, GUEST));
    assert_eq!((got.from, got.to), (v6("fe80::f816:3eff:fe00:1"), v6("fe80::7")));
    assert_eq!(got.payload[..4], [2, 0x23, 2, 0x22]);
    let answer = Message::from_bytes(&got.payload[8..]).expect("a DHCPv6 message");
    assert_eq!(answer.xid(), [7, 8, 9]);
    assert_eq!(answer.opts().get(OptionCode::ClientId), Some(&DhcpOption::ClientId(ID.to_vec())));
    assert_eq!(answer.opts().get(OptionCode::ServerId), Some(&DhcpOption::ServerId(SERVER_ID.to_vec())));
    answer
}

fn refusal(kind: MessageType, options: Vec<DhcpOption>, facts: &LeaseFacts) -> Ignored {
    refused(Question::Dhcpv6, &framed(&message(kind, options)), facts)
}

fn client() -> DhcpOption {
    DhcpOption::ClientId(ID.to_vec())
}

fn server() -> DhcpOption {
    DhcpOption::ServerId(SERVER_ID.to_vec())
}

/// (address, preferred, valid) of each address of the association.
fn leased(answer: &Message, id: u32) -> Vec<(Ipv6Addr, u32, u32)> {
    let all = answer.opts().get_all(OptionCode::IANA).expect("an association");
    let inner = all.iter().find_map(|option| match option {
        DhcpOption::IANA(found) if found.id == id => Some(&found.opts),
        _ => None,
    });
    inner
        .expect("the association")
        .iter()
        .filter_map(|option| match option {
            DhcpOption::IAAddr(found) => Some((found.addr, found.preferred_life, found.valid_life)),
            _ => None,
        })
        .collect()
}

fn status(options: &DhcpOptions) -> Option<Status> {
    options.iter().find_map(|option| match option {
        DhcpOption::StatusCode(code) => Some(code.status),
        _ => None,
    })
}

#[test]
fn solicit_is_advertised_the_binding_and_request_gets_it() {
    let asked =
        DhcpOption::ORO(ORO { opts: vec![OptionCode::DomainNameServers, OptionCode::DomainSearchList] });
    let answer = got(MessageType::Solicit, vec![iana(5, &[]), asked.clone()], &facts());
    assert_eq!(answer.msg_type(), MessageType::Advertise);
    assert_eq!(answer.opts().get(OptionCode::Preference), Some(&DhcpOption::Preference(255)));
    assert_eq!(leased(&answer, 5), [(v6("fd00:1::7"), 86_400, 86_400)]);
    assert_eq!(
        answer.opts().get(OptionCode::DomainNameServers),
        Some(&DhcpOption::DomainNameServers(link().dns))
    );
    let Some(DhcpOption::DomainSearchList(names)) = answer.opts().get(OptionCode::DomainSearchList) else {
        panic!("domains to search are missing");
    };
    assert_eq!(names.iter().map(ToString::to_string).collect::<Vec<_>>(), ["example.org."]);
    let answer = got(MessageType::Request, vec![server(), iana(5, &["fd00:1::7"])], &facts());
    assert_eq!(answer.msg_type(), MessageType::Reply);
    assert_eq!(leased(&answer, 5), [(v6("fd00:1::7"), 86_400, 86_400)]);
    let Some(DhcpOption::IANA(found)) = answer.opts().get(OptionCode::IANA) else { panic!("no association") };
    assert_eq!((found.t1, found.t2), (43_200, 69_120));
}

#[test]
fn rapid_commit_is_replied_at_once() {
    let answer = got(MessageType::Solicit, vec![iana(5, &[]), DhcpOption::RapidCommit], &facts());
    assert_eq!(answer.msg_type(), MessageType::Reply);
    assert!(answer.opts().get(OptionCode::RapidCommit).is_some());
    assert_eq!(leased(&answer, 5).len(), 1);
}

#[test]
fn renew_and_rebind_take_back_what_is_not_the_guests() {
    let held = || iana(5, &["fd00:1::7", "fd00:1::8"]);
    let expected = [(v6("fd00:1::7"), 86_400, 86_400), (v6("fd00:1::8"), 0, 0)];
    let renewed = got(MessageType::Renew, vec![server(), held()], &facts());
    assert_eq!(leased(&renewed, 5), expected);
    let rebound = got(MessageType::Rebind, vec![held()], &facts());
    assert_eq!(leased(&rebound, 5), expected);
}

#[test]
fn confirm_says_whether_the_addresses_are_of_this_link() {
    let confirmed = |held: &[&str]| status(got(MessageType::Confirm, vec![iana(5, held)], &facts()).opts());
    assert_eq!(confirmed(&["fd00:1::7"]), Some(Status::Success));
    assert_eq!(confirmed(&["fd00:1::7", "fd00:2::7"]), Some(Status::NotOnLink));
    let nothing = vec![client(), iana(5, &[])];
    assert_eq!(refusal(MessageType::Confirm, nothing, &facts()), Ignored::Malformed);
}

#[test]
fn release_and_decline_are_acknowledged() {
    for kind in [MessageType::Release, MessageType::Decline] {
        let answer = got(kind, vec![server(), iana(5, &["fd00:1::7"])], &facts());
        assert_eq!((answer.msg_type(), status(answer.opts())), (MessageType::Reply, Some(Status::Success)));
    }
}

#[test]
fn an_information_request_needs_no_binding() {
    let unbound = LeaseFacts { v6: vec![LinkV6 { lease: None, ..link() }], ..facts() };
    let answer = got(MessageType::InformationRequest, Vec::new(), &unbound);
    assert_eq!(answer.msg_type(), MessageType::Reply);
    assert!(answer.opts().get(OptionCode::DomainNameServers).is_some());
    assert!(answer.opts().get(OptionCode::IANA).is_none());
    assert_eq!(refusal(MessageType::Solicit, vec![client(), iana(5, &[])], &unbound), Ignored::NoBinding);
    let nowhere = LeaseFacts { v6: Vec::new(), ..facts() };
    assert_eq!(refusal(MessageType::InformationRequest, Vec::new(), &nowhere), Ignored::NoBinding);
}

#[test]
fn prefixes_and_further_associations_get_a_status() {
    let prefix = DhcpOption::IAPD(IAPD { id: 9, t1: 0, t2: 0, opts: DhcpOptions::new() });
    let answer = got(MessageType::Solicit, vec![iana(5, &[]), iana(6, &[]), prefix], &facts());
    assert_eq!(leased(&answer, 5).len(), 1);
    assert_eq!(leased(&answer, 6).len(), 0);
    let of = |code| {
        answer.opts().get_all(code).expect("associations").iter().find_map(|option| match option {
            DhcpOption::IANA(found) if found.id == 6 => status(&found.opts),
            DhcpOption::IAPD(found) => status(&found.opts),
            _ => None,
        })
    };
    assert_eq!(of(OptionCode::IANA), Some(Status::NoAddrsAvail));
    assert_eq!(of(OptionCode::IAPD), Some(Status::NoPrefixAvail));
}

#[test]
fn identifiers_must_be_there_and_right() {
    let other = || DhcpOption::ServerId(vec![0, 3, 0, 1, 9, 9, 9, 9, 9, 9]);
    let facts = facts();
    let request = |options| refusal(MessageType::Request, options, &facts);
    assert_eq!(request(vec![client(), iana(5, &[])]), Ignored::Malformed);
    assert_eq!(request(vec![server(), iana(5, &[])]), Ignored::Malformed);
    assert_eq!(request(vec![client(), other(), iana(5, &[])]), Ignored::OtherServer);
    assert_eq!(
        refusal(MessageType::Solicit, vec![client(), server(), iana(5, &[])], &facts),
        Ignored::Malformed
    );
    assert_eq!(refusal(MessageType::Solicit, vec![iana(5, &[])], &facts), Ignored::Malformed);
    assert_eq!(refusal(MessageType::InformationRequest, vec![iana(5, &[])], &facts), Ignored::Malformed);
    for kind in [MessageType::Advertise, MessageType::Reply, MessageType::Reconfigure, MessageType::RelayForw]
    {
        assert_eq!(refusal(kind, vec![client()], &facts), Ignored::Malformed, "{kind:?}");
    }
}

#[test]
fn extra_options_are_sent_and_replace() {
    let extras = extras6(&[
        ("dns-server", "[fd00::99]"),
        ("domain-search", "a.example,b.example"),
        ("bootfile-url", "tftp://[fd00::1]/boot"),
        ("ntp-server", "fd00::123"),
        ("lease-time", "100"),
    ]);
    let facts = LeaseFacts { v6: vec![LinkV6 { extras, ..link() }], ..facts() };
    let answer = got(MessageType::Solicit, vec![iana(5, &[])], &facts);
    assert_eq!(leased(&answer, 5), [(v6("fd00:1::7"), 100, 100)]);
    assert_eq!(
        answer.opts().get(OptionCode::DomainNameServers),
        Some(&DhcpOption::DomainNameServers(vec![v6("fd00::99")]))
    );
    let solicit = framed(&message(MessageType::Solicit, vec![client(), iana(5, &[])]));
    let bytes = one(Question::Dhcpv6, &solicit, &facts);
    let holds = |part: &[u8]| bytes.windows(part.len()).any(|window| window == part);
    assert!(holds(&[b"\x00\x3b\x00\x15", &b"tftp://[fd00::1]/boot"[..]].concat()));
    assert!(holds(&[0, 56, 0, 20, 0, 1, 0, 16, 0xfd, 0]));
    assert!(holds(b"\x01a\x07example\x00\x01b\x07example\x00"));
}

#[test]
fn only_the_ports_guest_is_answered() {
    let mut frame = framed(&message(MessageType::Solicit, vec![client(), iana(5, &[])]));
    frame[6..12].copy_from_slice(&OTHER);
    assert_eq!(refused(Question::Dhcpv6, &frame, &facts()), Ignored::OtherClient);
}
