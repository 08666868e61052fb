//! Where the fuzzer begins: inputs made from what is really said, encoded by the program itself where it says it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use futures_util::FutureExt;
use tributary::fuzzing::device;
use tributary::identity::provider;
use tributary::link::wire::{self, Hello, Home, MAX_UPLINKS, Message, Offer, Open};
use tributary::share::Subject;
use tributary::share::leaves::Leaves;
use tributary::share::wire::{File, News};
use tributary::trust::{Look, Said, Step, TokenId, Words};
use tributary::types::{LineId, PeerId, Rate, UplinkKind};

use super::{first, statements};

/// For each target its first inputs.
pub fn all() -> Vec<(&'static str, Vec<Vec<u8>>)> {
    vec![
        ("frames", streams()),
        (
            "hello",
            frames()
                .iter()
                .map(|f| f.get(6..).unwrap_or_default().to_vec())
                .collect(),
        ),
        ("household", news()),
        ("open", opens()),
        ("address", addresses()),
        ("first_tls", hellos()),
        ("first_http", requests()),
        ("mdns", packets()),
        ("mdns_daemon", packets()),
        ("txt", txts()),
        ("candidates", candidates()),
        ("spki", keys()),
        ("config", configs()),
        ("statements", said()),
        ("ceremony", words()),
        ("s3", answers()),
        ("listing", listings()),
        ("tus", tus()),
    ]
}

/// What members say of contents, and entries of leaves.
fn news() -> Vec<Vec<u8>> {
    let (subject, key) = (Subject([7; 32]), device(0));
    let file = |name: &str| File {
        name: name.into(),
        total: 1 << 30,
        sha256: [8; 32],
        subject,
    };
    let said = [
        News::Holds(1, 0, subject, 300 << 20),
        News::Got(1, vec![(0, 17), (200, 100)]),
        News::Claims(1, vec![(0, 1 << 20), (5 << 20, 77)], 1 << 33),
        News::Leaves(1, Leaves::sign(subject, &[(3, [9; 32]), (4, [8; 32])], &key)),
        News::Gone(1),
        News::Offered(vec![file("film.mkv"), file("../\u{202e}x")]),
    ];
    let mut seeds: Vec<Vec<u8>> = said
        .iter()
        .map(|news| {
            news.frame()
                .map(|frame| frame.get(6..).unwrap_or_default().to_vec())
        })
        .filter_map(Result::ok)
        .collect();
    seeds.push(Leaves::sign(subject, &[(0, [1; 32])], &key));
    // The same pieces again, and another word on one.
    seeds.push([[0, 1, 5], [0, 2, 6], [0, 1, 5], [0, 1, 9]].concat().repeat(6));
    seeds.extend(postcard::to_stdvec(&vec![[1u8; 32], [2; 32]]));
    seeds.extend(postcard::to_stdvec(&([1u8; 32], subject, 5u32, 4u32)));
    seeds
}

fn offer(id: u32, name: &str) -> Offer {
    Offer {
        id,
        name: name.into(),
        line: LineId([3; 8]),
        kind: UplinkKind::Cellular,
        metered: true,
        down: Some(Rate::bits(20_000_000)),
    }
}

/// Control messages one after the other.
pub fn stream(messages: &[Message]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for message in messages {
        let sent = wire::send(&mut bytes, message).now_or_never();
        assert!(matches!(sent, Some(Ok(()))), "{message:?}");
    }
    bytes
}

fn frames() -> Vec<Vec<u8>> {
    let hello = |name: &str, uplinks| {
        Message::Hello(Hello {
            name: name.into(),
            session: 7,
            uplinks,
        })
    };
    let home = Home {
        line: Some(LineId([4; 8])),
        behind: vec![PeerId([5; 32]), PeerId([6; 32])],
    };
    let many = (0..MAX_UPLINKS as u32 + 4)
        .map(|n| offer(n / 2, "wan\u{202e}0"))
        .collect();
    let mut unknown = stream(&[hello("pi", vec![])]);
    unknown.extend([0, 0, 0, 3, 9, 9, 1, 2, 3]);
    unknown.extend(stream(&[Message::Bye]));
    vec![
        stream(&[hello("kitchen-pi", vec![offer(1, "eth0"), offer(2, "wlan0")])]),
        stream(&[
            hello("k\u{fc}che \u{1b}[31m", vec![offer(1, "eth0")]),
            Message::Home(home.clone()),
            Message::Offers(vec![offer(3, "wwan0")]),
            Message::Home(Home::default()),
            Message::Bye,
        ]),
        stream(&[hello("", many)]),
        stream(&[Message::Offers(vec![offer(3, "wwan0")])]),
        stream(&[Message::Home(home)]),
        unknown,
        vec![0xff, 0xff, 0xff, 0xff, 0, 1],
    ]
}

