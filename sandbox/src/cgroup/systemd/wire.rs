//! The part of the D-Bus wire format that the calls of systemd need; see the D-Bus specification,
//! "Type System" and "Message Protocol". Both ends run on one host, so everything is little-endian.

pub mod kind {
    pub const CALL: u8 = 1;
    pub const RETURN: u8 = 2;
    pub const ERROR: u8 = 3;
    pub const SIGNAL: u8 = 4;
}

/// The codes of the header's fields.
mod field {
    pub const PATH: u8 = 1;
    pub const INTERFACE: u8 = 2;
    pub const MEMBER: u8 = 3;
    pub const ERROR_NAME: u8 = 4;
    pub const REPLY_SERIAL: u8 = 5;
    pub const DESTINATION: u8 = 6;
    pub const SIGNATURE: u8 = 8;
}

const LITTLE_ENDIAN: u8 = b'l';
const PROTOCOL_VERSION: u8 = 1;

/// The length of a header before its array of fields, with that array's length.
pub const FIXED_HEADER: usize = 16;

/// The longest message that is read, in bytes. Replies to our calls are short; the specification
/// allows 128 MiB.
pub const MAX_MESSAGE: usize = 1 << 20;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// `s`
    Text(String),
    /// `b`
    Flag(bool),
    /// `t`
    Number(u64),
    /// `au`
    Numbers(Vec<u32>),
    /// `ay`
    Bytes(Vec<u8>),
}

/// Marshalled values and their signature.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Body {
    signature: String,
    bytes: Vec<u8>,
}

impl Body {
    pub fn text(mut self, text: &str) -> Self {
        self.signature.push('s');
        put_text(&mut self.bytes, text);
        self
    }

    pub fn flag(mut self, flag: bool) -> Self {
        self.signature.push('b');
        put_number(&mut self.bytes, flag.into());
        self
    }

    /// Adds an array of properties.
    pub fn properties(mut self, properties: &[(&str, Value)]) -> Self {
        self.signature.push_str("a(sv)");
        put_array(&mut self.bytes, 8, |bytes| {
            for (name, value) in properties {
                pad(bytes, 8);
                put_text(bytes, name);
                put_variant(bytes, value);
            }
        });
        self
    }

    /// Adds StartTransientUnit's `aux`, an empty array of units with properties.
    pub fn empty_aux_units(mut self) -> Self {
        self.signature.push_str("a(sa(sv))");
        put_array(&mut self.bytes, 8, |_| {});
        self
    }
}

/// Marshals a method call.
pub fn call(
    serial: u32,
    destination: Option<&str>,
    path: &str,
    interface: &str,
    member: &str,
    body: &Body,
) -> Vec<u8> {
    let mut message = vec![LITTLE_ENDIAN, kind::CALL, 0, PROTOCOL_VERSION];
    put_number(&mut message, body.bytes.len() as u32);
    put_number(&mut message, serial);
    put_array(&mut message, 8, |bytes| {
        put_field(bytes, field::PATH, 'o', path);
        put_field(bytes, field::INTERFACE, 's', interface);
        put_field(bytes, field::MEMBER, 's', member);
        if let Some(destination) = destination {
            put_field(bytes, field::DESTINATION, 's', destination);
        }
        if !body.signature.is_empty() {
            pad(bytes, 8);
            bytes.push(field::SIGNATURE);
            put_signature(bytes, "g");
            put_signature(bytes, &body.signature);
        }
    });
    pad(&mut message, 8);
    message.extend(&body.bytes);
    message
}

fn pad(bytes: &mut Vec<u8>, to: usize) {
    bytes.resize(bytes.len().next_multiple_of(to), 0);
}

fn put_number(bytes: &mut Vec<u8>, number: u32) {
    pad(bytes, 4);
    bytes.extend(number.to_le_bytes());
}

fn put_text(bytes: &mut Vec<u8>, text: &str) {
    put_number(bytes, text.len() as u32);
    bytes.extend(text.as_bytes());
    bytes.push(0);
}

fn put_signature(bytes: &mut Vec<u8>, signature: &str) {
    bytes.push(signature.len() as u8);
    bytes.extend(signature.as_bytes());
    bytes.push(0);
}

/// An array's length leaves out the padding before the first element.
fn put_array(bytes: &mut Vec<u8>, align: usize, elements: impl FnOnce(&mut Vec<u8>)) {
    pad(bytes, 4);
    let length_at = bytes.len();
    bytes.extend([0; 4]);
    pad(bytes, align);
    let start = bytes.len();
    elements(bytes);
    let length = (bytes.len() - start) as u32;
    bytes[length_at..length_at + 4].copy_from_slice(&length.to_le_bytes());
}

fn put_field(bytes: &mut Vec<u8>, code: u8, kind: char, text: &str) {
    pad(bytes, 8);
    bytes.push(code);
    put_signature(bytes, kind.encode_utf8(&mut [0; 4]));
    put_text(bytes, text);
}

