//! JSON that is right for the most part.

use serde_json::{Map, Value};

use crate::Decisions;

/// The most edits of one text.
const MAX_EDITS: u8 = 8;

/// The longest value that is repeated, in bytes of its text.
const MAX_REPEATED: usize = 256;

/// Numbers at the ends of the types that they are read as.
const NUMBERS: [i64; 14] = [
    0,
    1,
    -1,
    2,
    255,
    256,
    65_535,
    65_536,
    i32::MAX as i64,
    i32::MIN as i64,
    u32::MAX as i64,
    u32::MAX as i64 + 1,
    i64::MAX,
    i64::MIN,
];

/// `base`, a JSON text, with some edits: values that are replaced, taken away, repeated or moved.
/// `words` are texts that mean something to who reads it.
pub fn edited(base: &str, words: &[&str], decisions: &mut Decisions<'_>) -> Value {
    let mut value = serde_json::from_str(base).unwrap();
    for _ in 0..decisions.choose(MAX_EDITS) {
        edit(&mut value, words, decisions);
    }
    value
}

/// Walks down to a value, and edits there.
fn edit(value: &mut Value, words: &[&str], decisions: &mut Decisions<'_>) {
    // One time in eight the value on the way is the one, so that whole objects change too.
    let stop = decisions.choose(8) == 0;
    match value {
        Value::Object(fields) if !fields.is_empty() && !stop => {
            let key = key(fields, decisions);
            if decisions.choose(16) == 0 {
                fields.remove(&key);
            } else if let Some(inner) = fields.get_mut(&key) {
                edit(inner, words, decisions);
            }
        }
        Value::Array(list) if !list.is_empty() && !stop => {
            let at = usize::from(decisions.u8()) % list.len();
            match decisions.choose(16) {
                0 => drop(list.remove(at)),
                1 | 2 => {
                    let mut copy = list[at].clone();
                    edit(&mut copy, words, decisions);
                    list.push(copy);
                }
                _ => edit(&mut list[at], words, decisions),
            }
        }
        _ => *value = other(value, words, decisions),
    }
}

fn key(fields: &Map<String, Value>, decisions: &mut Decisions<'_>) -> String {
    let at = usize::from(decisions.u8()) % fields.len();
    fields.keys().nth(at).cloned().unwrap_or_default()
}

fn other(value: &Value, words: &[&str], decisions: &mut Decisions<'_>) -> Value {
    match decisions.choose(12) {
        0 => Value::Null,
        1 => decisions.choose(2).eq(&1).into(),
        2 | 3 => decisions.pick(&NUMBERS).into(),
        4 => decisions.u64().into(),
        5 => Value::Array(Vec::new()),
        6 => Value::Object(Map::new()),
        7 => String::from_utf8_lossy(&decisions.bytes()).into(),
        8 => match value {
            Value::String(text) => format!("{text}{}", decisions.pick(words)).into(),
            _ => repeated(value, decisions.u8().into()),
        },
        _ => decisions.pick(words).into(),
    }
}

/// A list of the same value. One that is long already is not repeated: a few edits would make
/// gigabytes of it.
fn repeated(value: &Value, count: usize) -> Value {
    match value.to_string().len() > MAX_REPEATED {
        true => value.clone(),
        false => vec![value.clone(); count].into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_decide_on_edits() {
        let base = r#"{"a":{"b":[1,2,3]},"c":"text"}"#;
        let unchanged = edited(base, &["word"], &mut Decisions(&[]));
        assert_eq!(unchanged, serde_json::from_str::<Value>(base).unwrap());
        // One edit: c, not removed, becomes a word.
        let changed = edited(base, &["word"], &mut Decisions(&[1, 1, 1, 1, 1, 9, 0]));
        assert_eq!(changed["c"], "word");
        assert_eq!(changed["a"], unchanged["a"]);
    }

    #[test]
    fn a_list_is_not_repeated_over_and_over() {
        // Each edit replaces the whole by a list of it.
        let many = [[0, 8, 255]; 7].concat();
        let bytes = [&[7], many.as_slice()].concat();
        let grown = edited("[1]", &["word"], &mut Decisions(&bytes)).to_string();
        assert!((256..100_000).contains(&grown.len()), "{}", grown.len());
    }
}