/// Whole streams, of peers of each tier.
fn streams() -> Vec<Vec<u8>> {
    let hello = frames().swap_remove(0);
    let vouch = Said::Vouch { may_vouch: true };
    let leave = Said::Revoke { block: false };
    let block = Said::Revoke { block: true };
    let said = |all: &[Vec<u8>]| [&hello[..], &stream(&[Message::Statements(all.to_vec())])].concat();
    let mut all: Vec<Vec<u8>> = frames().iter().map(|frame| [&[0], &frame[..]].concat()).collect();
    for tier in 0..3 {
        for words in [
            said(&[
                statements::statement(1, 9, vouch, 1),
                statements::statement(1, 1, leave, 1),
            ]),
            said(&[statements::statement(1, 1, leave, 1)]),
            said(&[statements::statement(1, 0, block, 1), vec![7; 140]]),
            [&hello[..], &stream(&[Message::Ceremony(vec![1; 64])])].concat(),
        ] {
            all.push([&[tier], &words[..]].concat());
        }
    }
    all
}

fn opens() -> Vec<Vec<u8>> {
    let open = |host: &str, pin: Option<IpAddr>| {
        let open = Open {
            host: host.into(),
            port: 443,
            uplink: 2,
            pin,
        };
        let mut bytes = Vec::new();
        let sent = wire::send_open(&mut bytes, &open).now_or_never();
        assert!(matches!(sent, Some(Ok(()))));
        bytes.split_off(6)
    };
    let mut all = vec![
        open("origin.example", None),
        open("Origin.EXAMPLE.", Some([1, 1, 1, 1].into())),
        open("127.0.0.1", Some([127, 0, 0, 1].into())),
        open("a.b", Some([0x64, 0xff9b, 0, 0, 0, 0, 0x0a00, 1].into())),
        open("a.b", Some([0x2002, 0x0808, 0x0808, 0, 0, 0, 0, 1].into())),
    ];
    for host in [
        "0x7f.1",
        "0177.0.0.1",
        "2130706433",
        "a.0x7f",
        "nas.local",
        "x.home.arpa.",
        "[::1]",
        "::ffff:10.0.0.1",
        "a..b",
        "-a.b",
        "a-.b",
        "a_b.c",
        "xn--p1ai.b",
        "localhost",
        "metadata.google.internal",
        "1.2.3.4.example.com",
    ] {
        all.push(host.into());
    }
    all.push("a.".repeat(126).into_bytes());
    all.push(format!("{}.com", "a".repeat(64)).into_bytes());
    all
}

fn addresses() -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for text in [
        "1.1.1.1",
        "10.0.0.1",
        "100.64.0.1",
        "192.0.2.1",
        "198.18.0.1",
        "224.0.0.251",
        "255.255.255.255",
        "::",
        "::1",
        "::ffff:10.0.0.1",
        "64:ff9b::10.0.0.1",
        "64:ff9b:1::1",
        "2002:7f00:1::",
        "2001:db8::1",
        "2001:0:1::1",
        "2620:4f:8000::1",
        "3fff::1",
        "3ffe::1",
        "5f00::1",
        "fc00::1",
        "fe80::1",
        "fec0::1",
        "ff02::fb",
        "2606:4700::1111",
        "100::1",
    ] {
        all.push([&[0], text.as_bytes()].concat());
        if let Ok(ip) = text.parse::<IpAddr>() {
            let bits = match ip {
                IpAddr::V4(v4) => v4.to_ipv6_mapped(),
                IpAddr::V6(v6) => v6,
            };
            all.push([&[1], &bits.octets()[..]].concat());
        }
    }
    all
}

