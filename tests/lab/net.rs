//! Links, addresses and routes of the namespace the calling thread is in, by netlink: no `ip` needed.

use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;

use nix::libc;
use nix::net::if_::if_nametoindex;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use rtnetlink::packet_route::route::RouteScope;
use rtnetlink::{Error, Handle, LinkBridge, LinkBridgePort, LinkUnspec, LinkVeth, RouteMessageBuilder};
use tributary::task::Tasks;

use super::ns::Namespace;

/// Packets a TUN device holds until the forwarder reads them: 100 ms of 400 Mbit/s, should it be held up.
const TUN_QUEUE: u32 = 4000;

nix::ioctl_write_int!(tunsetiff, b'T', 202);

/// A new TUN device of this namespace; it goes with the returned descriptor, whose reads do not block.
pub fn tun(name: &str) -> io::Result<File> {
    let file = File::options().read(true).write(true).open("/dev/net/tun")?;
    let mut name_field = [0; libc::IFNAMSIZ];
    for (field, byte) in name_field.iter_mut().zip(name.bytes().take(libc::IFNAMSIZ - 1)) {
        *field = byte as libc::c_char;
    }
    let flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    let request = libc::ifreq {
        ifr_name: name_field,
        ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: flags },
    };
    #[expect(unsafe_code, reason = "neither std nor nix wraps TUNSETIFF")]
    // SAFETY: the descriptor is open and `request` outlives the call, which reads one `ifreq` from it.
    unsafe { tunsetiff(file.as_raw_fd(), &raw const request as libc::c_ulong) }?;
    let flags = nix::fcntl::OFlag::O_NONBLOCK;
    nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_SETFL(flags))?;
    Ok(file)
}

/// A switch.
pub fn bridge(name: &'static str) -> io::Result<()> {
    netlink(async |handle| {
        handle
            .link()
            .add(LinkBridge::new(name).up().build())
            .execute()
            .await
    })
}

/// A cable from this namespace (`near`, plugged into `switch`) to another (`far`).
pub fn cable(near: &str, switch: &str, far: &str, to: &Namespace) -> io::Result<()> {
    netlink(async |handle| {
        handle
            .link()
            .add(LinkVeth::new(near, far).build())
            .execute()
            .await
    })?;
    let (near, switch, far) = (index(near)?, index(switch)?, index(far)?);
    let there = to.net().as_raw_fd();
    netlink(async |handle| {
        let moved = LinkUnspec::new_with_index(far).setns_by_fd(there).build();
        handle.link().set(moved).execute().await?;
        let plugged = LinkUnspec::new_with_index(near).controller(switch).up().build();
        handle.link().set(plugged).execute().await
    })
}

/// Sets an interface up or down.
pub fn set_up(name: &str, up: bool) -> io::Result<()> {
    let link = LinkUnspec::new_with_index(index(name)?);
    let link = if up { link.up() } else { link.down() };
    netlink(async |handle| handle.link().set(link.build()).execute().await)
}

/// Plugs a cable's near end into another switch.
pub fn plug(port: &str, switch: &str) -> io::Result<()> {
    let link = LinkUnspec::new_with_index(index(port)?)
        .controller(index(switch)?)
        .up();
    netlink(async |handle| handle.link().set(link.build()).execute().await)
}

/// Whether a switch's port is sent what comes in for many.
pub fn flood_multicast(port: &str, passes: bool) -> io::Result<()> {
    let port = LinkBridgePort::new(index(port)?).mcast_flood(passes).build();
    netlink(async |handle| handle.link().set_port(port).execute().await)
}

