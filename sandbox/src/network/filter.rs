//! Messages about filters for the packets that arrive at an interface: tc-u32(8), tc-mirred(8). Pure.
//!
//! u32 and not matchall, which not every kernel has.

use netlink_packet_route::tc::{
    TcAction, TcActionAttribute, TcActionMirror, TcActionMirrorOption, TcActionOption,
    TcActionType, TcAttribute, TcFilterU32, TcFilterU32Option, TcHandle, TcHeader, TcMessage,
    TcMirror, TcMirrorActionType, TcOption, TcU32Key, TcU32Selector, TcU32SelectorFlags,
};

/// A filter's place among those of an interface: lower priorities come first, and all filters of a
/// priority are for one protocol.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// The priority.
    pub priority: u16,
    /// ETH_P_*.
    pub protocol: libc::c_int,
}

/// Bits of a packet: these of the four bytes at this offset, from the network header on, must have
/// this value.
#[derive(Clone, Copy, Debug)]
pub struct Bits {
    /// A multiple of four.
    pub offset: i32,
    /// Which bits, the first byte's in front.
    pub mask: u32,
    /// What they are.
    pub value: u32,
}

/// What becomes of the packets that a filter is for.
#[derive(Clone, Copy, Debug)]
pub enum Fate {
    /// They leave by this interface and nothing else sees them.
    Redirect(u32),
    /// A copy leaves by this interface, and they go on.
    Copy(u32),
    /// They go on, past the filters that follow.
    Pass,
}

/// Where filters for what arrives hang, whether from an ingress or a clsact queue.
const INGRESS: TcHandle = TcHandle {
    major: TcHandle::INGRESS.major,
    minor: TcHandle::MIN_INGRESS,
};

fn message(index: u32) -> TcMessage {
    TcMessage::with_index(index.cast_signed())
}

/// What filters for what arrives hang from.
pub fn queue(index: u32) -> TcMessage {
    let mut message = message(index);
    message.header.handle = TcHandle {
        major: TcHandle::INGRESS.major,
        minor: 0,
    };
    message.header.parent = TcHandle::INGRESS;
    message.attributes = vec![TcAttribute::Kind("ingress".to_owned())];
    message
}

/// All filters of an interface.
pub fn all(index: u32) -> TcMessage {
    let mut message = message(index);
    message.header.parent = INGRESS;
    message
}

/// The filters in a place.
pub fn at(index: u32, place: Place) -> TcMessage {
    let message = message(index);
    // The protocol is in network byte order.
    let protocol = (place.protocol as u16).to_be();
    TcMessage::from_parts(
        TcHeader {
            parent: INGRESS,
            info: u32::from(place.priority) << 16 | u32::from(protocol),
            ..message.header
        },
        vec![TcAttribute::Kind(TcFilterU32::KIND.to_owned())],
    )
}

/// A new filter for the packets that have all of these bits.
pub fn new(index: u32, place: Place, bits: &[Bits], fate: Fate) -> TcMessage {
    let mut message = at(index, place);
    let mut options = vec![TcFilterU32Option::Selector(selector(bits))];
    options.extend(action(fate).map(|action| TcFilterU32Option::Action(vec![action])));
    let options = options.into_iter().map(TcOption::U32).collect();
    message.attributes.push(TcAttribute::Options(options));
    message
}

fn selector(bits: &[Bits]) -> TcU32Selector {
    // One key there must be.
    const NONE: Bits = Bits {
        offset: 0,
        mask: 0,
        value: 0,
    };
    let bits = if bits.is_empty() { &[NONE] } else { bits };
    let key = |bits: &Bits| {
        let mut key = TcU32Key::default();
        (key.off, key.mask, key.val) = (bits.offset, bits.mask, bits.value);
        key
    };
    let mut selector = TcU32Selector::default();
    selector.flags = TcU32SelectorFlags::Terminal;
    selector.keys = bits.iter().map(key).collect();
    selector.nkeys = selector.keys.len() as u8;
    selector
}

fn action(fate: Fate) -> Option<TcAction> {
    let mut mirror = TcMirror::default();
    (mirror.eaction, mirror.generic.action, mirror.ifindex) = match fate {
        Fate::Redirect(to) => (TcMirrorActionType::EgressRedir, TcActionType::Stolen, to),
        Fate::Copy(to) => (TcMirrorActionType::EgressMirror, TcActionType::Ok, to),
        // A filter without action lets pass.
        Fate::Pass => return None,
    };
    let options = TcActionOption::Mirror(TcActionMirrorOption::Parms(mirror));
    let mut action = TcAction::default();
    action.attributes = vec![
        TcActionAttribute::Kind(TcActionMirror::KIND.to_owned()),
        TcActionAttribute::Options(vec![options]),
    ];
    Some(action)
}
