//! DHCP (RFC 2131): the server's side of every message that a client sends.

use std::net::Ipv4Addr;

use dhcproto::v4::borrowed::{DhcpOptionIterator, Message as Question};
use dhcproto::v4::{Encodable, Flags, HType, MIN_PACKET_SIZE, Message, MessageType, Opcode};
use ncm_common::{SERVER_IP, SERVER_MAC};
use ncm_model::lease::{LeaseFacts, LeaseV4};

use super::dhcp_options::{
    BOOT_FILE, CLIENT, END, FILE, Filled, LEASE_TIME, MAX_SIZE, MESSAGE, MESSAGE_TYPE, OVERLOAD, Options,
    PAD, PARAMETERS, RAPID_COMMIT, REBINDING, RENEWAL, REQUESTED, SERVER, times,
};
use super::frame::{self, Received, Side};
use super::{Answer, Ignored};

const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;
/// Bytes of a message before its options: the fixed fields and the cookie.
const FIXED: usize = 240;
const COOKIE: [u8; 4] = [99, 130, 83, 99];
/// Bytes of the IP packet that every client takes (RFC 2131, section 2), and of its IP and UDP headers.
const SMALLEST: usize = 576;
const HEADERS: usize = 28;

/// The options of a client's message that count. Relay-agent information (82) is passed over, as the client is on the link
/// itself, and so is a relay's address.
#[derive(Default)]
struct Asked {
    kind: u8,
    requested: Option<Ipv4Addr>,
    server: Option<Ipv4Addr>,
    client: Option<Vec<u8>>,
    parameters: Vec<u8>,
    max_size: usize,
    rapid: bool,
}

impl Asked {
    /// Reads the options, also those in `file` and `sname` where the client says that there are some.
    fn read(bytes: &[u8]) -> Option<Self> {
        let mut asked = Self { max_size: SMALLEST, ..Self::default() };
        let overload = asked.take(bytes.get(FIXED..)?)?;
        if overload & 1 != 0 {
            asked.take(bytes.get(108..236)?)?;
        }
        if overload & 2 != 0 {
            asked.take(bytes.get(44..108)?)?;
        }
        Some(asked)
    }

    fn take(&mut self, options: &[u8]) -> Option<u8> {
        // The iterator takes a damaged option for the end.
        ends(options).then_some(())?;
        let mut overload = 0;
        for option in DhcpOptionIterator::new(options) {
            let data = option.data();
            let address = || <[u8; 4]>::try_from(data).ok().map(Ipv4Addr::from);
            match u8::from(option.code()) {
                MESSAGE_TYPE => self.kind = byte(data)?,
                REQUESTED => self.requested = Some(address()?),
                SERVER => self.server = Some(address()?),
                CLIENT if !data.is_empty() => self.client = Some(data.to_vec()),
                PARAMETERS => self.parameters = data.to_vec(),
                MAX_SIZE => {
                    self.max_size = usize::from(u16::from_be_bytes(data.try_into().ok()?)).max(SMALLEST)
                }
                RAPID_COMMIT => self.rapid = true,
                OVERLOAD => overload = byte(data)?,
                _ => {}
            }
        }
        Some(overload)
    }
}

/// The one byte that an option has.
const fn byte(data: &[u8]) -> Option<u8> {
    match data {
        [byte] => Some(*byte),
        _ => None,
    }
}

/// Whether all options are whole, up to the one that says that it is the last (RFC 2131, section 4.1).
fn ends(mut options: &[u8]) -> bool {
    loop {
        options = match options {
            [PAD, rest @ ..] => rest,
            [END, ..] => return true,
            [_, length, rest @ ..] if rest.len() >= usize::from(*length) => &rest[usize::from(*length)..],
            _ => return false,
        };
    }
}

/// What is answered.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Offer,
    Ack {
        rapid: bool,
    },
    /// To INFORM: the configuration without a lease.
    Inform,
    Nak(&'static str),
}

pub(super) fn answer(frame: &[u8], partial: bool, facts: &LeaseFacts) -> Result<Answer, Ignored> {
    let received = frame::udp4(frame, CLIENT_PORT, SERVER_PORT, partial).ok_or(Ignored::Malformed)?;
    let bytes = received.payload;
    let message = Question::new(bytes).map_err(|_| Ignored::Malformed)?;
    let ethernet = message.htype() == HType::Eth && message.hlen() == 6;
    if bytes[236..FIXED] != COOKIE || message.opcode() != Opcode::BootRequest || !ethernet {
        return Err(Ignored::Malformed);
    }
    if received.from.mac != facts.mac || message.chaddr() != facts.mac {
        return Err(Ignored::OtherClient);
    }
    let lease = facts.v4.as_ref().ok_or(Ignored::NoBinding)?;
    let asked = Asked::read(bytes).ok_or(Ignored::Malformed)?;
    let server = server(lease);
    if asked.server.is_some_and(|other| other != server.ip) {
        return Err(Ignored::OtherServer);
    }
    let kind = match MessageType::from(asked.kind) {
        MessageType::Discover if asked.rapid => Kind::Ack { rapid: true },
        MessageType::Discover => Kind::Offer,
        MessageType::Request => request(&message, &asked, lease)?,
        MessageType::Inform => Kind::Inform,
        MessageType::Release => return Ok(Answer::Released),
        MessageType::Decline => return Ok(Answer::Declined),
        _ => return Err(Ignored::Malformed),
    };
    let payload = write(kind, &message, &asked, facts, lease, server.ip).ok_or(Ignored::Malformed)?;
    let to = recipient(kind, &message, &received, lease);
    let ports = (SERVER_PORT, CLIENT_PORT);
    frame::build_udp4(server, to, ports, &payload).map(Answer::Frame).ok_or(Ignored::Malformed)
}

