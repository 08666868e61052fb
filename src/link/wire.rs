//! The messages peers exchange, and their frames.
//!
//! A frame is a 32-bit big-endian length, a 16-bit kind and a postcard body. Kinds are only ever added: a reader skips
//! those it does not know, so that two versions of the program still pool. What comes in is bounded before it is
//! allocated, and text from a peer is cleaned before anybody sees it.

use std::net::{IpAddr, SocketAddr};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::types::{LineId, PeerId, Rate, UplinkKind};

/// No frame's body is longer: the largest real one, a `Hello` with every uplink, has a few KiB.
pub const MAX_FRAME: usize = 64 * 1024;
/// More uplinks than any device has; what a peer names beyond is ignored.
pub const MAX_UPLINKS: usize = 16;
/// Routers that are peers one behind the other: a household has two at most; what a peer names beyond is cut off.
pub const MAX_BEHIND: usize = 8;
/// Statements in one message, each of less than 200 bytes: a household has fewer, and the rest follow in the next one.
pub const MAX_STATEMENTS: usize = 256;
/// A step of a ceremony: a point of a curve, a hash, a nonce.
pub const MAX_CEREMONY: usize = 2 * 1024;
/// As DNS has it.
pub const MAX_NAME_BYTES: usize = 63;

/// The first message each way on a control stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// What the owner calls the device: for people, never compared.
    pub name: String,
    /// Random for each process: a peer that comes back with another one was restarted.
    pub session: u64,
    /// What it lends.
    pub uplinks: Vec<Offer>,
}

/// One uplink that a peer lends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// The lender's number for it; what [`Open::uplink`] names.
    pub id: u32,
    /// Interface name, for people.
    pub name: String,
    /// The line it ends in.
    pub line: LineId,
    /// What it is.
    pub kind: UplinkKind,
    /// Whether its bytes cost money.
    pub metered: bool,
    /// What it was last measured to bring; `None` where nothing was measured yet.
    pub down: Option<Rate>,
}

/// Where the traffic ends that a device passes on as a router: what it means for those behind it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Home {
    /// The line of its preferred way out, lent or not. `None`: it has none.
    pub line: Option<LineId>,
    /// Its own gateway, where that is a peer, then that one's, and so on; at most [`MAX_BEHIND`].
    pub behind: Vec<PeerId>,
}

/// A message on a control stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Who this is and what it lends.
    Hello(Hello),
    /// What it lends from now on.
    Offers(Vec<Offer>),
    /// Where its own traffic ends from now on; not said by versions before 0.2.
    Home(Home),
    /// Who is vouched for and who was put out, signed by whoever said so; not said by versions before 0.2.
    Statements(Vec<Vec<u8>>),
    /// A step of vouching for each other, of which the link knows nothing; not said by versions before 0.2.
    Ceremony(Vec<u8>),
    /// It is leaving: nothing new, please.
    Bye,
    /// Of a later version: skipped.
    Unknown(u16),
}

/// The request that opens a tunnel's stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Open {
    /// Host name to dial; resolved by the lender.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Which of the lender's uplinks.
    pub uplink: u32,
    /// Dial exactly this address of the host, if the lender's filter lets it.
    pub pin: Option<IpAddr>,
}

/// Why a lender refuses a tunnel. Only ever added to, at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// The name leads to an address that is not public.
    #[error("the lender only dials public addresses")]
    Address,
    /// A port that is not lent.
    #[error("the lender does not lend this port")]
    Port,
    /// No such uplink, or it is not lent.
    #[error("the lender does not lend this uplink")]
    Uplink,
    /// The name could not be resolved there.
    #[error("the lender cannot resolve this name")]
    Resolve,
    /// The origin did not answer there.
    #[error("the lender cannot reach the origin")]
    Connect,
    /// A limit of the lender is reached.
    #[error("the lender is busy")]
    Busy,
    /// Not a host name.
    #[error("the lender dials host names only")]
    Name,
}

/// The answer to [`Open`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// From here on the stream is the connection to this address.
    Opened(SocketAddr),
    /// There is none.
    Refused(Refusal),
}

/// How much of a tunnel's bytes its lender has handed to the origin: what a datagram holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The number of the tunnel's stream.
    pub stream: u64,
    /// All of them since its beginning.
    pub sent: u64,
}