fn put_variant(bytes: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Text(text) => {
            put_signature(bytes, "s");
            put_text(bytes, text);
        }
        Value::Flag(flag) => {
            put_signature(bytes, "b");
            put_number(bytes, u32::from(*flag));
        }
        Value::Number(number) => {
            put_signature(bytes, "t");
            pad(bytes, 8);
            bytes.extend(number.to_le_bytes());
        }
        Value::Numbers(numbers) => {
            put_signature(bytes, "au");
            put_array(bytes, 4, |bytes| {
                numbers.iter().for_each(|number| put_number(bytes, *number));
            });
        }
        Value::Bytes(list) => {
            put_signature(bytes, "ay");
            put_array(bytes, 1, |bytes| bytes.extend(list));
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// See [`kind`].
    pub kind: u8,
    /// The serial of the call that this message answers.
    pub reply_to: Option<u32>,
    /// The name of the signal or method.
    pub member: String,
    /// The name of the error, in an error reply.
    pub error: String,
    body: Vec<u8>,
}

/// The length of the message that begins with `fixed`. None if it is malformed or too long.
pub fn message_len(fixed: &[u8; FIXED_HEADER]) -> Option<usize> {
    if fixed[0] != LITTLE_ENDIAN {
        return None;
    }
    let mut reader = Reader {
        bytes: fixed,
        at: 4,
    };
    let body = reader.number()? as usize;
    reader.number()?;
    let fields = reader.number()? as usize;
    let length = fields
        .checked_next_multiple_of(8)?
        .checked_add(FIXED_HEADER)?
        .checked_add(body)?;
    (length <= MAX_MESSAGE).then_some(length)
}

impl Message {
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let mut message = Self {
            kind: *bytes.get(1)?,
            ..Self::default()
        };
        let mut reader = Reader { bytes, at: 12 };
        let end = (reader.number()? as usize).checked_add(FIXED_HEADER)?;
        while reader.at < end {
            reader.align(8)?;
            let code = reader.byte()?;
            let signature = reader.signature()?;
            match (code, signature) {
                (field::MEMBER, "s") => message.member = reader.text()?.to_owned(),
                (field::ERROR_NAME, "s") => message.error = reader.text()?.to_owned(),
                (field::REPLY_SERIAL, "u") => message.reply_to = Some(reader.number()?),
                (_, "s" | "o") => drop(reader.text()?),
                (_, "g") => drop(reader.signature()?),
                (_, "u") => drop(reader.number()?),
                _ => return None,
            }
        }
        message.body = bytes.get(end.checked_next_multiple_of(8)?..)?.to_vec();
        Some(message)
    }

    /// The first values of the body as text. `types` holds `s`, `o` or `u` for each of them.
    pub fn texts(&self, types: &str) -> Option<Vec<String>> {
        let mut reader = Reader {
            bytes: &self.body,
            at: 0,
        };
        let read = |kind| match kind {
            'u' => Some(reader.number()?.to_string()),
            _ => Some(reader.text()?.to_owned()),
        };
        types.chars().map(read).collect()
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn align(&mut self, to: usize) -> Option<()> {
        self.at = self.at.checked_next_multiple_of(to)?;
        Some(())
    }

    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let end = self.at.checked_add(count)?;
        let taken = self.bytes.get(self.at..end)?;
        self.at = end;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        Some(self.take(1)?[0])
    }

    fn number(&mut self) -> Option<u32> {
        self.align(4)?;
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    fn text(&mut self) -> Option<&'a str> {
        let length = self.number()? as usize;
        let text = std::str::from_utf8(self.take(length)?).ok()?;
        self.take(1)?;
        Some(text)
    }

    fn signature(&mut self) -> Option<&'a str> {
        let length = self.byte()? as usize;
        let text = std::str::from_utf8(self.take(length)?).ok()?;
        self.take(1)?;
        Some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_laid_out_as_the_specification_has_it() {
        let body = Body::default().text("a.scope").flag(true);
        let message = call(7, Some("d"), "/p", "i", "M", &body);
        assert_eq!(message[..4], [b'l', 1, 0, 1]);
        // A string of 7 and its end, then four bytes at a multiple of four.
        assert_eq!(message[4..8], 16_u32.to_le_bytes());
        assert_eq!(message[8..12], 7_u32.to_le_bytes());
        assert_eq!(message[16..24], [1, 1, b'o', 0, 2, 0, 0, 0]);
        let tail = &message[message.len() - 16..];
        assert_eq!(tail, b"\x07\0\0\0a.scope\0\x01\0\0\0");
        assert_eq!(message.len() % 8, 0);
    }

    #[test]
    fn properties_are_structures_at_multiples_of_eight() {
        let properties = [
            ("PIDs", Value::Numbers(vec![4711])),
            ("MemoryMax", Value::Number(u64::MAX)),
        ];
        let body = Body::default().properties(&properties);
        assert_eq!(body.signature, "a(sv)");
        let expected = b"\x30\0\0\0\0\0\0\0\
            \x04\0\0\0PIDs\0\x02au\0\0\0\0\x04\0\0\0\x67\x12\0\0\
            \x09\0\0\0MemoryMax\0\x01t\0\0\0\0\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff";
        let length = body.bytes.len() - 8;
        assert_eq!(body.bytes[..4], (length as u32).to_le_bytes());
        assert_eq!(body.bytes[8..32], expected[8..32]);
    }

    #[test]
    fn a_marshalled_message_is_parsed_back() {
        let body = Body::default().text("one").text("two");
        let bytes = call(1, None, "/p", "i", "Member", &body);
        let fixed: &[u8; FIXED_HEADER] = bytes[..FIXED_HEADER].try_into().unwrap();
        assert_eq!(message_len(fixed), Some(bytes.len()));
        let message = Message::parse(&bytes).unwrap();
        assert_eq!(
            (message.kind, message.member.as_str()),
            (kind::CALL, "Member")
        );
        assert_eq!(message.texts("ss").unwrap(), ["one", "two"]);
        assert_eq!(message.texts("sss"), None);
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_are_too_strange_to_be_refused(bytes: Vec<u8>) {
            let _ = Message::parse(&bytes).map(|message| message.texts("uoss"));
        }
    }
}
