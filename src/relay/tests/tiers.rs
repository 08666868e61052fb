//! What neighbours may borrow, what members may beyond that, and that nobody gets further than that.

use super::*;

#[tokio::test]
async fn sec_b5_a_member_gets_more_ports_and_uplinks_than_a_neighbour_and_no_more_addresses() {
    let (listener, port) = origin().await;
    let network = || {
        let mut network = network();
        network.uplinks[1].lend = Lend::Members;
        network.uplinks.push(Uplink {
            lend: Lend::Members,
            ..uplink(KEPT, "kept")
        });
        network
    };
    let (_, receiver) = watch::channel(Arc::new(network()));
    let config = Config {
        allow: vec!["127.0.0.2/32".parse().unwrap()],
        ports: vec![port],
        ..Config::default()
    };
    let answers = |host: String| -> IpAddr {
        match host.starts_with("private") {
            true => [127, 0, 0, 1].into(),
            false => [127, 0, 0, 2].into(),
        }
    };
    let resolver = Resolver::with_lookup(Names::new(), move |host| {
        let answer = vec![answers(host)];
        Box::pin(async move { Ok(answer) })
    });
    let relay = Relay::with_resolver(config, resolver, receiver, &Tasks::new());
    let offered = |tier| -> Vec<u32> { relay.offered(&network(), tier).iter().map(|u| u.index).collect() };
    assert_eq!(offered(Tier::Neighbour), [HAND]);
    assert_eq!(offered(Tier::Member), [HAND, METERED, KEPT]);
    assert_eq!(offered(Tier::Blocked), [0; 0]);
    // A port beyond the web's is no neighbour's, although the owner lends it.
    assert_eq!(
        relay.reach(NEIGHBOUR, &open(port)).await.unwrap_err(),
        Refusal::Port
    );
    for uplink in [HAND, METERED, KEPT] {
        assert!(relay.reach(PEER, &Open { uplink, ..open(port) }).await.is_ok());
        listener.accept().await.unwrap();
    }
    for uplink in [METERED, KEPT] {
        let refused = relay.reach(NEIGHBOUR, &Open { uplink, ..open(443) }).await;
        assert_eq!(refused.unwrap_err(), Refusal::Port, "443 is not lent here");
    }
    // Addresses are the same for both.
    let private = Open {
        host: "private.demo.test".into(),
        ..open(port)
    };
    assert_eq!(relay.reach(PEER, &private).await.unwrap_err(), Refusal::Address);
    relay.change(vec![], vec![443], Limits::default(), true);
    for who in [PEER, NEIGHBOUR] {
        assert_eq!(relay.reach(who, &open(443)).await.unwrap_err(), Refusal::Address);
        let kept = relay
            .reach(
                who,
                &Open {
                    uplink: KEPT,
                    ..open(443)
                },
            )
            .await;
        let expected = if who == PEER {
            Refusal::Address
        } else {
            Refusal::Uplink
        };
        assert_eq!(kept.unwrap_err(), expected);
    }
    nothing_came(&listener).await;
}

#[tokio::test]
async fn neighbours_whom_nothing_is_lent_to_are_offered_nothing_and_refused_and_members_go_on() {
    let relay = relay(&[443], Limits::default(), || panic!("asked"));
    relay.change(vec![], vec![443], Limits::default(), false);
    assert!(relay.offered(&network(), Tier::Neighbour).is_empty());
    assert_eq!(relay.offered(&network(), Tier::Member).len(), 1);
    assert_eq!(
        relay.reach(NEIGHBOUR, &open(443)).await.unwrap_err(),
        Refusal::Uplink
    );
}

/// Carries a neighbour's tunnel as if to port 443, and changes something once it is open; gives how it ended.
async fn neighbours_tunnel(relay: &Relay, listener: &TcpListener, port: u16, change: impl FnOnce()) -> End {
    let mut origin = relay.reach(PEER, &open(port)).await.unwrap();
    origin._place = relay.enter(NEIGHBOUR).unwrap();
    let (mut far, _) = listener.accept().await.unwrap();
    let (mut borrower, mut tunnel) = duplex(1000);
    let talk = async {
        borrower.write_all(b"GET").await.unwrap();
        far.read_exact(&mut [0; 3]).await.unwrap();
        change();
        // Bytes, for as long as they get through.
        while far.write_all(&[5; 400]).await.is_ok() && borrower.read_exact(&mut [0; 400]).await.is_ok() {}
        std::future::pending().await
    };
    tokio::select! {
        end = relay.carry(NEIGHBOUR, &mut tunnel, origin) => end,
        () = talk => unreachable!("it waits for ever"),
    }
}

