//! DHCP, in each of a client's states.

use dhcproto::v4::{Decodable, DhcpOption, Encodable, Flags, Message, MessageType, Opcode, OptionCode};

use super::*;
use ncm_model::lease::LeaseFacts;

const NOBODY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
const EVERYBODY: Ipv4Addr = Ipv4Addr::BROADCAST;

struct Client {
    message: Message,
    mac: [u8; 6],
    from: Ipv4Addr,
    to: Ipv4Addr,
}

impl Client {
    fn new(kind: MessageType) -> Self {
        let mut message = Message::new_with_id(0x1234_5678, NOBODY, NOBODY, NOBODY, NOBODY, &GUEST);
        message.set_opcode(Opcode::BootRequest);
        message.opts_mut().insert(DhcpOption::MessageType(kind));
        Self { message, mac: GUEST, from: NOBODY, to: EVERYBODY }
    }

    fn option(mut self, option: DhcpOption) -> Self {
        self.message.opts_mut().insert(option);
        self
    }

    fn asks_for(self, codes: &[u8]) -> Self {
        self.option(DhcpOption::ParameterRequestList(codes.iter().map(|code| (*code).into()).collect()))
    }

    fn has(mut self, address: Ipv4Addr) -> Self {
        self.message.set_ciaddr(address);
        self.from = address;
        self
    }

    fn frame(&self) -> Vec<u8> {
        frame4(self.mac, self.from, self.to, &self.message.to_vec().expect("a message"))
    }

    fn got(&self, facts: &LeaseFacts) -> (Got4, Message) {
        let got = open4(&one(Question::Dhcp, &self.frame(), facts));
        let message = Message::from_bytes(&got.payload).expect("a DHCP message");
        (got, message)
    }

    fn refused(&self, facts: &LeaseFacts) -> Ignored {
        refused(Question::Dhcp, &self.frame(), facts)
    }
}

/// Codes of the options in the order in which they are.
fn order(payload: &[u8]) -> Vec<u8> {
    let (mut codes, mut at) = (Vec::new(), 240);
    while payload[at] != 255 {
        codes.push(payload[at]);
        at += 2 + usize::from(payload[at + 1]);
    }
    codes
}

/// The bytes of an option, all of its parts.
fn bytes(payload: &[u8], code: u8) -> Option<Vec<u8>> {
    let (mut data, mut at) = (None, 240);
    while payload[at] != 255 {
        let length = usize::from(payload[at + 1]);
        if payload[at] == code {
            data.get_or_insert_with(Vec::new).extend(&payload[at + 2..at + 2 + length]);
        }
        at += 2 + length;
    }
    data
}

fn kind(message: &Message) -> MessageType {
    message.opts().msg_type().expect("a message type")
}

#[test]
fn an_offer_is_the_bytes_that_the_rfc_says() {
    let client = Client::new(MessageType::Discover).asks_for(&[1, 3]);
    let facts = LeaseFacts { mtu: 0, v4: Some(LeaseV4 { dns: Vec::new(), ..lease() }), ..facts() };
    let frame = one(Question::Dhcp, &client.frame(), &facts);
    let got = open4(&frame);
    let mut expected = vec![2, 1, 6, 0, 0x12, 0x34, 0x56, 0x78, 0, 0, 0, 0, 0, 0, 0, 0, 10, 1, 0, 7];
    expected.extend([0; 8]);
    expected.extend(GUEST);
    expected.extend([0; 10 + 64 + 128]);
    expected.extend([99, 130, 83, 99, 53, 1, 2, 54, 4, 10, 1, 0, 1, 51, 4, 0, 1, 0x51, 0x80]);
    expected.extend([58, 4, 0, 0, 0xa8, 0xc0, 59, 4, 0, 1, 0x27, 0x50]);
    expected.extend([1, 4, 255, 255, 255, 0, 3, 4, 10, 1, 0, 1, 255]);
    expected.resize(300, 0);
    assert_eq!(got.payload, expected);
    assert_eq!((got.from_mac, got.to_mac), (GATEWAY, GUEST));
    assert_eq!((got.from, got.to), (SERVER, ADDRESS));
}