fn hellos() -> Vec<Vec<u8>> {
    let hello = |name: &str| {
        let config = rustls::ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map(|builder| {
                builder
                    .with_root_certificates(rustls::RootCertStore::empty())
                    .with_no_client_auth()
            });
        let name = rustls::pki_types::ServerName::try_from(name.to_owned());
        let (Ok(config), Ok(name)) = (config, name) else {
            panic!("no client");
        };
        let Ok(mut client) = rustls::ClientConnection::new(Arc::new(config), name) else {
            panic!("no connection");
        };
        let mut bytes = Vec::new();
        assert!(client.write_tls(&mut bytes).is_ok());
        bytes
    };
    let right = hello(first::HOST);
    let records = |size: usize| {
        let record = |part: &[u8]| [&[22, 3, 1, (part.len() >> 8) as u8, part.len() as u8], part].concat();
        right[5..].chunks(size).flat_map(record).collect::<Vec<u8>>()
    };
    let small = small_hello();
    let mut all: Vec<Vec<u8>> = [
        right.clone(),
        hello("other.example"),
        hello("192.0.2.1"),
        records(100),
        right[..80].to_vec(),
        small.clone(),
        [&small[..], b"early"].concat(),
    ]
    .iter()
    .map(|bytes| [&[3], &bytes[..]].concat())
    .collect();
    all.push([&[0], &small[..]].concat());
    all
}

/// The least that is a ClientHello to the host: what the fuzzer can take apart.
fn small_hello() -> Vec<u8> {
    let vector = |width: usize, body: &[u8]| {
        let length = (body.len() as u32).to_be_bytes();
        [&length[4 - width..], body].concat()
    };
    let extension = |kind: u8, body: &[u8]| [&[0, kind], &vector(2, body)[..]].concat();
    let name = [&[0], &vector(2, first::HOST.as_bytes())[..]].concat();
    let extensions = [
        extension(0, &vector(2, &name)),
        extension(10, &vector(2, &[0, 29])),
        extension(13, &vector(2, &[8, 7, 4, 3])),
        extension(43, &vector(1, &[3, 4])),
        extension(51, &vector(2, &[&[0, 29], &vector(2, &[9; 32])[..]].concat())),
    ];
    let body = [
        &[3, 3][..],
        &[7; 32],
        &vector(1, &[]),
        &vector(2, &[0x13, 1]),
        &vector(1, &[0]),
        &vector(2, &extensions.concat()),
    ];
    let handshake = [&[1], &vector(3, &body.concat())[..]].concat();
    [&[22, 3, 1], &vector(2, &handshake)[..]].concat()
}

fn requests() -> Vec<Vec<u8>> {
    [
        &b"GET /a?b HTTP/1.1\r\nAccept: */*\r\nhost:  Origin.Example:80 \r\nRange: bytes=0-\r\n\r\n"[..],
        b"POST / HTTP/1.0\r\nHost: origin.example\r\n\r\nbody",
        b"GET / HTTP/1.1\r\nHost: other.example\r\n\r\n",
        b"GET http://origin.example/ HTTP/1.1\r\nHost: origin.example\r\n\r\n",
        b"CONNECT other.example:443 HTTP/1.1\r\nHost: origin.example\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: origin.example\r\nHost : other.example\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: origin.example\r\n folded\r\n\r\n",
        b"GET / HTTP/1.1\nHost: origin.example\n\nX\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: y\rHost: other.example\r\nHost: origin.example\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: origin.example\r\n\r\n",
        b"SSH-2.0-x\r\n",
    ]
    .iter()
    .map(|request| [&[2], *request].concat())
    .collect()
}

/// A name on the wire.
fn dns_name(name: &str) -> Vec<u8> {
    let labels = name.split('.').filter(|l| !l.is_empty());
    let mut bytes: Vec<u8> = labels
        .flat_map(|l| [&[l.len() as u8], l.as_bytes()].concat())
        .collect();
    bytes.push(0);
    bytes
}

fn record(name: &[u8], kind: u16, class: u16, ttl: u32, data: &[u8]) -> Vec<u8> {
    [
        name,
        &kind.to_be_bytes(),
        &class.to_be_bytes(),
        &ttl.to_be_bytes(),
        &(data.len() as u16).to_be_bytes(),
        data,
    ]
    .concat()
}