/// The server is the subnet's gateway.
fn server(lease: &LeaseV4) -> Side<Ipv4Addr> {
    let otherwise = Side { mac: SERVER_MAC, ip: SERVER_IP.into() };
    lease.gateway.map_or(otherwise, |gateway| Side { mac: gateway.mac, ip: gateway.ip })
}

/// What a REQUEST asks for, in each of the client's states (RFC 2131, section 4.3.2): SELECTING and INIT-REBOOT name the
/// address in an option, RENEWING and REBINDING have it.
fn request(message: &Question<'_>, asked: &Asked, lease: &LeaseV4) -> Result<Kind, Ignored> {
    let wanted = match (asked.requested, message.ciaddr()) {
        (Some(requested), _) => requested,
        (None, held) if !held.is_unspecified() => held,
        (None, _) => return Err(Ignored::Malformed),
    };
    if wanted == lease.address {
        return Ok(Kind::Ack { rapid: false });
    }
    Ok(Kind::Nak(if lease.net.contains(&wanted) {
        "the address is another's"
    } else {
        "the address is not of this network"
    }))
}

/// Whom the answer goes to (RFC 2131, section 4.1).
fn recipient(
    kind: Kind,
    message: &Question<'_>,
    received: &Received<'_, Ipv4Addr>,
    lease: &LeaseV4,
) -> Side<Ipv4Addr> {
    let everybody = Side { mac: frame::BROADCAST, ip: Ipv4Addr::BROADCAST };
    let guest = |ip| Side { mac: received.from.mac, ip };
    match kind {
        Kind::Nak(_) => everybody,
        _ if !message.ciaddr().is_unspecified() => guest(message.ciaddr()),
        Kind::Inform if !received.from.ip.is_unspecified() => guest(received.from.ip),
        Kind::Inform => everybody,
        _ if message.flags().broadcast() => everybody,
        _ => guest(lease.address),
    }
}

/// Writes the answer (RFC 2131, table 3).
fn write(
    kind: Kind,
    question: &Question<'_>,
    asked: &Asked,
    facts: &LeaseFacts,
    lease: &LeaseV4,
    server: Ipv4Addr,
) -> Option<Vec<u8>> {
    let none = Ipv4Addr::UNSPECIFIED;
    let leased = matches!(kind, Kind::Offer | Kind::Ack { .. });
    let configured = leased || kind == Kind::Inform;
    let ciaddr = if matches!(kind, Kind::Ack { .. } | Kind::Inform) { question.ciaddr() } else { none };
    let yiaddr = if leased { lease.address } else { none };
    let siaddr = lease.extras.next_server.filter(|_| configured).unwrap_or(none);
    let mut answer =
        Message::new_with_id(question.xid(), ciaddr, yiaddr, siaddr, question.giaddr(), question.chaddr());
    answer.set_opcode(Opcode::BootReply).set_flags(Flags::from(u16::from(question.flags()) & 0x8000));
    // Many boot loaders look for the file's name in its old place only.
    let file = lease.extras.v4(BOOT_FILE).filter(|name| configured && !name.is_empty() && name.len() < FILE);
    let mtu = usize::from(facts.mtu).max(SMALLEST);
    let size = if facts.mtu == 0 { asked.max_size } else { asked.max_size.min(mtu) };
    // A file server's older clients read 64 KiB at most, and none needs more than its interface takes.
    let room = size.min(1_500) - HEADERS - FIXED;
    let mut options = Options::new(room, file.is_some());
    let message_type = match kind {
        Kind::Offer => MessageType::Offer,
        Kind::Ack { .. } | Kind::Inform => MessageType::Ack,
        Kind::Nak(_) => MessageType::Nak,
    };
    options.add(MESSAGE_TYPE, &[message_type.into()]);
    options.add(SERVER, &server.octets());
    if leased {
        let (time, later) = times(lease);
        options.add(LEASE_TIME, &time.to_be_bytes());
        if let Some((renewal, rebinding)) = later {
            options.add(RENEWAL, &renewal.to_be_bytes());
            options.add(REBINDING, &rebinding.to_be_bytes());
        }
    }
    if kind == (Kind::Ack { rapid: true }) {
        options.add(RAPID_COMMIT, &[]);
    }
    if let Kind::Nak(cause) = kind {
        options.add(MESSAGE, cause.as_bytes());
    }
    // RFC 6842: what the client calls itself comes back.
    if let Some(client) = &asked.client {
        options.add(CLIENT, client);
    }
    if configured {
        options.add_configuration(&asked.parameters, facts, lease);
    }
    let Filled { options, file: more, sname } = options.finish();
    if let Some(file) = file.or(more.as_deref()) {
        answer.set_fname(file);
    }
    if let Some(sname) = &sname {
        answer.set_sname(sname);
    }
    let mut bytes = answer.to_vec().ok()?;
    bytes.extend(options);
    // BOOTP's length, which some relays and clients insist on (RFC 1542, section 2.1).
    bytes.resize(bytes.len().max(MIN_PACKET_SIZE), 0);
    Some(bytes)
}
