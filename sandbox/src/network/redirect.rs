//! The way between an interface and a TAP: what arrives at one leaves by the other, before the
//! host's own network sees it. See tc-mirred(8) and tc-u32(8).
//!
//! u32 and not matchall, which not every kernel has.

use std::io;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{
    TcAction, TcActionAttribute, TcActionMirror, TcActionMirrorOption, TcActionOption,
    TcActionType, TcAttribute, TcFilterU32, TcFilterU32Option, TcHandle, TcHeader, TcMessage,
    TcMirror, TcMirrorActionType, TcOption, TcU32Key, TcU32Selector, TcU32SelectorFlags,
};

use super::netlink::Netlink;

/// The filter's priority, which also tells it from others' filters. Those that people make, to limit
/// bandwidth for one, come before it and still see every packet.
const PRIORITY: u32 = 0x7276;

/// ETH_P_ALL, in network byte order as filters have it.
const ALL_PROTOCOLS: u16 = (libc::ETH_P_ALL as u16).to_be();

/// Passes on to interface `to` all that arrives at interface `from`.
///
/// Whatever is done here and in [`remove`] is done at once: a queue without the filter would not be
/// known for what it is, and stay if this process is killed.
pub fn start(netlink: &mut Netlink, from: u32, to: u32) -> io::Result<()> {
    let create = NLM_F_CREATE | NLM_F_EXCL;
    let old = RouteNetlinkMessage::DelTrafficFilter(filter(from, None));
    let queue = RouteNetlinkMessage::NewQueueDiscipline(qdisc(from));
    let new = RouteNetlinkMessage::NewTrafficFilter(filter(from, Some(to)));
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
    match netlink.change(RouteNetlinkMessage::DelTrafficFilter(filter(from, None)), 0) {
        Err(error) if is_gone(&error) => Ok(false),
        other => other.map(|()| true),
    }
}

/// Ends that, and removes what the filter hung from, unless there are others.
pub fn remove(netlink: &mut Netlink, from: u32) -> io::Result<()> {
    let mut priorities = priorities(netlink, from)?;
    if !priorities.contains(&PRIORITY) {
        return Ok(());
    }
    priorities.retain(|priority| *priority != PRIORITY);
    if !priorities.is_empty() {
        return stop(netlink, from).map(|_| ());
    }
    match netlink.change(RouteNetlinkMessage::DelQueueDiscipline(qdisc(from)), 0) {
        Err(error) if is_gone(&error) => Ok(()),
        other => other,
    }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOENT | libc::ENODEV | libc::EINVAL)
    )
}

/// The priorities of the filters for what arrives at an interface.
fn priorities(netlink: &mut Netlink, index: u32) -> io::Result<Vec<u32>> {
    let mut request = message(index);
    request.header.parent = ingress();
    let filters = match netlink.dump(&RouteNetlinkMessage::GetTrafficFilter(request)) {
        Err(error) if is_gone(&error) => return Ok(Vec::new()),
        other => other?,
    };
    let priority = |message| match message {
        RouteNetlinkMessage::NewTrafficFilter(filter) => Some(filter.header.info >> 16),
        _ => None,
    };
    Ok(filters.into_iter().filter_map(priority).collect())
}

fn message(index: u32) -> TcMessage {
    TcMessage::with_index(index.cast_signed())
}

/// Where filters for what arrives hang, whether from an ingress or a clsact queue.
fn ingress() -> TcHandle {
    TcHandle {
        major: TcHandle::INGRESS.major,
        minor: TcHandle::MIN_INGRESS,
    }
}

fn qdisc(index: u32) -> TcMessage {
    let mut message = message(index);
    message.header.handle = TcHandle {
        major: TcHandle::INGRESS.major,
        minor: 0,
    };
    message.header.parent = TcHandle::INGRESS;
    message.attributes = vec![TcAttribute::Kind("ingress".to_owned())];
    message
}

/// The filter that takes everything; without a target, enough of it to find it.
fn filter(index: u32, target: Option<u32>) -> TcMessage {
    let mut message = message(index);
    message.header = TcHeader {
        parent: ingress(),
        info: PRIORITY << 16 | u32::from(ALL_PROTOCOLS),
        ..message.header
    };
    message.attributes = vec![TcAttribute::Kind(TcFilterU32::KIND.to_owned())];
    if let Some(target) = target {
        let options = [
            TcFilterU32Option::Selector(everything()),
            TcFilterU32Option::Action(vec![redirect(target)]),
        ];
        let options = options.into_iter().map(TcOption::U32).collect();
        message.attributes.push(TcAttribute::Options(options));
    }
    message
}

/// No bit of the first word needs to be anything.
fn everything() -> TcU32Selector {
    let mut selector = TcU32Selector::default();
    selector.flags = TcU32SelectorFlags::Terminal;
    selector.nkeys = 1;
    selector.keys = vec![TcU32Key::default()];
    selector
}

fn redirect(target: u32) -> TcAction {
    let mut mirror = TcMirror::default();
    mirror.generic.action = TcActionType::Stolen;
    mirror.eaction = TcMirrorActionType::EgressRedir;
    mirror.ifindex = target;
    let mut action = TcAction::default();
    action.attributes = vec![
        TcActionAttribute::Kind(TcActionMirror::KIND.to_owned()),
        TcActionAttribute::Options(vec![TcActionOption::Mirror(TcActionMirrorOption::Parms(
            mirror,
        ))]),
    ];
    action
}