/// What a peer says of itself: PTR, SRV, TXT, A.
pub fn announcement(instance: &str, port: u16, ttl: u32, txt: &[u8], ip: Ipv4Addr) -> Vec<u8> {
    let service = dns_name(tributary::discovery::SERVICE);
    let full = [&[instance.len() as u8], instance.as_bytes(), &service].concat();
    let host = dns_name(&format!("h{instance}.local."));
    let srv = [&[0, 0, 0, 0], &port.to_be_bytes()[..], &host].concat();
    [
        &[0, 0, 0x84, 0, 0, 0, 0, 4, 0, 0, 0, 0][..],
        &record(&service, 12, 1, ttl, &full),
        &record(&full, 33, 0x8001, ttl, &srv),
        &record(&full, 16, 0x8001, ttl, txt),
        &record(&host, 1, 0x8001, ttl, &ip.octets()),
    ]
    .concat()
}

fn packets() -> Vec<Vec<u8>> {
    let here = Ipv4Addr::LOCALHOST;
    let service = dns_name(tributary::discovery::SERVICE);
    let question = [
        &[0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0],
        &service[..],
        &[0, 12, 0, 1],
    ]
    .concat();
    let whole = announcement("0badcafe", 7436, 120, b"\x03v=1", here);
    // The service's name is at 12; what is below it points there.
    let pointing = [
        &[0, 0, 0x84, 0, 0, 0, 0, 2, 0, 0, 0, 0][..],
        &record(&service, 12, 1, 120, b"\x080badcafe\xc0\x0c"),
        &record(
            b"\x080badcafe\xc0\x0c",
            33,
            0x8001,
            120,
            b"\0\0\0\0\x1d\x0c\x04host\xc0\x21",
        ),
    ]
    .concat();
    vec![
        question,
        announcement("0badcafe", 7436, 0, b"\x03v=1", here),
        announcement("<b>", 0, 4500, b"", [8, 8, 8, 8].into()),
        [&whole[..], &whole[12..]].concat(),
        whole,
        pointing,
    ]
}

fn txts() -> Vec<Vec<u8>> {
    [
        &b"\x03v=1"[..],
        b"",
        b"\0",
        b"\xffv",
        b"\x03v=1\x03v=2\x01=\x02==\x04key=",
        b"\x05\xff\xfe=\x1b[\x03a=b",
    ]
    .iter()
    .map(|txt| txt.to_vec())
    .collect()
}

fn candidates() -> Vec<Vec<u8>> {
    let seen = |name: &str, addresses: &[[u8; 3]]| {
        let head = [&[4, name.len() as u8], name.as_bytes(), &7436_u16.to_be_bytes()].concat();
        [&head[..], &[addresses.len() as u8], &addresses.concat()].concat()
    };
    let gone = |name: &str| {
        let full = format!("{name}.{}", tributary::discovery::SERVICE);
        [&[1, full.len() as u8], full.as_bytes()].concat()
    };
    let flood = |n| [3, 0, n].to_vec();
    vec![
        [
            seen("0badcafe", &[[0, 0, 9], [2, 0, 9], [3, 0, 9]]),
            vec![2],
            gone("0badcafe"),
            vec![2],
        ]
        .concat(),
        [
            seen("0BADCAFE", &[[1, 0, 9]]),
            seen("0badcafe", &[[1, 0, 10]]),
            vec![2],
        ]
        .concat(),
        [
            flood(0),
            flood(1),
            vec![0, 255, 255],
            flood(2),
            vec![2],
            seen("friend", &[[0, 0, 2]]),
        ]
        .concat(),
        [seen("a b", &[[0, 0, 9]]), seen("x", &[[4, 1, 9], [5, 0, 0]])].concat(),
        (0..20)
            .flat_map(|n| seen(&format!("n{n}"), &[[0, 0, 9]]))
            .collect(),
    ]
}