#[test]
fn discover_is_offered_the_binding_with_its_configuration() {
    let (_, offer) =
        Client::new(MessageType::Discover).asks_for(&[1, 3, 6, 12, 15, 26, 28, 51]).got(&facts());
    assert_eq!(kind(&offer), MessageType::Offer);
    assert_eq!(offer.yiaddr(), ADDRESS);
    assert_eq!(offer.ciaddr(), NOBODY);
    let option = |code| offer.opts().get(code).cloned().expect("the option");
    assert_eq!(option(OptionCode::SubnetMask), DhcpOption::SubnetMask(Ipv4Addr::new(255, 255, 255, 0)));
    assert_eq!(option(OptionCode::Router), DhcpOption::Router(vec![SERVER]));
    assert_eq!(option(OptionCode::DomainNameServer), DhcpOption::DomainNameServer(lease().dns));
    assert_eq!(option(OptionCode::Hostname), DhcpOption::Hostname("vm1".to_owned()));
    assert_eq!(option(OptionCode::DomainName), DhcpOption::DomainName("example.org".to_owned()));
    assert_eq!(option(OptionCode::InterfaceMtu), DhcpOption::InterfaceMtu(1450));
    assert_eq!(option(OptionCode::BroadcastAddr), DhcpOption::BroadcastAddr(Ipv4Addr::new(10, 1, 0, 255)));
    assert_eq!(option(OptionCode::ServerIdentifier), DhcpOption::ServerIdentifier(SERVER));
    assert_eq!(option(OptionCode::AddressLeaseTime), DhcpOption::AddressLeaseTime(86_400));
}

#[test]
fn selecting_is_acknowledged_for_the_bindings_address_only() {
    let request = |address| {
        Client::new(MessageType::Request)
            .option(DhcpOption::ServerIdentifier(SERVER))
            .option(DhcpOption::RequestedIpAddress(address))
    };
    let (got, ack) = request(ADDRESS).got(&facts());
    assert_eq!((kind(&ack), ack.yiaddr(), got.to), (MessageType::Ack, ADDRESS, ADDRESS));
    let (got, nak) = request(Ipv4Addr::new(10, 1, 0, 8)).got(&facts());
    assert_eq!(
        (kind(&nak), nak.yiaddr(), got.to, got.to_mac),
        (MessageType::Nak, NOBODY, EVERYBODY, [0xff; 6])
    );
    assert_eq!(bytes(&got.payload, 56).as_deref(), Some(&b"the address is another's"[..]));
    assert_eq!(bytes(&got.payload, 51), None, "a NAK gives no lease");
}

#[test]
fn another_servers_offer_is_left_alone() {
    let client = Client::new(MessageType::Request)
        .option(DhcpOption::ServerIdentifier(Ipv4Addr::new(10, 1, 0, 2)))
        .option(DhcpOption::RequestedIpAddress(ADDRESS));
    assert_eq!(client.refused(&facts()), Ignored::OtherServer);
}

#[test]
fn init_reboot_is_acknowledged_or_told_that_it_is_wrong() {
    let request = |address| Client::new(MessageType::Request).option(DhcpOption::RequestedIpAddress(address));
    assert_eq!(kind(&request(ADDRESS).got(&facts()).1), MessageType::Ack);
    let (got, nak) = request(Ipv4Addr::new(192, 168, 7, 7)).got(&facts());
    assert_eq!(kind(&nak), MessageType::Nak);
    assert_eq!(bytes(&got.payload, 56).as_deref(), Some(&b"the address is not of this network"[..]));
}

#[test]
fn renewing_and_rebinding_are_answered_to_the_clients_address() {
    for to in [SERVER, EVERYBODY] {
        let mut client = Client::new(MessageType::Request).has(ADDRESS);
        client.to = to;
        let (got, ack) = client.got(&facts());
        assert_eq!((kind(&ack), ack.yiaddr(), ack.ciaddr()), (MessageType::Ack, ADDRESS, ADDRESS));
        assert_eq!((got.to, got.to_mac), (ADDRESS, GUEST));
        let mut client = Client::new(MessageType::Request).has(Ipv4Addr::new(10, 1, 0, 9));
        client.to = to;
        assert_eq!(kind(&client.got(&facts()).1), MessageType::Nak);
    }
}

