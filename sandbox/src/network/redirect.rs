//! The way between an interface and a TAP: what arrives at one leaves by the other, before the
//! host's own network sees it.

use std::io;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::TcMessage;

use super::answers;
use super::filter::{self, Fate, Place};
use super::netlink::Netlink;

/// Where the filter is that takes everything; the priority also tells it from others' filters. Those
/// that people make, to limit bandwidth for one, come before it and still see every packet.
const EVERYTHING: Place = Place {
    priority: 0x7276,
    protocol: libc::ETH_P_ALL,
};

/// Passes on to interface `to` all that arrives at interface `from`.
///
/// Whatever is done here and in [`remove`] is done at once: a queue without the filter would not be
/// known for what it is, and stay if this process is killed.
pub fn start(netlink: &mut Netlink, from: u32, to: u32) -> io::Result<()> {
    // A dead sandbox's, if there are any.
    for place in answers::PLACES {
        remove_at(netlink, from, place)?;
    }
    let create = NLM_F_CREATE | NLM_F_EXCL;
    let old = RouteNetlinkMessage::DelTrafficFilter(filter::at(from, EVERYTHING));
    let queue = RouteNetlinkMessage::NewQueueDiscipline(filter::queue(from));
    let everything = filter::new(from, EVERYTHING, &[], Fate::Redirect(to));
    let new = RouteNetlinkMessage::NewTrafficFilter(everything);
    let [stopped, queued, started] =
        netlink.change_all([(old, 0), (queue, create), (new, create)])?;
    match stopped {
        // A dead sandbox's, if there is one.
        Err(error) if !is_gone(&error) => return Err(error),
        _ => {}
    }
    match queued {
        // Somebody's, or a dead sandbox's: filters can be added to it.
        Err(error) if error.raw_os_error() != Some(libc::EEXIST) => Err(error),
        _ => started,
    }
}

/// Ends that. False if it was not so, or the interface is not there any more.
pub fn stop(netlink: &mut Netlink, from: u32) -> io::Result<bool> {
    for place in answers::PLACES {
        remove_at(netlink, from, place)?;
    }
    remove_at(netlink, from, EVERYTHING)
}

/// Ends that, and removes what the filter hung from, unless there are others.
pub fn remove(netlink: &mut Netlink, from: u32) -> io::Result<()> {
    let priorities = priorities(netlink, from)?;
    if !priorities.contains(&EVERYTHING.priority) {
        return Ok(());
    }
    let ours = |priority: &u16| {
        let places = answers::PLACES.iter().chain([&EVERYTHING]);
        places.into_iter().any(|place| place.priority == *priority)
    };
    if !priorities.iter().all(ours) {
        return stop(netlink, from).map(|_| ());
    }
    let queue = filter::queue(from);
    match netlink.change(RouteNetlinkMessage::DelQueueDiscipline(queue), 0) {
        Err(error) if is_gone(&error) => Ok(()),
        other => other,
    }
}

/// Adds a filter.
pub fn add(netlink: &mut Netlink, filter: TcMessage) -> io::Result<()> {
    let filter = RouteNetlinkMessage::NewTrafficFilter(filter);
    netlink.change(filter, NLM_F_CREATE | NLM_F_EXCL)
}

/// Removes the filters in a place. False if there are none, or no such interface.
pub fn remove_at(netlink: &mut Netlink, from: u32, place: Place) -> io::Result<bool> {
    let filters = RouteNetlinkMessage::DelTrafficFilter(filter::at(from, place));
    match netlink.change(filters, 0) {
        Err(error) if is_gone(&error) => Ok(false),
        other => other.map(|()| true),
    }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOENT | libc::ENODEV | libc::EINVAL)
    )
}

/// The priorities of the filters for what arrives at an interface.
fn priorities(netlink: &mut Netlink, index: u32) -> io::Result<Vec<u16>> {
    let all = RouteNetlinkMessage::GetTrafficFilter(filter::all(index));
    let filters = match netlink.dump(&all) {
        Err(error) if is_gone(&error) => return Ok(Vec::new()),
        other => other?,
    };
    let priority = |message| match message {
        RouteNetlinkMessage::NewTrafficFilter(filter) => Some((filter.header.info >> 16) as u16),
        _ => None,
    };
    Ok(filters.into_iter().filter_map(priority).collect())
}
