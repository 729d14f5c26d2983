//! Redirects every packet that arrives at an interface to a TAP and back, before the host's network
//! stack sees it.

use std::io;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::TcMessage;

use super::filter::{self, Action, Slot};
use super::host_dns;
use super::netlink::Netlink;

/// The slot of the filter that redirects every packet; the priority tells it from others' filters.
/// Filters that administrators add, to limit bandwidth for one, come first and see every packet.
const CATCH_ALL: Slot = Slot {
    priority: 0x7276,
    protocol: libc::ETH_P_ALL,
};

/// Redirects all packets that arrive at interface `from` to interface `to`.
///
/// The changes here and in [`remove`] are made in one system call each: after a SIGKILL between the
/// qdisc and its filter nothing would identify the qdisc as rvm's, and it would stay.
pub fn start(netlink: &mut Netlink, from: u32, to: u32) -> io::Result<()> {
    // Filters of a dead sandbox.
    for slot in host_dns::SLOTS {
        remove_at(netlink, from, slot)?;
    }
    let create = NLM_F_CREATE | NLM_F_EXCL;
    let old = RouteNetlinkMessage::DelTrafficFilter(filter::at(from, CATCH_ALL));
    let qdisc = RouteNetlinkMessage::NewQueueDiscipline(filter::ingress_qdisc(from));
    let catch_all = filter::new(from, CATCH_ALL, &[], Action::Redirect(to));
    let new = RouteNetlinkMessage::NewTrafficFilter(catch_all);
    let [stopped, queued, started] =
        netlink.change_all([(old, 0), (qdisc, create), (new, create)])?;
    match stopped {
        // No dead sandbox has left a filter.
        Err(error) if !is_absent(&error) => return Err(error),
        _ => {}
    }
    match queued {
        // Another program's or a dead sandbox's qdisc: it takes filters, too.
        Err(error) if error.raw_os_error() != Some(libc::EEXIST) => Err(error),
        _ => started,
    }
}

/// Removes the filters. False if there were none, or the interface is gone.
pub fn stop(netlink: &mut Netlink, from: u32) -> io::Result<bool> {
    for slot in host_dns::SLOTS {
        remove_at(netlink, from, slot)?;
    }
    remove_at(netlink, from, CATCH_ALL)
}

/// Removes the filters, and the qdisc unless it has other filters.
pub fn remove(netlink: &mut Netlink, from: u32) -> io::Result<()> {
    let priorities = priorities(netlink, from)?;
    if !priorities.contains(&CATCH_ALL.priority) {
        return Ok(());
    }
    let ours = |priority: &u16| {
        let slots = host_dns::SLOTS.iter().chain([&CATCH_ALL]);
        slots.into_iter().any(|slot| slot.priority == *priority)
    };
    if !priorities.iter().all(ours) {
        return stop(netlink, from).map(|_| ());
    }
    let qdisc = filter::ingress_qdisc(from);
    match netlink.change(RouteNetlinkMessage::DelQueueDiscipline(qdisc), 0) {
        Err(error) if is_absent(&error) => Ok(()),
        other => other,
    }
}

pub fn add(netlink: &mut Netlink, filter: TcMessage) -> io::Result<()> {
    let filter = RouteNetlinkMessage::NewTrafficFilter(filter);
    netlink.change(filter, NLM_F_CREATE | NLM_F_EXCL)
}

/// Removes the filters in a slot. False if there were none, or the interface is gone.
fn remove_at(netlink: &mut Netlink, from: u32, slot: Slot) -> io::Result<bool> {
    let filters = RouteNetlinkMessage::DelTrafficFilter(filter::at(from, slot));
    match netlink.change(filters, 0) {
        Err(error) if is_absent(&error) => Ok(false),
        other => other.map(|()| true),
    }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOENT | libc::ENODEV | libc::EINVAL)
    )
}

/// The priorities of an interface's ingress filters.
fn priorities(netlink: &mut Netlink, index: u32) -> io::Result<Vec<u16>> {
    let all = RouteNetlinkMessage::GetTrafficFilter(filter::all(index));
    let filters = match netlink.dump(&all) {
        Err(error) if is_absent(&error) => return Ok(Vec::new()),
        other => other?,
    };
    let priority = |message| match message {
        RouteNetlinkMessage::NewTrafficFilter(filter) => Some((filter.header.info >> 16) as u16),
        _ => None,
    };
    Ok(filters.into_iter().filter_map(priority).collect())
}