/// Why a frame could not be read.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The stream ended or broke.
    #[error("the stream broke: {0}")]
    Io(#[from] std::io::Error),
    /// A longer frame than any of ours.
    #[error("a frame of {0} bytes, {MAX_FRAME} are allowed")]
    TooLong(usize),
    /// A body that is not what its kind says.
    #[error("a malformed message")]
    Malformed,
}

const HELLO: u16 = 1;
const OFFERS: u16 = 2;
const BYE: u16 = 3;
const HOME: u16 = 4;
const STATEMENTS: u16 = 5;
const CEREMONY: u16 = 6;
const OPEN: u16 = 16;
const ANSWER: u16 = 17;
const REPORT: u16 = 32;
/// The kinds that are the household's (`share`): of these, streams are opened with [`WATCH`], [`FETCH`] and [`LIST`].
pub const WATCH: u16 = 48;
/// See [`WATCH`].
pub const FETCH: u16 = 56;
/// See [`WATCH`].
pub const LIST: u16 = 57;

/// Writes one control message.
///
/// # Errors
/// What the stream says.
pub async fn send(stream: &mut (impl AsyncWrite + Unpin), message: &Message) -> Result<(), WireError> {
    let frame = match message {
        Message::Hello(hello) => encode(HELLO, hello)?,
        Message::Offers(offers) => encode(OFFERS, offers)?,
        Message::Home(home) => encode(HOME, home)?,
        Message::Statements(statements) => encode(STATEMENTS, statements)?,
        Message::Ceremony(words) => encode(CEREMONY, words)?,
        Message::Bye => encode(BYE, &())?,
        Message::Unknown(_) => return Ok(()),
    };
    Ok(stream.write_all(&frame).await?)
}

/// Reads the next control message.
///
/// # Errors
/// Where the stream ends, or the frame is too long or malformed.
pub async fn receive(stream: &mut (impl AsyncRead + Unpin)) -> Result<Message, WireError> {
    let (kind, body) = read_frame(stream).await?;
    decode(kind, &body)
}

/// One control message from its kind and body; pure, for the fuzzer's sake.
///
/// # Errors
/// Where the body is not what the kind says.
pub fn decode(kind: u16, body: &[u8]) -> Result<Message, WireError> {
    match kind {
        HELLO => {
            let mut hello: Hello = parse(body)?;
            hello.name = clean(&hello.name);
            hello.uplinks = clean_offers(hello.uplinks);
            Ok(Message::Hello(hello))
        }
        OFFERS => Ok(Message::Offers(clean_offers(parse(body)?))),
        HOME => {
            let mut home: Home = parse(body)?;
            home.behind.truncate(MAX_BEHIND);
            Ok(Message::Home(home))
        }
        STATEMENTS => {
            let mut statements: Vec<Vec<u8>> = parse(body)?;
            statements.truncate(MAX_STATEMENTS);
            Ok(Message::Statements(statements))
        }
        CEREMONY => {
            let words: Vec<u8> = parse(body)?;
            if words.len() > MAX_CEREMONY {
                return Err(WireError::Malformed);
            }
            Ok(Message::Ceremony(words))
        }
        BYE => Ok(Message::Bye),
        other => Ok(Message::Unknown(other)),
    }
}

/// Writes the request that opens a tunnel.
///
/// # Errors
/// What the stream says.
pub async fn send_open(stream: &mut (impl AsyncWrite + Unpin), open: &Open) -> Result<(), WireError> {
    Ok(stream.write_all(&encode(OPEN, open)?).await?)
}

/// What a peer opens a stream for.
#[derive(Debug)]
pub(super) enum First {
    /// A tunnel.
    Open(Open),
    /// Something of the household's: of which kind, and what it says.
    Share(u16, Vec<u8>),
}

/// Reads the frame that a stream begins with.
///
/// # Errors
/// As [`receive`], and where no stream begins so, or not one of a peer that may not `share`.
pub(super) async fn receive_first(
    stream: &mut (impl AsyncRead + Unpin),
    share: impl FnOnce() -> bool,
) -> Result<First, WireError> {
    let (kind, body) = read_frame(stream).await?;
    if [WATCH, FETCH, LIST].contains(&kind) && share() {
        return Ok(First::Share(kind, body));
    }
    expect(OPEN, (kind, body)).map(First::Open)
}