#[test]
fn a_request_for_no_address_is_malformed() {
    assert_eq!(Client::new(MessageType::Request).refused(&facts()), Ignored::Malformed);
}

#[test]
fn inform_gives_the_configuration_and_no_lease() {
    let elsewhere = Ipv4Addr::new(10, 1, 0, 200);
    let (got, ack) = Client::new(MessageType::Inform).has(elsewhere).asks_for(&[6, 51]).got(&facts());
    assert_eq!((kind(&ack), ack.yiaddr(), got.to), (MessageType::Ack, NOBODY, elsewhere));
    for code in [51, 58, 59] {
        assert_eq!(bytes(&got.payload, code), None, "option {code} is of a lease");
    }
    assert_eq!(bytes(&got.payload, 6), Some(vec![9, 9, 9, 9, 8, 8, 4, 4]));
}

#[test]
fn release_and_decline_are_taken_note_of() {
    let release = Client::new(MessageType::Release).has(ADDRESS).option(DhcpOption::ServerIdentifier(SERVER));
    assert_eq!(answer(Question::Dhcp, &release.frame(), false, &facts()), Ok(Answer::Released));
    let decline = Client::new(MessageType::Decline)
        .option(DhcpOption::ServerIdentifier(SERVER))
        .option(DhcpOption::RequestedIpAddress(ADDRESS));
    assert_eq!(answer(Question::Dhcp, &decline.frame(), false, &facts()), Ok(Answer::Declined));
}

#[test]
fn server_messages_and_unknown_ones_are_not_answered() {
    for number in [MessageType::Offer, MessageType::Ack, MessageType::Nak, 10.into(), 13.into(), 200.into()] {
        assert_eq!(Client::new(number).refused(&facts()), Ignored::Malformed, "{number:?}");
    }
}

#[test]
fn rapid_commit_saves_two_messages() {
    let (got, ack) = Client::new(MessageType::Discover).option(DhcpOption::RapidCommit).got(&facts());
    assert_eq!((kind(&ack), ack.yiaddr()), (MessageType::Ack, ADDRESS));
    assert_eq!(bytes(&got.payload, 80), Some(Vec::new()));
}

#[test]
fn the_client_identifier_comes_back_and_relay_information_does_not() {
    let id = vec![0xff, 1, 2, 3, 4, 0, 1, 0, 1];
    let mut client = Client::new(MessageType::Discover).option(DhcpOption::ClientIdentifier(id.clone()));
    client.message.set_giaddr(Ipv4Addr::new(10, 1, 0, 99));
    let mut payload = client.message.to_vec().expect("a message");
    payload.pop();
    payload.extend([82, 4, 1, 2, 9, 9, 255]);
    let frame = one(Question::Dhcp, &frame4(GUEST, NOBODY, EVERYBODY, &payload), &facts());
    let got = open4(&frame);
    assert_eq!(bytes(&got.payload, 61), Some(id));
    assert_eq!(bytes(&got.payload, 82), None);
    assert_eq!(got.to, ADDRESS, "a relay's address is passed over");
    let nak = Client::new(MessageType::Request)
        .option(DhcpOption::ClientIdentifier(vec![1, 7]))
        .option(DhcpOption::RequestedIpAddress(Ipv4Addr::new(1, 2, 3, 4)));
    assert_eq!(bytes(&nak.got(&facts()).0.payload, 61), Some(vec![1, 7]), "in a NAK too");
}

#[test]
fn options_come_in_the_order_of_the_request_and_then_what_is_needed() {
    let (got, _) = Client::new(MessageType::Discover).asks_for(&[15, 6, 3, 200, 1]).got(&facts());
    assert_eq!(order(&got.payload), [53, 54, 51, 58, 59, 15, 6, 3, 1, 26]);
}

