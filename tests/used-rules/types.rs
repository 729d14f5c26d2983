//! Where members of the kernel's structures are, by its own description (BTF).

const MAGIC: u16 = 0xeb9f;

/// `BTF_KIND_*`
const STRUCT: u32 = 4;

/// The offset of a structure's member in bytes.
pub fn offset(description: &[u8], structure: &str, member: &str) -> Option<u32> {
    let half = |at: usize| {
        Some(u16::from_ne_bytes(
            description.get(at..at + 2)?.try_into().ok()?,
        ))
    };
    let word = |at: usize| {
        Some(u32::from_ne_bytes(
            description.get(at..at + 4)?.try_into().ok()?,
        ))
    };
    if half(0)? != MAGIC {
        return None;
    }
    // struct btf_header
    let header = word(4)? as usize;
    let [types, length, strings] = [word(8)?, word(12)?, word(16)?].map(|field| field as usize);
    let is_named = |name: u32, wanted: &str| {
        let at = header + strings + name as usize;
        let text = description.get(at..at + wanted.len() + 1);
        text.is_some_and(|text| text.strip_suffix(b"\0") == Some(wanted.as_bytes()))
    };
    let mut at = header + types;
    while at < header + types + length {
        // struct btf_type
        let (name, info) = (word(at)?, word(at + 4)?);
        let (kind, count) = (info >> 24 & 0x1f, info as usize & 0xffff);
        at += 12;
        if kind == STRUCT && is_named(name, structure) {
            // struct btf_member; with the highest bit of `info` the size of a bit field is there.
            let found = (0..count)
                .find(|index| word(at + index * 12).is_some_and(|name| is_named(name, member)))?;
            let bits = word(at + found * 12 + 8)?;
            return Some(
                if info >> 31 == 1 {
                    bits & 0xff_ffff
                } else {
                    bits
                } / 8,
            );
        }
        at += match kind {
            1 | 14 | 17 => 4,
            3 => 12,
            4 | 5 | 15 | 19 => count * 12,
            6 | 13 => count * 8,
            _ => 0,
        };
    }
    None
}