/// Reads the request that opens a tunnel.
///
/// # Errors
/// As [`receive`], and where it is another message.
pub async fn receive_open(stream: &mut (impl AsyncRead + Unpin)) -> Result<Open, WireError> {
    expect(OPEN, read_frame(stream).await?)
}

/// Writes the answer to a tunnel's request.
///
/// # Errors
/// What the stream says.
pub async fn send_answer(stream: &mut (impl AsyncWrite + Unpin), answer: Answer) -> Result<(), WireError> {
    Ok(stream.write_all(&encode(ANSWER, &answer)?).await?)
}

/// Reads the answer to a tunnel's request.
///
/// # Errors
/// As [`receive_open`].
pub async fn receive_answer(stream: &mut (impl AsyncRead + Unpin)) -> Result<Answer, WireError> {
    expect(ANSWER, read_frame(stream).await?)
}

/// A report as a datagram's body.
///
/// # Errors
/// None in practice: there is memory for a few bytes.
pub fn encode_report(report: Report) -> Result<Vec<u8>, WireError> {
    postcard::to_stdvec(&(REPORT, report)).map_err(|_| WireError::Malformed)
}

/// The report in a datagram; `None` where it is anything else, which a later version may send.
pub fn decode_report(body: &[u8]) -> Option<Report> {
    let (kind, report): (u16, Report) = parse(body).ok()?;
    (kind == REPORT).then_some(report)
}

/// A peer's text made fit for people: no control, bidirectional or zero-width characters, 63 bytes at most.
pub fn clean(text: &str) -> String {
    let mut clean = String::new();
    for c in text.chars().filter(|&c| is_plain(c)) {
        if clean.len() + c.len_utf8() > MAX_NAME_BYTES {
            break;
        }
        clean.push(c);
    }
    if clean.trim().is_empty() {
        "unnamed".into()
    } else {
        clean
    }
}

fn is_plain(c: char) -> bool {
    let invisible = matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
        | '\u{feff}' | '\u{00ad}' | '\u{061c}' | '\u{2028}' | '\u{2029}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}');
    !c.is_control() && !invisible
}

fn clean_offers(offers: Vec<Offer>) -> Vec<Offer> {
    let mut kept: Vec<Offer> = Vec::new();
    for mut offer in offers {
        if kept.len() == MAX_UPLINKS {
            break;
        }
        if offer.kind != UplinkKind::Household && kept.iter().all(|k| k.id != offer.id) {
            offer.name = clean(&offer.name);
            kept.push(offer);
        }
    }
    kept
}

/// A frame.
///
/// # Errors
/// Where the body is longer than [`MAX_FRAME`].
pub fn encode(kind: u16, body: &impl Serialize) -> Result<Vec<u8>, WireError> {
    let mut frame = vec![0; 6];
    frame[4..].copy_from_slice(&kind.to_be_bytes());
    let mut frame = postcard::to_extend(body, frame).map_err(|_| WireError::Malformed)?;
    let length = frame.len() - 6;
    if length > MAX_FRAME {
        return Err(WireError::TooLong(length));
    }
    let prefix = u32::try_from(length).map_err(|_| WireError::TooLong(length))?;
    frame[..4].copy_from_slice(&prefix.to_be_bytes());
    Ok(frame)
}