fn keys() -> Vec<Vec<u8>> {
    let good = [
        &[0x30, 42, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 3, 33, 0][..],
        &[7; 32],
    ]
    .concat();
    let parameters = [
        &[0x30, 44, 0x30, 7, 6, 3, 0x2b, 0x65, 0x70, 5, 0, 3, 33, 0][..],
        &[7; 32],
    ]
    .concat();
    let long = [
        &[0x30, 0x81, 42, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 3, 33, 0][..],
        &[7; 32],
    ]
    .concat();
    let x25519 = [
        &[0x30, 42, 0x30, 5, 6, 3, 0x2b, 0x65, 0x6e, 3, 33, 0][..],
        &[7; 32],
    ]
    .concat();
    vec![
        good.clone(),
        [&good[..], &[0]].concat(),
        good[..43].to_vec(),
        parameters,
        long,
        x25519,
        vec![9; 33],
    ]
}

fn configs() -> Vec<Vec<u8>> {
    let documented = include_str!("../../config/tributary.toml");
    // Every key, said.
    let said: Vec<&str> = documented
        .lines()
        .filter_map(|line| {
            let bare = line.trim_start_matches(['#', ' ']);
            let key = bare
                .split_once(" = ")
                .is_some_and(|(k, _)| k.chars().all(|c| c.is_ascii_lowercase() || c == '_'));
            (key || bare.starts_with('[') && bare.ends_with(']')).then_some(bare)
        })
        .collect();
    vec![
        said.join("\n").into_bytes(),
        b"[device]\nname = \"\"\"a\nb\"\"\"\n[lan]\npeers = [\"192.168.1.7:0\", 7]\nport = 70000\n".to_vec(),
        b"[egress]\nallow = [\"192.168.1.7/24\", \"\\u001b\"]\nidle = \"5 s\"\ntunnels = 1.5\n".to_vec(),
        b"[[uplink]]\nlend = maybe\n".to_vec(),
        b"[[uplink]]\ninterface = \"a\"\nmax_down = \"1 Mbit/s\"\n[[uplink]]\ninterface = \"a\"\n".to_vec(),
        b"[lna]\nport = 1\n[device]\nnmae = 1979-05-27T07:32:00Z\n".to_vec(),
        b"lan = 3\nuplink = 4\n\xff".to_vec(),
    ]
}

fn said() -> Vec<Vec<u8>> {
    let vouch = Said::Vouch { may_vouch: true };
    let block = Said::Revoke { block: true };
    vec![
        statements::statement(1, 9, vouch, 3),
        statements::statement(2, 1, block, u32::MAX),
        // Signer, subject, what, epoch: me, a device, one that it vouches for, a revocation of each.
        [
            [0, 1, 2, 1],
            [1, 2, 2, 1],
            [2, 3, 0, 1],
            [0, 1, 3, 1],
            [1, 1, 1, 2],
            [2, 0, 1, 1],
        ]
        .concat(),
        [[0, 1, 2, 255], [0, 1, 1, 255], [0, 1, 2, 255]].concat(),
        SocketAddr::from(([127, 0, 0, 1], 1)).to_string().into_bytes(),
    ]
}

fn words() -> Vec<Vec<u8>> {
    let step = |words: Words| words.bytes();
    let id = TokenId([3; 16]);
    let small_order = {
        let mut one = [0; 32];
        one[0] = 1;
        one
    };
    let link = |who| [&[0, who][..]].concat();
    // Link, words, and what was heard said again.
    let say = |who: u8, words: Words| {
        let bytes = words.bytes();
        [&[4, who, bytes.len() as u8], &bytes[..]].concat()
    };
    vec![
        step(Words::Passphrase(Step::Ready)),
        step(Words::Passphrase(Step::Answer([1; 32], [2; 32]))),
        step(Words::Token(id, Step::Open([4; 32]))),
        step(Words::Approve(Look::Commit([6; 32]))),
        [
            vec![0],
            link(1),
            say(1, Words::Passphrase(Step::Ready)),
            vec![5, 1, 0],
            vec![6, 1, 3, 0],
        ]
        .concat(),
        [
            vec![0],
            link(2),
            say(2, Words::Passphrase(Step::Open(small_order))),
            vec![6, 2, 5, 0],
        ]
        .concat(),
        [
            vec![0],
            link(3),
            link(4),
            say(3, Words::Passphrase(Step::Ready)),
            vec![7, 4, 1, 0, 7, 4, 3, 0],
        ]
        .concat(),
        [
            vec![0],
            link(5),
            vec![7, 5, 17, 255],
            vec![7; 32],
            vec![7, 5, 21, 0],
        ]
        .concat(),
        [
            vec![0],
            link(6),
            vec![7, 6, 24, 255],
            vec![1; 32],
            vec![3, 0, 2, 0],
        ]
        .concat(),
        vec![1],
        vec![3],
        vec![5],
        vec![9, 1, 5, 1],
        vec![9, 2, 40, 128],
    ]
}