#[test]
fn the_broadcast_flag_is_honoured_and_returned() {
    let mut client = Client::new(MessageType::Discover);
    client.message.set_flags(Flags::default().set_broadcast());
    let (got, offer) = client.got(&facts());
    assert_eq!((got.to, got.to_mac), (EVERYBODY, [0xff; 6]));
    assert!(offer.flags().broadcast());
}

#[test]
fn nobody_but_the_ports_guest_is_answered() {
    let mut client = Client::new(MessageType::Discover);
    client.mac = OTHER;
    assert_eq!(client.refused(&facts()), Ignored::OtherClient);
    let mut client = Client::new(MessageType::Discover);
    client.message.set_chaddr(&OTHER);
    assert_eq!(client.refused(&facts()), Ignored::OtherClient);
    let unbound = LeaseFacts { v4: None, ..facts() };
    assert_eq!(Client::new(MessageType::Discover).refused(&unbound), Ignored::NoBinding);
}

#[test]
fn a_subnet_without_gateway_is_served_all_the_same() {
    let facts = LeaseFacts { v4: Some(LeaseV4 { gateway: None, ..lease() }), ..facts() };
    let (got, offer) = Client::new(MessageType::Discover).asks_for(&[3]).got(&facts);
    assert_eq!(offer.yiaddr(), ADDRESS);
    assert_eq!(bytes(&got.payload, 3), None);
    assert_eq!(bytes(&got.payload, 54), Some(got.from.octets().to_vec()));
}

#[test]
fn extra_options_replace_add_and_leave_out() {
    let extras = extras(&[
        ("dns-server", "1.1.1.1"),
        ("mtu", "1400"),
        ("router", ""),
        ("ntp-server", "10.1.0.5,10.1.0.6"),
        ("server-ip-address", "10.1.0.40"),
        ("bootfile-name", "pxelinux.0"),
        ("tftp-server", "10.1.0.40"),
        ("lease-time", "1h"),
        ("224", "0xdeadbeef"),
    ]);
    let facts = LeaseFacts { v4: Some(LeaseV4 { extras, ..lease() }), ..facts() };
    let (got, offer) = Client::new(MessageType::Discover).asks_for(&[1, 3, 6, 67, 66, 42]).got(&facts);
    let option = |code| bytes(&got.payload, code);
    assert_eq!(option(6), Some(vec![1, 1, 1, 1]));
    assert_eq!(option(26), Some(1400_u16.to_be_bytes().to_vec()));
    assert_eq!(option(3), None, "an option without value is left out");
    assert_eq!(option(42), Some(vec![10, 1, 0, 5, 10, 1, 0, 6]));
    assert_eq!(option(67).as_deref(), Some(&b"pxelinux.0"[..]));
    assert_eq!(option(66).as_deref(), Some(&b"10.1.0.40"[..]));
    assert_eq!(option(224), Some(vec![0xde, 0xad, 0xbe, 0xef]), "what the subnet adds comes unasked");
    assert_eq!(option(51), Some(3600_u32.to_be_bytes().to_vec()));
    assert_eq!(option(58), Some(1800_u32.to_be_bytes().to_vec()));
    assert_eq!(option(59), Some(3150_u32.to_be_bytes().to_vec()));
    assert_eq!(offer.siaddr(), Ipv4Addr::new(10, 1, 0, 40));
    assert_eq!(&got.payload[108..119], b"pxelinux.0\0");
}

#[test]
fn a_lease_without_end_has_no_renewal() {
    let extras = extras(&[("lease-time", "infinite")]);
    let facts = LeaseFacts { v4: Some(LeaseV4 { extras, ..lease() }), ..facts() };
    let (got, _) = Client::new(MessageType::Discover).got(&facts);
    assert_eq!(bytes(&got.payload, 51), Some(vec![0xff; 4]));
    assert_eq!(bytes(&got.payload, 58), None);
}