/// Reads one frame: its kind and its body.
///
/// # Errors
/// As [`receive`].
pub(super) async fn read_frame(stream: &mut (impl AsyncRead + Unpin)) -> Result<(u16, Vec<u8>), WireError> {
    let mut head = [0; 6];
    stream.read_exact(&mut head).await?;
    let length = u32::from_be_bytes([head[0], head[1], head[2], head[3]]) as usize;
    if length > MAX_FRAME {
        return Err(WireError::TooLong(length));
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    Ok((u16::from_be_bytes([head[4], head[5]]), body))
}

fn expect<T: DeserializeOwned>(wanted: u16, (kind, body): (u16, Vec<u8>)) -> Result<T, WireError> {
    if kind == wanted {
        parse(&body)
    } else {
        Err(WireError::Malformed)
    }
}

/// Later versions may append fields: what follows the known ones is ignored.
///
/// # Errors
/// Where the body is not of that type.
pub fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, WireError> {
    postcard::take_from_bytes(body)
        .map(|(value, _)| value)
        .map_err(|_| WireError::Malformed)
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use proptest::prelude::*;

    use super::*;

    fn offer(id: u32) -> Offer {
        let line = LineId([3; 8]);
        Offer {
            id,
            name: "wan0".into(),
            line,
            kind: UplinkKind::Wired,
            metered: false,
            down: Some(Rate::bits(9)),
        }
    }

    #[tokio::test]
    async fn messages_arrive_as_they_were_sent() {
        let hello = Hello {
            name: "kitchen-pi".into(),
            session: 7,
            uplinks: vec![offer(1), offer(2)],
        };
        let messages = [
            Message::Hello(hello),
            Message::Offers(vec![offer(3)]),
            Message::Home(Home::default()),
            Message::Home(Home {
                line: Some(LineId([4; 8])),
                behind: vec![PeerId([5; 32])],
            }),
            Message::Bye,
        ];
        let mut wire = Vec::new();
        for message in &messages {
            send(&mut wire, message).await.unwrap();
        }
        let mut reader = &wire[..];
        for message in &messages {
            assert_eq!(&receive(&mut reader).await.unwrap(), message);
        }
        assert!(matches!(receive(&mut reader).await, Err(WireError::Io(_))));
    }

    #[tokio::test]
    async fn a_message_of_a_later_version_is_skipped_and_its_new_fields_are_ignored() {
        let mut wire = encode(999, &(1u8, "new")).unwrap();
        wire.extend(encode(OFFERS, &(vec![offer(1)], "a field from the future")).unwrap());
        let mut reader = &wire[..];
        assert_eq!(receive(&mut reader).await.unwrap(), Message::Unknown(999));
        assert_eq!(
            receive(&mut reader).await.unwrap(),
            Message::Offers(vec![offer(1)])
        );
    }

    #[test]
    fn a_peer_that_names_routers_without_end_is_cut_short() {
        let home = Home {
            line: None,
            behind: vec![PeerId([5; 32]); 100],
        };
        let frame = encode(HOME, &home).unwrap();
        let Message::Home(heard) = decode(HOME, &frame[6..]).unwrap() else {
            unreachable!("the kind says what it is")
        };
        assert_eq!(heard.behind.len(), MAX_BEHIND);
    }

    #[tokio::test]
    async fn a_frame_that_claims_too_much_is_refused_before_it_is_read() {
        let mut reader = &[0xff, 0xff, 0xff, 0xff, 0, 1][..];
        assert!(matches!(receive(&mut reader).await, Err(WireError::TooLong(_))));
    }

    #[test]
    fn sec_a17_a_peers_name_is_cleaned_before_anybody_sees_it() {
        assert_eq!(clean("kitchen\u{202e}-\u{1b}[31mpi\n\u{200b}"), "kitchen-[31mpi");
        assert_eq!(clean("\u{7}\t "), "unnamed");
        assert!(clean(&"ü".repeat(100)).len() <= MAX_NAME_BYTES);
    }

    #[test]
    fn a_peer_that_offers_too_many_or_the_same_uplink_twice_is_cut_down() {
        let many: Vec<_> = (0..100).map(|i| offer(i / 2)).collect();
        assert_eq!(clean_offers(many).len(), MAX_UPLINKS);
    }

    fn any_offer() -> impl Strategy<Value = Offer> {
        let kind = prop::sample::select(vec![
            UplinkKind::Wired,
            UplinkKind::Wireless,
            UplinkKind::Cellular,
            UplinkKind::Virtual,
        ]);
        let down = prop::option::of(any::<u64>().prop_map(Rate::bits));
        (
            any::<u32>(),
            "[a-z0-9\u{e4}-\u{fc}]{1,15}",
            any::<[u8; 8]>(),
            kind,
            any::<bool>(),
            down,
        )
            .prop_map(|(id, name, line, kind, metered, down)| Offer {
                id,
                name,
                line: LineId(line),
                kind,
                metered,
                down,
            })
    }

    fn any_message() -> impl Strategy<Value = Message> {
        // As they are sent: no uplink twice, and text that is clean already.
        let offers = || {
            prop::collection::vec(any_offer(), 0..=MAX_UPLINKS).prop_map(|mut offers| {
                for (id, offer) in (0..).zip(&mut offers) {
                    offer.id = offer.id / 32 * 32 + id;
                }
                offers
            })
        };
        let peers = prop::collection::vec(any::<[u8; 32]>().prop_map(PeerId), 0..=MAX_BEHIND);
        let home = (prop::option::of(any::<[u8; 8]>().prop_map(LineId)), peers);
        let statement = prop::collection::vec(any::<u8>(), 0..200);
        prop_oneof![
            ("[a-zA-Z0-9 ._\u{e4}-\u{fc}-]{0,15}[a-z]", any::<u64>(), offers()).prop_map(
                |(name, session, uplinks)| Message::Hello(Hello {
                    name,
                    session,
                    uplinks
                })
            ),
            offers().prop_map(Message::Offers),
            home.prop_map(|(line, behind)| Message::Home(Home { line, behind })),
            prop::collection::vec(statement, 0..20).prop_map(Message::Statements),
            prop::collection::vec(any::<u8>(), 0..=MAX_CEREMONY).prop_map(Message::Ceremony),
            Just(Message::Bye),
        ]
    }

    fn any_open() -> impl Strategy<Value = Open> {
        (
            ".{0,40}",
            any::<u16>(),
            any::<u32>(),
            prop::option::of(any::<IpAddr>()),
        )
            .prop_map(|(host, port, uplink, pin)| Open {
                host,
                port,
                uplink,
                pin,
            })
    }

    fn any_answer() -> impl Strategy<Value = Answer> {
        let refusals = vec![
            Refusal::Address,
            Refusal::Port,
            Refusal::Uplink,
            Refusal::Resolve,
            Refusal::Connect,
            Refusal::Busy,
            Refusal::Name,
        ];
        prop_oneof![
            (any::<IpAddr>(), any::<u16>()).prop_map(|(ip, port)| Answer::Opened((ip, port).into())),
            prop::sample::select(refusals).prop_map(Answer::Refused),
        ]
    }

    /// What is there as a whole never has to be waited for.
    fn now<T>(future: impl Future<Output = T>) -> T {
        future.now_or_never().unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(10_000))]

        #[test]
        fn prop_11_every_frame_is_heard_as_it_was_said_and_of_a_part_of_it_nothing(
            messages in prop::collection::vec(any_message(), 1..4),
            unknown in 100u16..,
            noise in prop::collection::vec(any::<u8>(), 0..50),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut wire = Vec::new();
            for message in &messages {
                now(send(&mut wire, message)).unwrap();
                // Of a later version: who does not know it goes on to the next.
                let body = noise.as_slice();
                wire.extend((body.len() as u32).to_be_bytes());
                wire.extend(unknown.to_be_bytes());
                wire.extend(body);
            }
            let mut reader = &wire[..];
            for message in &messages {
                prop_assert_eq!(&now(receive(&mut reader)).unwrap(), message);
                prop_assert_eq!(now(receive(&mut reader)).unwrap(), Message::Unknown(unknown));
            }
            prop_assert!(reader.is_empty());
            let mut part = &wire[..cut.index(wire.len())];
            let mut heard = Vec::new();
            while let Ok(message) = now(receive(&mut part)) {
                heard.push(message);
            }
            let mut said = messages.into_iter().flat_map(|m| [m, Message::Unknown(unknown)]);
            prop_assert!(heard.iter().all(|m| said.next().as_ref() == Some(m)), "nothing but what was said");
        }

        #[test]
        fn prop_11_requests_and_answers_are_heard_as_they_were_said(
            open in any_open(),
            answer in any_answer(),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut wire = Vec::new();
            now(send_open(&mut wire, &open)).unwrap();
            prop_assert_eq!(now(receive_open(&mut &wire[..])).unwrap(), open);
            prop_assert!(now(receive_answer(&mut &wire[..])).is_err(), "another kind");
            prop_assert!(now(receive_open(&mut &wire[..cut.index(wire.len())])).is_err());
            wire.clear();
            now(send_answer(&mut wire, answer)).unwrap();
            prop_assert_eq!(now(receive_answer(&mut &wire[..])).unwrap(), answer);
            prop_assert!(now(receive_answer(&mut &wire[..cut.index(wire.len())])).is_err());
        }

        #[test]
        fn no_bytes_from_the_wire_panic(kind in prop_oneof![0u16..20, any::<u16>()], body in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode(kind, &body);
            let _ = parse::<Open>(&body);
            let _ = parse::<Answer>(&body);
        }
    }
}
