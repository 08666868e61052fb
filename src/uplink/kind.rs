//! What an interface looks like: its name, the kind netlink reports for virtual ones, and what sysfs says of hardware.
//!
//! A wrong guess towards *cellular* costs speed until the owner says otherwise; a wrong guess the other way costs money.

use std::path::Path;

use crate::types::UplinkKind;

/// Drivers of modems and of phones that share their connection over USB.
const TETHER_DRIVERS: &[&str] = &[
    "rndis_host",
    "ipheth",
    "cdc_ether",
    "cdc_ncm",
    "cdc_mbim",
    "cdc_eem",
    "cdc_subset",
    "huawei_cdc_ncm",
    "qmi_wwan",
    "sierra_net",
    "hso",
];
/// Names that modems' interfaces get.
const MODEM_NAMES: &[&str] = &["wwan", "wwp", "wwx", "rmnet", "ppp"];
/// Virtual kinds that are a view of a cable.
const CABLE_KINDS: &[&str] = &["vlan", "bond", "team", "macvlan", "macvtap", "ipvlan", "dsa"];

/// What sysfs tells about an interface; all false or empty for a virtual one.
#[derive(Clone, Debug, Default)]
pub(super) struct Hardware {
    wireless: bool,
    wwan: bool,
    driver: Option<String>,
}

/// Reads `/sys/class/net/NAME`. What cannot be read counts as not there: a sandbox may hide sysfs.
pub(super) async fn hardware(name: &str) -> Hardware {
    if name.contains('/') || name.starts_with('.') {
        return Hardware::default();
    }
    let dir = Path::new("/sys/class/net").join(name);
    let exists = async |entry| tokio::fs::try_exists(dir.join(entry)).await.unwrap_or(false);
    let uevent = tokio::fs::read_to_string(dir.join("uevent"))
        .await
        .unwrap_or_default();
    let driver = tokio::fs::read_link(dir.join("device/driver")).await.ok();
    Hardware {
        wireless: exists("wireless").await || exists("phy80211").await,
        wwan: uevent.lines().any(|line| line == "DEVTYPE=wwan"),
        driver: driver.and_then(|d| Some(d.file_name()?.to_str()?.to_owned())),
    }
}

/// The kind of the interface `name`, whose virtual kind (as netlink calls it) is `info` if it has one.
pub(super) fn classify(name: &str, info: Option<&str>, hardware: &Hardware) -> UplinkKind {
    let modem = |prefix: &&str| {
        let rest = name.strip_prefix(*prefix);
        rest.is_some_and(|r| r.starts_with(|c: char| c.is_ascii_hexdigit()))
    };
    let tether = |driver: &String| TETHER_DRIVERS.contains(&driver.as_str());
    if hardware.wwan
        || matches!(info, Some("wwan" | "rmnet" | "ppp"))
        || MODEM_NAMES.iter().any(modem)
        || hardware.driver.as_ref().is_some_and(tether)
    {
        return UplinkKind::Cellular;
    }
    match info {
        _ if hardware.wireless => UplinkKind::Wireless,
        Some(info) if !CABLE_KINDS.contains(&info) => UplinkKind::Virtual,
        _ => UplinkKind::Wired,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(name: &str, info: Option<&str>) -> UplinkKind {
        classify(name, info, &Hardware::default())
    }

    #[test]
    fn tunnels_bridges_and_containers_ends_are_virtual_and_vlans_are_cables() {
        for info in ["veth", "tun", "wireguard", "bridge", "gre"] {
            assert_eq!(kind("x0", Some(info)), UplinkKind::Virtual, "{info}");
        }
        assert_eq!(kind("eth0.7", Some("vlan")), UplinkKind::Wired);
        assert_eq!(kind("eth0", None), UplinkKind::Wired);
    }

    #[test]
    fn modems_and_tethered_phones_are_cellular() {
        for name in ["wwan0", "wwp0s20u4", "wwx0a1b2c3d4e5f", "rmnet0", "ppp0"] {
            assert_eq!(kind(name, None), UplinkKind::Cellular, "{name}");
        }
        for driver in ["rndis_host", "cdc_ether", "cdc_mbim", "ipheth"] {
            let hardware = Hardware {
                driver: Some(driver.into()),
                ..Hardware::default()
            };
            assert_eq!(
                classify("enx0a1b2c3d4e5f", None, &hardware),
                UplinkKind::Cellular,
                "{driver}"
            );
        }
        let hardware = Hardware {
            wwan: true,
            ..Hardware::default()
        };
        assert_eq!(classify("mobile", None, &hardware), UplinkKind::Cellular);
    }

    #[test]
    fn names_that_only_begin_alike_are_not_modems() {
        for name in ["usb0", "pppoe-wan", "wwanna"] {
            assert_ne!(kind(name, None), UplinkKind::Cellular, "{name}");
        }
    }

    #[test]
    fn wifi_is_wireless_by_whatever_name() {
        let hardware = Hardware {
            wireless: true,
            driver: Some("brcmfmac".into()),
            ..Hardware::default()
        };
        assert_eq!(classify("lan7", None, &hardware), UplinkKind::Wireless);
    }

    #[tokio::test]
    async fn names_that_would_leave_sysfs_are_not_looked_up() {
        let hardware = hardware("../../etc").await;
        assert!(!hardware.wireless && !hardware.wwan && hardware.driver.is_none());
    }
}
