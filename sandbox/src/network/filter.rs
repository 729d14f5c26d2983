//! rtnetlink messages for an interface's ingress filters: tc-u32(8), tc-mirred(8). Pure.
//!
//! The filters use u32, because not every kernel has matchall.

use netlink_packet_route::tc::{
    TcAction, TcActionAttribute, TcActionMirror, TcActionMirrorOption, TcActionOption,
    TcActionType, TcAttribute, TcFilterU32, TcFilterU32Option, TcHandle, TcHeader, TcMessage,
    TcMirror, TcMirrorActionType, TcOption, TcU32Key, TcU32Selector, TcU32SelectorFlags,
};

/// The position of a filter in an interface's list. The kernel tries lower priorities first, and
/// all filters of one priority have the same protocol.
#[derive(Clone, Copy, Debug)]
pub struct Slot {
    pub priority: u16,
    /// ETH_P_*.
    pub protocol: libc::c_int,
}

/// A u32 key: the masked big-endian word at an offset of the packet must have this value.
#[derive(Clone, Copy, Debug)]
pub struct Match {
    /// In bytes from the network header, a multiple of four.
    pub offset: i32,
    pub mask: u32,
    pub value: u32,
}

/// What a filter does with the packets that match.
#[derive(Clone, Copy, Debug)]
pub enum Action {
    /// Sends them out of the interface with this index; the host's network does not see them.
    Redirect(u32),
    /// Sends a copy out of the interface with this index, and passes them.
    Copy(u32),
    /// Passes them to the host's network; later filters do not see them.
    Pass,
}

/// The parent of ingress filters, with an ingress as well as with a clsact qdisc.
const INGRESS: TcHandle = TcHandle {
    major: TcHandle::INGRESS.major,
    minor: TcHandle::MIN_INGRESS,
};

fn message(index: u32) -> TcMessage {
    TcMessage::with_index(index.cast_signed())
}

/// The qdisc that ingress filters belong to.
pub fn ingress_qdisc(index: u32) -> TcMessage {
    let mut message = message(index);
    message.header.handle = TcHandle {
        major: TcHandle::INGRESS.major,
        minor: 0,
    };
    message.header.parent = TcHandle::INGRESS;
    message.attributes = vec![TcAttribute::Kind("ingress".to_owned())];
    message
}

/// All ingress filters of an interface.
pub fn all(index: u32) -> TcMessage {
    let mut message = message(index);
    message.header.parent = INGRESS;
    message
}

/// The filters in a slot.
pub fn at(index: u32, slot: Slot) -> TcMessage {
    let message = message(index);
    // The protocol is in network byte order.
    let protocol = (slot.protocol as u16).to_be();
    TcMessage::from_parts(
        TcHeader {
            parent: INGRESS,
            info: u32::from(slot.priority) << 16 | u32::from(protocol),
            ..message.header
        },
        vec![TcAttribute::Kind(TcFilterU32::KIND.to_owned())],
    )
}

/// A new filter for the packets that match all of `keys`.
pub fn new(index: u32, slot: Slot, keys: &[Match], action: Action) -> TcMessage {
    let mut message = at(index, slot);
    let mut options = vec![TcFilterU32Option::Selector(selector(keys))];
    options.extend(tc_action(action).map(|action| TcFilterU32Option::Action(vec![action])));
    let options = options.into_iter().map(TcOption::U32).collect();
    message.attributes.push(TcAttribute::Options(options));
    message
}

fn selector(keys: &[Match]) -> TcU32Selector {
    // The kernel requires one key.
    const ANY: Match = Match {
        offset: 0,
        mask: 0,
        value: 0,
    };
    let keys = if keys.is_empty() { &[ANY] } else { keys };
    let key = |field: &Match| {
        let mut key = TcU32Key::default();
        (key.off, key.mask, key.val) = (field.offset, field.mask, field.value);
        key
    };
    let mut selector = TcU32Selector::default();
    selector.flags = TcU32SelectorFlags::Terminal;
    selector.keys = keys.iter().map(key).collect();
    selector.nkeys = selector.keys.len() as u8;
    selector
}

fn tc_action(action: Action) -> Option<TcAction> {
    let mut mirror = TcMirror::default();
    (mirror.eaction, mirror.generic.action, mirror.ifindex) = match action {
        Action::Redirect(to) => (TcMirrorActionType::EgressRedir, TcActionType::Stolen, to),
        Action::Copy(to) => (TcMirrorActionType::EgressMirror, TcActionType::Ok, to),
        // A filter without an action passes.
        Action::Pass => return None,
    };
    let options = TcActionOption::Mirror(TcActionMirrorOption::Parms(mirror));
    let mut action = TcAction::default();
    action.attributes = vec![
        TcActionAttribute::Kind(TcActionMirror::KIND.to_owned()),
        TcActionAttribute::Options(vec![options]),
    ];
    Some(action)
}