/// What S3 services answer, and what they should not.
fn answers() -> Vec<Vec<u8>> {
    let s3 = "xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"";
    let all = [
        format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<InitiateMultipartUploadResult {s3}><Bucket>b</Bucket><Key>k</Key><UploadId>VXBs.1</UploadId></InitiateMultipartUploadResult>"),
        format!("<ListMultipartUploadsResult {s3}><IsTruncated>true</IsTruncated><NextKeyMarker>k</NextKeyMarker><NextUploadIdMarker>u</NextUploadIdMarker><Upload><Key>k</Key><UploadId>u</UploadId><Initiated>2026-01-02T00:00:00.000Z</Initiated></Upload></ListMultipartUploadsResult>"),
        "<ListPartsResult><NextPartNumberMarker>2</NextPartNumberMarker><IsTruncated>true</IsTruncated><Part><PartNumber>2</PartNumber><ETag>&quot;7778aef83f66abc1fa1e8477f296d394&quot;</ETag><Size>10485760</Size></Part></ListPartsResult>".to_owned(),
        format!("<CompleteMultipartUploadResult {s3}><ETag>&#34;3858f62230ac3c915f300c664312c11f-9&#34;</ETag></CompleteMultipartUploadResult>"),
        "<Error><Code>AuthorizationHeaderMalformed</Code><Message>the region 'us-east-1' is wrong; expecting 'eu-west-1'</Message><Region>eu-west-1</Region></Error>".to_owned(),
        "<Error><Code>A&#27;[2J</Code><Message><![CDATA[\u{202e}x]]>&amp;&#x10ffff;</Message><Region>a.b/c</Region></Error>".to_owned(),
        "<!DOCTYPE a [<!ENTITY b \"c\">]><a>&b;</a>".to_owned(),
        "<a>".repeat(300),
        "\n \n<s:Error xmlns:s=\"u\"><s:Code/></s:Error>\n".to_owned(),
    ];
    all.into_iter().map(String::into_bytes).collect()
}

fn listings() -> Vec<Vec<u8>> {
    let response = |href: &str, inner: &str| {
        format!(
            "<D:response><D:href>{href}</D:href><D:propstat><D:prop>{inner}</D:prop></D:propstat></D:response>"
        )
    };
    let file = "<D:getcontentlength>12</D:getcontentlength><D:getetag>&quot;5-c&quot;</D:getetag>\
        <D:getlastmodified>Tue, 14 Nov 2023 22:13:20 GMT</D:getlastmodified>";
    let directory = "<D:resourcetype><D:collection/></D:resourcetype>";
    let all = [
        response("/a%20b/", directory),
        response("/a%20b/sub/", directory),
        response("/a%20b/x%2Fy", file),
        response("https://origin.example/a%20b/&#252;&amp;", file),
        response("//elsewhere.example/a%20b/x", file),
        response("/a%20b/../c", file),
        "<!-- --><![CDATA[x]]><?x?>".to_owned(),
    ];
    let whole = format!(
        "<?xml version=\"1.0\"?><D:multistatus xmlns:D=\"DAV:\">{}</D:multistatus>",
        all.concat()
    );
    all.iter()
        .chain([&whole])
        .map(|text| text.clone().into_bytes())
        .collect()
}

fn tus() -> Vec<Vec<u8>> {
    [
        "tus-version: 1.0.0\ntus-extension: creation,concatenation,checksum\ntus-checksum-algorithm: sha1\n",
        "tus-version: 0.2.2\ntus-max-size: 1073741824\n",
        "upload-offset: 70\nupload-length: 100\n",
        "upload-offset: 70\nupload-offset: +70\n",
        "tributary tus 1\n0 10 /files/1\n10 20 https://h/2\n20 30 /cut",
    ]
    .map(|text| text.as_bytes().to_vec())
    .into()
}
