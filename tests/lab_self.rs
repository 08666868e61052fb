//! The lab measured by itself: what it promises about rates, delays and losses must be so before anything else is
//! measured with it.

mod lab;

use lab::{Lab, figure, uplink};

#[test]
fn a_wire_carries_its_rate_and_not_more() {
    let Some(lab) = Lab::new() else { return };
    let lab = lab.peer("peer", uplink(20.0, 10.0).delay_ms(15));
    let origin = lab.origin("origin.lab");
    let peer = lab.at("peer");
    let mut curl = peer.command("curl");
    curl.args(["-sS", "-o", "/dev/null", "-w", "%{time_starttransfer} %{time_total} %{speed_download}"]).arg(origin.url("10MiB"));
    let finished = peer.run("curl", curl).ok();
    figure(format_args!("{finished:?} {:?}", peer.wire(0).carried()));
}