#[test]
fn the_routers_routes_come_as_classless_ones_with_the_default() {
    let route = |net: &str, hop: [u8; 4]| (net.parse().expect("a prefix"), Ipv4Addr::from(hop));
    let routes = vec![
        route("192.168.128.0/17", [10, 1, 0, 50]),
        route("172.16.0.0/12", [10, 2, 0, 50]),
        route("10.9.0.0/16", ADDRESS.octets()),
    ];
    let facts = LeaseFacts { v4: Some(LeaseV4 { routes, ..lease() }), ..facts() };
    let expected = vec![
        0, 10, 1, 0, 1, // the default, by the gateway
        17, 192, 168, 128, 10, 1, 0, 50, // the next hop is in the guest's subnet
        12, 172, 16, 10, 1, 0, 1, // it is not: by the gateway
    ];
    let (got, _) = Client::new(MessageType::Discover).asks_for(&[121, 249, 3]).got(&facts);
    assert_eq!(bytes(&got.payload, 121), Some(expected.clone()));
    assert_eq!(bytes(&got.payload, 249), Some(expected));
    let (got, _) = Client::new(MessageType::Discover).asks_for(&[3]).got(&facts);
    assert_eq!(bytes(&got.payload, 121), None, "who does not ask uses the router");
    let (got, _) = Client::new(MessageType::Discover).asks_for(&[121]).got(&super::facts());
    assert_eq!(bytes(&got.payload, 121), None, "without routes there is nothing to say");
}

#[test]
fn many_name_servers_go_as_far_as_there_is_room() {
    let dns: Vec<Ipv4Addr> = (0..200).map(|last| Ipv4Addr::new(10, 9, 9, last)).collect();
    let facts = LeaseFacts { v4: Some(LeaseV4 { dns: dns.clone(), ..lease() }), ..facts() };
    let (got, offer) = Client::new(MessageType::Discover).asks_for(&[6, 1, 3]).got(&facts);
    assert!(got.payload.len() + 28 <= 576, "a client takes 576 bytes unless it says more");
    let servers = bytes(&got.payload, 6).expect("name servers");
    assert_eq!(servers.len() % 4, 0);
    assert!(servers.len() > 40 * 4, "only {} servers had room", servers.len() / 4);
    assert!(
        offer.fname().is_some() || bytes(&got.payload, 3).is_some(),
        "what has no room goes to other fields"
    );
    let wide =
        Client::new(MessageType::Discover).asks_for(&[6, 1, 3]).option(DhcpOption::MaxMessageSize(1500));
    let (got, _) = wide.got(&facts);
    let all: Vec<u8> = dns.iter().flat_map(Ipv4Addr::octets).collect();
    assert_eq!(bytes(&got.payload, 6), Some(all), "in several options (RFC 3396)");
}

#[test]
fn full_options_overflow_into_file_and_sname() {
    let long = "x".repeat(120);
    let extras =
        extras(&[("root-path", &long), ("wpad", &long), ("14", &long), ("path-prefix", &"y".repeat(50))]);
    let facts = LeaseFacts { v4: Some(LeaseV4 { extras, ..lease() }), ..facts() };
    let (got, _) = Client::new(MessageType::Discover).got(&facts);
    assert_eq!(bytes(&got.payload, 52), Some(vec![3]), "both fields hold options");
    assert_eq!(got.payload[108..111], [14, 120, b'x']);
    assert_eq!(got.payload[108 + 122], 255);
    assert_eq!(got.payload[44..47], [210, 50, b'y']);
}

#[test]
fn a_checksum_that_is_not_computed_yet_is_no_damage_and_a_wrong_one_is() {
    let mut frame = Client::new(MessageType::Discover).frame();
    frame[14 + 20 + 7] ^= 1;
    assert_eq!(refused(Question::Dhcp, &frame, &facts()), Ignored::Malformed);
    assert!(answer(Question::Dhcp, &frame, true, &facts()).is_ok());
    frame[14 + 20 + 6..14 + 20 + 8].fill(0);
    assert!(answer(Question::Dhcp, &frame, false, &facts()).is_ok(), "IPv4 may go without");
}
