//! An interface's settings below /proc/sys/net. Pure.

use netlink_packet_route::link::{
    AfSpecInet, AfSpecInet6, AfSpecUnspec, Inet6DevConf, InetDevConf, InfoKind, LinkInfo,
};
use rvm_protocol::agent::InterfaceSetting;

/// A setting that a guest's interface has as the host's: its name, the value that a kernel gives a
/// new interface, and where it is found.
type Setting<T> = (&'static str, i32, fn(&T) -> i32);

const INET: &[Setting<InetDevConf>] = &[
    ("accept_local", 0, |conf| conf.accept_local),
    ("accept_redirects", 1, |conf| conf.accept_redirects),
    ("arp_accept", 0, |conf| conf.arp_accept),
    ("arp_announce", 0, |conf| conf.arp_announce),
    ("arp_ignore", 0, |conf| conf.arp_ignore),
    ("arp_notify", 0, |conf| conf.arp_notify),
    ("proxy_arp", 0, |conf| conf.proxy_arp),
    ("route_localnet", 0, |conf| conf.route_localnet),
    ("rp_filter", 0, |conf| conf.rp_filter),
    ("send_redirects", 1, |conf| conf.send_redirects),
];

const INET6: &[Setting<Inet6DevConf>] = &[
    ("accept_ra", 1, |conf| conf.accept_ra),
    ("accept_redirects", 1, |conf| conf.accept_redirects),
    ("autoconf", 1, |conf| conf.autoconf),
    ("disable_ipv6", 0, |conf| conf.disable_ipv6),
    ("proxy_ndp", 0, |conf| conf.proxy_ndp),
    ("use_tempaddr", 0, |conf| conf.use_tempaddr),
];

/// The settings of an interface that are not as a kernel makes them.
pub fn of(specs: &[AfSpecUnspec]) -> Vec<InterfaceSetting> {
    let mut settings = Vec::new();
    for spec in specs {
        match spec {
            AfSpecUnspec::Inet(list) => {
                for spec in list {
                    if let AfSpecInet::DevConf(conf) = spec {
                        settings.extend(changed("ipv4", INET, conf));
                    }
                }
            }
            AfSpecUnspec::Inet6(list) => {
                for spec in list {
                    if let AfSpecInet6::DevConf(conf) = spec {
                        settings.extend(changed("ipv6", INET6, conf));
                    }
                }
            }
            _ => {}
        }
    }
    settings
}

fn changed<T>(
    family: &str,
    settings: &[Setting<T>],
    conf: &T,
) -> impl Iterator<Item = InterfaceSetting> {
    settings.iter().filter_map(move |(name, default, value)| {
        let value = value(conf);
        (value != *default).then(|| InterfaceSetting {
            family: family.to_owned(),
            name: (*name).to_owned(),
            value,
            ..Default::default()
        })
    })
}

/// What kind of interface it is, where the kernel says.
pub fn kind(infos: &[LinkInfo]) -> Option<InfoKind> {
    infos.iter().find_map(|info| match info {
        LinkInfo::Kind(kind) => Some(kind.clone()),
        _ => None,
    })
}