/// Gives a TUN device a queue that does not lose what the forwarder has not read yet, and sets it up. IPv6 only where it
/// is asked for, and then without a word of its own: router solicitations would be counted as traffic.
pub fn start_tun(name: &str, v6: bool) -> io::Result<()> {
    let set = |what: &str, value: &str| fs::write(format!("/proc/sys/net/ipv6/conf/{name}/{what}"), value);
    let _ = set("disable_ipv6", if v6 { "0" } else { "1" });
    for (what, value) in [
        ("addr_gen_mode", "1"),
        ("router_solicitations", "0"),
        ("accept_ra", "0"),
    ] {
        let _ = set(what, value);
    }
    let link = LinkUnspec::new_with_index(index(name)?)
        .txqueuelen(TUN_QUEUE)
        .up()
        .build();
    netlink(async |handle| handle.link().set(link).execute().await)
}

/// Gives an interface that is down another name.
pub fn rename(name: &str, to: &str) -> io::Result<()> {
    let link = LinkUnspec::new_with_index(index(name)?).name(to).build();
    netlink(async |handle| handle.link().set(link).execute().await)
}

/// Takes from this interface only what the routes would answer through it, as a provider does (BCP 38): a program that
/// binds an address but not its interface does not get through.
pub fn check_sources(name: &str) -> io::Result<()> {
    fs::write(format!("/proc/sys/net/ipv4/conf/{name}/rp_filter"), "1")
}

/// Adds an address.
pub fn add_address(name: &str, address: impl Into<IpAddr>, prefix: u8) -> io::Result<()> {
    let (link, address) = (index(name)?, address.into());
    netlink(async |handle| {
        let mut request = handle.address().add(link, address, prefix);
        if address.is_ipv6() {
            // Else nobody can bind it until the kernel finds the time to see that nobody else has it.
            request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
        }
        request.execute().await
    })
}

/// Takes an address away.
pub fn remove_address(name: &str, address: impl Into<IpAddr>, prefix: u8) -> io::Result<()> {
    let address = address.into();
    let mut message = AddressMessage::default();
    message.header.family = family(address);
    message.header.prefix_len = prefix;
    message.header.index = index(name)?;
    message.attributes = vec![AddressAttribute::Local(address)];
    netlink(async |handle| handle.address().del(message).execute().await)
}

/// Adds a route through an interface without a gateway; prefix 0 is the default route.
pub fn add_route(name: &str, to: impl Into<IpAddr>, prefix: u8, metric: u32) -> io::Result<()> {
    let link = index(name)?;
    let route = match to.into() {
        IpAddr::V4(to) => RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(to, prefix)
            .output_interface(link)
            .scope(RouteScope::Link)
            .priority(metric)
            .build(),
        IpAddr::V6(to) => RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(to, prefix)
            .output_interface(link)
            .priority(metric)
            .build(),
    };
    // One that is there already stays as it is.
    netlink(async |handle| handle.route().add(route).replace().execute().await)
}

const fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

/// Settings every network of the lab has, before its interfaces are there. Those a kernel lacks are left out.
pub fn tune() {
    for (setting, value) in [
        // Replies may come in by an uplink that is not the first choice for going out.
        ("ipv4/conf/all/rp_filter", "0"),
        ("ipv4/conf/default/rp_filter", "0"),
        // Link-local addresses are usable at once; nobody doubles them here.
        ("ipv6/conf/all/accept_dad", "0"),
        ("ipv6/conf/default/accept_dad", "0"),
        ("ipv6/conf/default/dad_transmits", "0"),
        // One transfer must not learn from the one before it: each run starts alike.
        ("ipv4/tcp_no_metrics_save", "1"),
        // As the origin has it, for what a peer sends.
        ("ipv4/tcp_congestion_control", "bbr"),
    ] {
        let _ = fs::write(format!("/proc/sys/net/{setting}"), value);
    }
}

fn index(name: &str) -> io::Result<u32> {
    if_nametoindex(name).map_err(|error| io::Error::other(format!("interface {name}: {error}")))
}

pub(super) fn netlink(work: impl AsyncFnOnce(Handle) -> Result<(), Error>) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let tasks = Tasks::new();
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tasks.spawn("netlink", connection);
        work(handle)
            .await
            .map_err(|error| io::Error::other(error.to_string()))
    })
}