#[tokio::test]
async fn a_neighbours_tunnel_ends_when_the_owner_keeps_the_uplink_or_everything_for_members() {
    let (listener, port) = origin().await;
    let (news, receiver) = watch::channel(Arc::new(network()));
    let config = Config {
        allow: vec!["127.0.0.2/32".parse().unwrap()],
        ports: vec![port],
        ..Config::default()
    };
    let resolver = Resolver::with_lookup(Names::new(), |_| Box::pin(async { Ok(allowed()) }));
    let relay = Relay::with_resolver(config, resolver, receiver, &Tasks::new());
    let closed = || {
        let range = "127.0.0.2/32".parse().unwrap();
        relay.change(vec![range], vec![port], Limits::default(), false);
    };
    let end = neighbours_tunnel(&relay, &listener, port, closed).await;
    assert!(matches!(end, End::TakenBack), "{end:?}");
    let range = "127.0.0.2/32".parse().unwrap();
    relay.change(vec![range], vec![port], Limits::default(), true);
    let kept = || {
        let mut network = network();
        network.uplinks[0].lend = Lend::Members;
        news.send_replace(Arc::new(network));
    };
    let end = neighbours_tunnel(&relay, &listener, port, kept).await;
    assert!(matches!(end, End::TakenBack), "{end:?}");
    assert!(
        relay.reach(PEER, &open(port)).await.is_ok(),
        "a member's would not"
    );
}

#[tokio::test]
async fn neighbours_that_have_moved_a_days_bytes_are_cut_off_and_told_busy_and_members_go_on() {
    let (listener, port) = origin().await;
    let limits = Limits {
        neighbours_per_day: ByteSize(1000),
        ..Limits::default()
    };
    let relay = relay(&[port], limits, allowed);
    let end = neighbours_tunnel(&relay, &listener, port, || ()).await;
    let cut = matches!(&end, End::Broken(e) if e.kind() == io::ErrorKind::QuotaExceeded);
    assert!(cut, "{end:?}");
    assert!(matches!(relay.enter(NEIGHBOUR), Err(Refusal::Busy)));
    assert!(
        matches!(relay.enter(borrower(9, Tier::Neighbour)), Err(Refusal::Busy)),
        "nor another one"
    );
    assert!(relay.enter(PEER).is_ok());
}

#[tokio::test]
async fn sec_a9_each_address_of_a_name_that_is_tried_is_a_dial_of_its_own() {
    let (listener, port) = origin().await;
    drop(listener);
    let limits = Limits {
        dials: 1,
        dial_burst: 4,
        ..Limits::default()
    };
    let config = Config {
        allow: vec!["127.0.0.0/8".parse().unwrap()],
        ports: vec![port],
        limits,
        ..Config::default()
    };
    let many = || (2..8).map(|n| [127, 0, 0, n].into()).collect::<Vec<IpAddr>>();
    let resolver = Resolver::with_lookup(Names::new(), move |_| Box::pin(async move { Ok(many()) }));
    let (_, network) = watch::channel(Arc::new(network()));
    let relay = Relay::with_resolver(config, resolver, network, &Tasks::new());
    assert_eq!(relay.reach(PEER, &open(port)).await.unwrap_err(), Refusal::Busy);
    assert_eq!(
        relay.gate().dial(PEER, now()),
        Err(Full),
        "four were made, of six"
    );
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(10_000))]

    /// What is asked of the resolver is the record: nothing is resolved before the rights were looked at, and no name of
    /// this network is public, so that nothing is dialled either.
    #[test]
    fn prop_6_nothing_that_a_neighbour_asks_for_gets_further_than_its_rights(
        uplinks in proptest::collection::vec((0..3u8, proptest::bool::ANY), 1..5),
        lent in proptest::collection::vec(proptest::sample::select(vec![22u16, 80, 443, 445, 8080]), 0..4),
        asked in (proptest::sample::select(vec![0u16, 22, 80, 443, 445, 8080, 65535]), 0..8u32),
        door: bool,
    ) {
        let resolved = Arc::new(AtomicBool::new(false));
        let uplink = |(n, (lend, metered)): (usize, &(u8, bool))| Uplink {
            lend: [Lend::Nobody, Lend::Members, Lend::All][usize::from(*lend)],
            metered: *metered,
            ..uplink(n as u32, "wan")
        };
        let network = Network {
            interfaces: vec![],
            uplinks: uplinks.iter().enumerate().map(uplink).collect(),
        };
        let config = Config { ports: lent.clone(), lend_to_neighbours: door, ..Config::default() };
        let record = Arc::clone(&resolved);
        let resolver = Resolver::with_lookup(Names::new(), move |_| {
            record.store(true, Ordering::Relaxed);
            Box::pin(async { Ok(vec![IpAddr::from([10, 0, 0, 1])]) })
        });
        let (_, receiver) = watch::channel(Arc::new(network.clone()));
        let (port, index) = asked;
        let reached = tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(async {
            let relay = Relay::with_resolver(config, resolver, receiver, &Tasks::new());
            relay.reach(NEIGHBOUR, &Open { uplink: index, ..open(port) }).await
        });
        proptest::prop_assert!(reached.is_err());
        let its = network.uplinks.get(index as usize).is_some_and(|u| u.lend == Lend::All && !u.metered);
        let right = door && its && [80, 443].contains(&port) && lent.contains(&port);
        proptest::prop_assert_eq!(resolved.load(Ordering::Relaxed), right);
    }
}
