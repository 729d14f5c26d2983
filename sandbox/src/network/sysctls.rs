//! An interface's sysctls below net.ipv4.conf and net.ipv6.conf. Pure.

use netlink_packet_route::link::{
    AfSpecInet, AfSpecInet6, AfSpecUnspec, Inet6DevConf, InetDevConf,
};
use rvm_protocol::agent::{ConfigureNetworkRequest, InterfaceSetting};

/// A sysctl that the guest's interface copies from the host's: its name, the value of a new
/// interface, and the field of the kernel's structure.
type Sysctl<T> = (&'static str, i32, fn(&T) -> i32);

const INET: &[Sysctl<InetDevConf>] = &[
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

const INET6: &[Sysctl<Inet6DevConf>] = &[
    ("accept_ra", 1, |conf| conf.accept_ra),
    ("accept_redirects", 1, |conf| conf.accept_redirects),
    ("autoconf", 1, |conf| conf.autoconf),
    ("disable_ipv6", 0, |conf| conf.disable_ipv6),
    ("proxy_ndp", 0, |conf| conf.proxy_ndp),
    ("use_tempaddr", 0, |conf| conf.use_tempaddr),
];

/// The sysctls of an interface that do not have the value of a new interface.
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
    settings: &[Sysctl<T>],
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

/// Adds the sysctls that `earlier` set and that have their default value again.
pub fn add_defaults(request: &mut ConfigureNetworkRequest, earlier: &ConfigureNetworkRequest) {
    for interface in &mut request.interfaces {
        let same_nic = earlier
            .interfaces
            .iter()
            .find(|other| other.card == interface.card);
        let Some(earlier) = same_nic else { continue };
        for old in &earlier.settings {
            let is_old =
                |new: &InterfaceSetting| (&new.family, &new.name) == (&old.family, &old.name);
            if let (false, Some(value)) = (interface.settings.iter().any(is_old), default_of(old)) {
                interface.settings.push(InterfaceSetting {
                    value,
                    ..old.clone()
                });
            }
        }
    }
}

fn default_of(setting: &InterfaceSetting) -> Option<i32> {
    let inet = INET
        .iter()
        .map(|(name, default, _)| ("ipv4", *name, *default));
    let inet6 = INET6
        .iter()
        .map(|(name, default, _)| ("ipv6", *name, *default));
    let mut all = inet.chain(inet6);
    let found = all.find(|(family, name, _)| setting.family == *family && setting.name == *name);
    found.map(|(_, _, default)| default)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rvm_protocol::agent::Interface;

    fn request(nic: u8, settings: &[(&str, &str, i32)]) -> ConfigureNetworkRequest {
        let settings = settings
            .iter()
            .map(|&(family, name, value)| InterfaceSetting {
                family: family.to_owned(),
                name: name.to_owned(),
                value,
                ..Default::default()
            });
        let interface = Interface {
            card: vec![nic; 6],
            settings: settings.collect(),
            ..Default::default()
        };
        ConfigureNetworkRequest {
            interfaces: vec![interface],
            ..Default::default()
        }
    }

    #[test]
    fn a_setting_that_has_its_default_again_is_sent_with_it() {
        let earlier = [
            ("ipv4", "proxy_arp", 1),
            ("ipv6", "accept_redirects", 0),
            ("ipv4", "rp_filter", 1),
        ];
        let mut now = request(2, &[("ipv4", "rp_filter", 2)]);
        add_defaults(&mut now, &request(2, &earlier));
        let expected = [
            ("ipv4", "rp_filter", 2),
            ("ipv4", "proxy_arp", 0),
            ("ipv6", "accept_redirects", 1),
        ];
        assert_eq!(now, request(2, &expected));
    }

    #[test]
    fn another_nic_has_its_defaults_already() {
        let mut now = request(3, &[]);
        add_defaults(&mut now, &request(2, &[("ipv4", "proxy_arp", 1)]));
        assert_eq!(now, request(3, &[]));
    }
}
